"""Convolution with NumPy: by matrix products of columns or of the input itself, and by shifted sums."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from tactician.builtin_kernels.cpu.numpy_tactic import (
    FLOATS,
    Array,
    BlasTactic,
    Kernel,
    decline_dynamic,
    decline_types,
    wide,
)
from tactician.builtin_kernels.cpu.windows import Geometry
from tactician.plugins.target import Device
from tactician.signature import OpSignature
from tactician.tactics.tactic import Tactic


@dataclass(frozen=True)
class _Problem:
    """Sizes of one convolution: ``filters`` and ``channels`` are those of one group."""

    batch: int
    groups: int
    channels: int
    filters: int
    geometry: Geometry
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, signature: OpSignature) -> _Problem:
        x, w = signature.inputs[0], signature.inputs[1]
        assert x is not None
        assert w is not None
        groups = int(signature.attribute("group", 1))
        geometry = Geometry.of(signature, w.dims[2:], x.dims[2:])
        dtype = np.dtype(np.float64 if x.dtype == "float64" else np.float32)
        return cls(x.dims[0], groups, w.dims[1], w.dims[0] // groups, geometry, dtype)

    @property
    def taps(self) -> int:
        return math.prod(self.geometry.kernel)

    @property
    def pixels(self) -> int:
        return math.prod(self.geometry.out)

    def padded_elements(self) -> int:
        """Return the elements of one padded image, 0 where nothing is padded."""
        return self.groups * self.channels * math.prod(self.geometry.padded) if self.geometry.is_padded else 0


class _NumpyConv(BlasTactic):
    """What the ways to convolve have in common: they compute one image after the other."""

    op: ClassVar[str | tuple[str, ...]] = "ai.onnx::Conv"

    def decline(self, signature: OpSignature, device: Device) -> str | None:
        """Decline other types, dynamic shapes and empty outputs."""
        reason = decline_types(signature, FLOATS) or decline_dynamic(signature)
        if reason:
            return reason
        problem = _Problem.of(signature)
        if not problem.pixels * problem.batch * problem.filters * problem.channels:
            return "an empty input or output"
        return self._decline(problem)

    def _decline(self, problem: _Problem) -> str | None:
        return None

    def kernel(self, signature: OpSignature, device: Device) -> Kernel:
        """Return a loop over the images of the batch."""
        problem = _Problem.of(signature)
        convolve = self._image(problem)

        def kernel(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any) -> list[Any]:
            x, w, out = wide(inputs[0]), wide(inputs[1]), outputs[0]
            bias = wide(inputs[2]) if len(inputs) > 2 and inputs[2] is not None else None
            scratch = None if workspace is None else workspace.view(problem.dtype)
            result = out if out.dtype == problem.dtype else np.empty(out.shape, problem.dtype)
            for image, y in zip(x, result, strict=True):
                convolve(image, w, y, scratch)
            if bias is not None:
                np.add(result, bias.reshape(-1, *(1,) * (result.ndim - 2)), out=result)
            return [result]

        return kernel

    def _image(self, problem: _Problem) -> Callable[[Array, Array, Array, Array | None], None]:
        """Return ``convolve(x, w, y, scratch)`` of one image [channels, ...] into ``y`` [filters, ...]."""
        raise NotImplementedError


@dataclass(frozen=True)
class NumpyConvIm2col(_NumpyConv):
    """Gather every window into the columns of a matrix, then one product for each group."""

    def workspace(self, signature: OpSignature, device: Device) -> int:
        """Return the bytes of one padded image and of the columns of one group."""
        problem = _Problem.of(signature)
        columns = problem.channels * problem.taps * problem.pixels
        return (problem.padded_elements() + columns) * problem.dtype.itemsize

    def _image(self, problem: _Problem) -> Callable[[Array, Array, Array, Array | None], None]:
        geometry, channels, filters = problem.geometry, problem.channels, problem.filters
        rows, padded_elements = channels * problem.taps, problem.padded_elements()

        def convolve(x: Array, w: Array, y: Array, scratch: Array | None) -> None:
            assert scratch is not None  # workspace() asked for it
            padded = geometry.pad(x, 0, scratch)
            columns = scratch[padded_elements : padded_elements + rows * problem.pixels]
            columns = columns.reshape(channels, problem.taps, *geometry.out)
            for g in range(problem.groups):
                group = padded[g * channels : (g + 1) * channels]
                for tap, offset in enumerate(itertools.product(*map(range, geometry.kernel))):
                    columns[:, tap] = group[(slice(None), *geometry.tap(offset))]
                matrix = w[g * filters : (g + 1) * filters].reshape(filters, rows)
                out = y[g * filters : (g + 1) * filters].reshape(filters, -1)
                np.matmul(matrix, columns.reshape(rows, -1), out=out)

        return convolve


@dataclass(frozen=True)
class NumpyConvPointwise(_NumpyConv):
    """A kernel of one element is a product of the filters with the input itself."""

    def _decline(self, problem: _Problem) -> str | None:
        if problem.taps != 1 or problem.geometry.is_padded:
            return "not a 1x1 kernel without padding"
        return None

    def workspace(self, signature: OpSignature, device: Device) -> int:
        """Return the bytes of the input's elements that strides leave; 0 without strides."""
        problem = _Problem.of(signature)
        strided = any(s != 1 for s in problem.geometry.strides)
        return problem.groups * problem.channels * problem.pixels * problem.dtype.itemsize if strided else 0

    def _image(self, problem: _Problem) -> Callable[[Array, Array, Array, Array | None], None]:
        taken = (slice(None), *problem.geometry.tap((0,) * len(problem.geometry.kernel)))
        groups, channels, filters = problem.groups, problem.channels, problem.filters

        def convolve(x: Array, w: Array, y: Array, scratch: Array | None) -> None:
            if scratch is not None:
                packed = scratch[: groups * channels * problem.pixels].reshape(-1, *problem.geometry.out)
                np.copyto(packed, x[taken])
                x = packed
            np.matmul(
                w.reshape(groups, filters, channels),
                x.reshape(groups, channels, -1),
                out=y.reshape(groups, filters, -1),
            )

        return convolve


@dataclass(frozen=True)
class NumpyConvShift(_NumpyConv):
    """One product for each element of the kernel, with the input shifted by it, summed: needs no columns."""

    def _decline(self, problem: _Problem) -> str | None:
        if problem.taps > 121:
            return f"{problem.taps} kernel elements are as many passes over the output; at most 121"
        return None

    def workspace(self, signature: OpSignature, device: Device) -> int:
        """Return the bytes of one padded image, of one shifted copy of a group, and of one product."""
        problem = _Problem.of(signature)
        shifted, product = problem.channels * problem.pixels, problem.filters * problem.pixels
        return (problem.padded_elements() + shifted + product) * problem.dtype.itemsize

    def _image(self, problem: _Problem) -> Callable[[Array, Array, Array, Array | None], None]:
        geometry, channels, filters, pixels = (
            problem.geometry,
            problem.channels,
            problem.filters,
            problem.pixels,
        )
        start = problem.padded_elements()
        middle = start + channels * pixels

        def convolve(x: Array, w: Array, y: Array, scratch: Array | None) -> None:
            assert scratch is not None  # workspace() asked for it
            padded = geometry.pad(x, 0, scratch)
            shifted = scratch[start:middle].reshape(channels, pixels)
            product = scratch[middle : middle + filters * pixels].reshape(filters, pixels)
            for g in range(problem.groups):
                group = padded[g * channels : (g + 1) * channels]
                total = y[g * filters : (g + 1) * filters].reshape(filters, pixels)
                for tap, offset in enumerate(itertools.product(*map(range, geometry.kernel))):
                    taken = group[(slice(None), *geometry.tap(offset))]
                    np.copyto(shifted.reshape(taken.shape), taken)
                    weights = w[g * filters : (g + 1) * filters].reshape(filters, channels, -1)[:, :, tap]
                    np.matmul(weights, shifted, out=product if tap else total)
                    if tap:
                        total += product

        return convolve


@dataclass(frozen=True)
class NumpyConvDepthwise(_NumpyConv):
    """Each channel by itself: for each element of the kernel the shifted input is scaled and added."""

    def _decline(self, problem: _Problem) -> str | None:
        if problem.channels != 1 or problem.groups == 1:
            return "not depthwise: groups have more than one channel, or there is one group"
        return None

    def workspace(self, signature: OpSignature, device: Device) -> int:
        """Return the bytes of one padded image and of one product."""
        problem = _Problem.of(signature)
        product = problem.groups * problem.filters * problem.pixels
        return (problem.padded_elements() + product) * problem.dtype.itemsize

    def _image(self, problem: _Problem) -> Callable[[Array, Array, Array, Array | None], None]:
        geometry, groups, filters = problem.geometry, problem.groups, problem.filters
        start = problem.padded_elements()

        def convolve(x: Array, w: Array, y: Array, scratch: Array | None) -> None:
            assert scratch is not None  # workspace() asked for it
            padded = geometry.pad(x, 0, scratch)[
                :, None
            ]  # [groups, 1, ...], against several filters for a channel
            total = y.reshape(groups, filters, *geometry.out)
            product = scratch[start : start + total.size].reshape(total.shape)
            kernels = w.reshape(groups, filters, -1)
            for tap, offset in enumerate(itertools.product(*map(range, geometry.kernel))):
                shifted = padded[(slice(None), slice(None), *geometry.tap(offset))]
                weights = kernels[:, :, tap].reshape(groups, filters, *(1,) * len(offset))
                np.multiply(shifted, weights, out=product if tap else total)
                if tap:
                    total += product

        return convolve


TACTICS: list[type[Tactic]] = [NumpyConvIm2col, NumpyConvPointwise, NumpyConvShift, NumpyConvDepthwise]
