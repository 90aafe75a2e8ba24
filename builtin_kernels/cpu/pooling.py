"""Pooling with NumPy: over windows, by running over the kernel's elements, and over whole images."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from tactician.builtin_kernels.cpu.numpy_tactic import (
    FLOATS,
    NARROW,
    Array,
    Kernel,
    NumpyTactic,
    decline_dynamic,
    decline_types,
    dtype_of,
    wide,
)
from tactician.builtin_kernels.cpu.windows import Geometry, Index
from tactician.plugins.target import Device
from tactician.signature import OpSignature
from tactician.tactics.tactic import Tactic


@dataclass(frozen=True)
class NumpyPool(NumpyTactic):
    """Maximum or average of windows.

    Parameters
    ----------
    windows
        Whether each window is reduced by itself, over strided views; else the outputs of all windows grow
        together, one element of the kernel after the other.
    """

    op: ClassVar[str | tuple[str, ...]] = ("ai.onnx::MaxPool", "ai.onnx::AveragePool")
    windows: bool = False

    @classmethod
    def candidates(cls, signature: OpSignature, device: Device) -> Iterable[Self]:
        """Offer both orders of the loops."""
        return [cls(windows=False), cls(windows=True)]

    def decline(self, signature: OpSignature, device: Device) -> str | None:
        """Decline other types, dynamic shapes, and the indices of maxima."""
        if len([t for t in signature.outputs if t is not None]) > 1:
            return "the indices of maxima are not computed"
        types = (*FLOATS, "int8", "uint8") if signature.op_type == "MaxPool" else FLOATS
        return decline_types(signature, types) or decline_dynamic(signature)

    def kernel(self, signature: OpSignature, device: Device) -> Kernel:
        """Return the pooling; padding never wins a maximum, and counts in an average only if asked."""
        geometry = _geometry(signature)
        narrow = dtype_of(signature) in NARROW
        is_max = signature.op_type == "MaxPool"
        counts = None if is_max else _counts(geometry, bool(signature.attribute("count_include_pad", 0)))
        ufunc = np.maximum if is_max else np.add
        axes = tuple(range(-len(geometry.kernel), 0))

        def kernel(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any) -> list[Any]:
            x, out = wide(inputs[0]), None if narrow else outputs[0]
            padded = geometry.pad(x, _lowest(x.dtype) if is_max else 0)
            if self.windows:
                result = ufunc.reduce(geometry.windows(padded), axis=axes, out=out)
            else:
                result = _run_over_kernel(ufunc, padded, geometry, out)
            if counts is not None:
                np.divide(result, counts.astype(result.dtype), out=result)
            return [result]

        return kernel


@dataclass(frozen=True)
class NumpyGlobalPool(NumpyTactic):
    """Maximum or average of each channel's whole image."""

    op: ClassVar[str | tuple[str, ...]] = ("ai.onnx::GlobalAveragePool", "ai.onnx::GlobalMaxPool")

    def decline(self, signature: OpSignature, device: Device) -> str | None:
        """Decline types that are no floats."""
        return decline_types(signature, FLOATS)

    def kernel(self, signature: OpSignature, device: Device) -> Kernel:
        """Return a reduction over all but the first two axes."""
        narrow = dtype_of(signature) in NARROW
        reduction: Any = np.mean if signature.op_type == "GlobalAveragePool" else np.amax

        def kernel(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any) -> list[Any]:
            x = wide(inputs[0])
            axes = tuple(range(2, x.ndim))
            return [reduction(x, axis=axes, keepdims=True, out=None if narrow else outputs[0])]

        return kernel


def _geometry(signature: OpSignature) -> Geometry:
    x = signature.inputs[0]
    assert x is not None
    return Geometry.of(signature, signature.attribute("kernel_shape"), x.dims[2:])


def _run_over_kernel(ufunc: np.ufunc, padded: Array, geometry: Geometry, out: Array | None) -> Array:
    offsets = itertools.product(*map(range, geometry.kernel))
    first = padded[_everywhere(geometry.tap(next(offsets)))]
    result = np.empty(first.shape, padded.dtype) if out is None else out
    np.copyto(result, first)
    for offset in offsets:
        ufunc(result, padded[_everywhere(geometry.tap(offset))], out=result)
    return result


def _everywhere(taken: Index) -> Index:
    """Return an index of the last axes as one for all images and channels."""
    return (..., *taken)


def _counts(geometry: Geometry, with_padding: bool) -> Array:
    """Return how many elements each window's average counts; what lies beyond the padding never does."""
    counted = np.zeros(geometry.padded, np.int64)
    if with_padding:
        counted[tuple(slice(0, n - e) for n, e in zip(geometry.padded, geometry.beyond, strict=True))] = 1
    else:
        counted[geometry.inner()] = 1
    return np.asarray(geometry.windows(counted).sum(axis=tuple(range(-len(geometry.kernel), 0))))


def _lowest(dtype: np.dtype[Any]) -> float:
    return -np.inf if dtype.kind == "f" else float(np.iinfo(dtype).min)


TACTICS: list[type[Tactic]] = [NumpyPool, NumpyGlobalPool]
