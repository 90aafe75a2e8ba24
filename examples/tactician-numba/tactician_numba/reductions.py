"""Tactics for ReduceMean, GlobalAveragePool and MaxPool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from tactician import Device, Launch, OpSignature, Tactic

from tactician_numba.device import scratch
from tactician_numba.tactic import NumbaTactic, dims_of, own_device, size_of
from tactician_numba.window import AXES, Window

DOUBLE_BYTES = 8


@dataclass(frozen=True)
class Mean(NumbaTactic):
    """The mean over axes that lie next to each other, as the sum of a [outer, count, inner] tensor's middle."""

    op: ClassVar[tuple[str, ...]] = ("ai.onnx::ReduceMean", "ai.onnx::GlobalAveragePool")

    def decline_call(self, signature: OpSignature) -> str | None:
        axes = reduced_axes(signature)
        if axes is None:
            return "the axes are not constant"
        if not axes:
            return "no axis to reduce: a copy"
        if axes[-1] - axes[0] != len(axes) - 1:
            return f"axes {list(axes)} do not lie next to each other"
        return None

    def workspace(self, signature: OpSignature, device: Device) -> int:
        """Return room for the sums of one item in float64, for each thread."""
        return DOUBLE_BYTES * self._parts(device) * mean_extents(signature)[2]

    def prepare(self, signature: OpSignature, device: Device) -> Launch:
        from tactician_numba.reductions_kernels import mean

        outer, count, _ = mean_extents(signature)
        compiled, split, parts = mean.compile(), own_device(device).split, self._parts(device)

        def launch(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any) -> None:
            x, y, sums = inputs[0].flat, outputs[0].flat, scratch(workspace, parts, np.float64)
            split(
                lambda begin, end, part: compiled(x, y, sums[part], count, begin, end),
                outer,
                parallel=self.parallel,
            )

        return launch

    def _parts(self, device: Device) -> int:
        return own_device(device).threads if self.parallel else 1


@dataclass(frozen=True)
class MaxPool(NumbaTactic):
    """The maximum of each window of an image."""

    op: ClassVar[str] = "ai.onnx::MaxPool"

    def decline_call(self, signature: OpSignature) -> str | None:
        if len([t for t in signature.outputs if t is not None]) > 1:
            return "the indices of maxima are not computed"
        if len(dims_of(signature, 0)) != 2 + AXES:
            return f"images only, not {len(dims_of(signature, 0)) - 2} spatial axes"
        return None

    def prepare(self, signature: OpSignature, device: Device) -> Launch:
        from tactician_numba.reductions_kernels import max_pool

        window = Window.of(signature, signature.attribute("kernel_shape"))
        sizes, parameters = window.sizes_array(), window.window_array()
        planes = size_of(dims_of(signature, 0)[:2])
        compiled, split = max_pool.compile(), own_device(device).split

        def launch(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any) -> None:
            x, y = inputs[0].flat, outputs[0].flat
            split(
                lambda begin, end, _: compiled(x, y, sizes, parameters, begin, end),
                planes,
                parallel=self.parallel,
            )

        return launch


def mean_extents(signature: OpSignature) -> tuple[int, int, int]:
    """Return the extents of a mean's input before, of, and after the reduced axes."""
    dims, axes = dims_of(signature, 0), reduced_axes(signature)
    assert axes  # Mean declines others
    return size_of(dims[: axes[0]]), size_of(dims[axes[0] : axes[-1] + 1]), size_of(dims[axes[-1] + 1 :])


def reduced_axes(signature: OpSignature) -> tuple[int, ...] | None:
    """Return the axes of a mean, sorted; None where they are known only at run time."""
    rank = len(dims_of(signature, 0))
    if signature.op_type == "GlobalAveragePool":
        return tuple(range(2, rank))
    given = signature.attribute("axes")
    if given is None and signature.input(1) is not None:
        known = signature.known(1)
        if known is None and dims_of(signature, 1) != (0,):
            return None
        given = () if known is None else known.tolist()
    if not given:
        return () if signature.attribute("noop_with_empty_axes", 0) else tuple(range(rank))
    return tuple(sorted(axis % rank for axis in given))


TACTICS: list[type[Tactic]] = [Mean, MaxPool]
