"""Reductions along axes with NumPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from tactician.builtin_kernels.cpu.numpy_tactic import (
    FLOATS,
    INTEGERS,
    NARROW,
    NUMBERS,
    Array,
    Kernel,
    NumpyTactic,
    decline_types,
    dtype_of,
    integers,
    wide,
)
from tactician.plugins.target import Device
from tactician.signature import OpSignature
from tactician.tactics.tactic import Tactic


def _log_sum_exp(x: Array, axis: Any, keepdims: bool, out: Array | None) -> Array:
    highest = x.max(axis=axis, keepdims=True, initial=-np.inf)
    highest = np.where(np.isfinite(highest), highest, 0)
    total = np.log(np.exp(x - highest).sum(axis=axis, keepdims=keepdims))
    return np.asarray(np.add(total, highest if keepdims else highest.reshape(total.shape), out=out))


_REDUCTIONS: dict[str, Callable[..., Any]] = {
    "ReduceL1": lambda x, axis, keepdims, out: np.abs(x).sum(axis=axis, keepdims=keepdims, out=out),
    "ReduceL2": lambda x, axis, keepdims, out: np.sqrt(
        np.square(x).sum(axis=axis, keepdims=keepdims), out=out
    ),
    "ReduceLogSum": lambda x, axis, keepdims, out: np.log(x.sum(axis=axis, keepdims=keepdims), out=out),
    "ReduceLogSumExp": _log_sum_exp,
    "ReduceMax": lambda x, axis, keepdims, out: x.max(axis=axis, keepdims=keepdims, out=out),
    "ReduceMean": lambda x, axis, keepdims, out: x.mean(axis=axis, keepdims=keepdims, out=out),
    "ReduceMin": lambda x, axis, keepdims, out: x.min(axis=axis, keepdims=keepdims, out=out),
    "ReduceProd": lambda x, axis, keepdims, out: x.prod(axis=axis, keepdims=keepdims, out=out),
    "ReduceSum": lambda x, axis, keepdims, out: x.sum(axis=axis, keepdims=keepdims, out=out),
    "ReduceSumSquare": lambda x, axis, keepdims, out: np.square(x).sum(axis=axis, keepdims=keepdims, out=out),
}


@dataclass(frozen=True)
class NumpyReduce(NumpyTactic):
    """A sum, mean, norm, maximum or minimum along some axes."""

    op: ClassVar[str | tuple[str, ...]] = tuple(f"ai.onnx::{name}" for name in _REDUCTIONS)

    def decline(self, signature: OpSignature, device: Device) -> str | None:
        """Decline other types, and maxima of nothing."""
        tensor = signature.input(0)
        if signature.op_type in ("ReduceMax", "ReduceMin") and (
            tensor is None or not tensor.is_static or not tensor.size
        ):
            return "the maximum of nothing is not implemented"
        exact = signature.op_type in (
            "ReduceMax",
            "ReduceMin",
            "ReduceProd",
            "ReduceSum",
            "ReduceSumSquare",
            "ReduceL1",
        )
        return decline_types(signature, NUMBERS if exact else FLOATS)

    def kernel(self, signature: OpSignature, device: Device) -> Kernel:
        """Return the reduction, in place for fp32, fp64 and integers."""
        function = _REDUCTIONS[signature.op_type]
        keep = bool(signature.attribute("keepdims", 1))
        no_axes_is_all = not signature.attribute("noop_with_empty_axes", 0)
        narrow, whole = dtype_of(signature) in NARROW, dtype_of(signature) in INTEGERS

        def kernel(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any) -> list[Any]:
            x = wide(inputs[0])
            axes = integers(signature, inputs, "axes", 1)
            axis = tuple(axes) if axes else None if no_axes_is_all else ()
            # NumPy sums small integers in 64 bits unless it has an output: rounding off comes after
            result = function(x, axis, keep, None if narrow or whole else outputs[0])
            return [result if result is outputs[0] else np.asarray(result).astype(inputs[0].dtype)]

        return kernel


@dataclass(frozen=True)
class NumpyArgReduce(NumpyTactic):
    """The index of the maximum or minimum along an axis."""

    op: ClassVar[str | tuple[str, ...]] = ("ai.onnx::ArgMax", "ai.onnx::ArgMin")

    def decline(self, signature: OpSignature, device: Device) -> str | None:
        """Decline types that are no numbers."""
        return decline_types(signature, NUMBERS)

    def kernel(self, signature: OpSignature, device: Device) -> Kernel:
        """Return the first such index, or the last where ``select_last_index`` says so."""
        find: Any = np.argmax if signature.op_type == "ArgMax" else np.argmin
        axis, keep = int(signature.attribute("axis", 0)), bool(signature.attribute("keepdims", 1))
        last = bool(signature.attribute("select_last_index", 0))

        def kernel(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any) -> list[Any]:
            x = wide(inputs[0])
            if not last:
                return [find(x, axis=axis, keepdims=keep)]
            return [x.shape[axis] - 1 - find(np.flip(x, axis), axis=axis, keepdims=keep)]

        return kernel


TACTICS: list[type[Tactic]] = [NumpyReduce, NumpyArgReduce]
