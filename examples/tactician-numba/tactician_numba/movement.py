"""Tactics that move data: Reshape and its like, and Transpose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from tactician import Device, Launch, OpSignature, Tactic

from tactician_numba.collapse import Loops, collapse, contiguous
from tactician_numba.tactic import NumbaTactic, dims_of, int64, own_device


@dataclass(frozen=True)
class Copy(NumbaTactic):
    """The same elements in the same order: another shape is only another view, but the output has memory of its own."""

    op: ClassVar[tuple[str, ...]] = tuple(
        f"ai.onnx::{name}" for name in ("Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")
    )

    def prepare(self, signature: OpSignature, device: Device) -> Launch:
        from tactician_numba.movement_kernels import copy

        compiled, split = copy.compile(), own_device(device).split

        def launch(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any) -> None:
            x, y = inputs[0].flat, outputs[0].flat
            split(lambda begin, end, _: compiled(x[begin:end], y[begin:end]), len(y), parallel=self.parallel)

        return launch


@dataclass(frozen=True)
class Transpose(NumbaTactic):
    """Axes in another order: a row of the output at a time."""

    op: ClassVar[str] = "ai.onnx::Transpose"

    def prepare(self, signature: OpSignature, device: Device) -> Launch:
        from tactician_numba.movement_kernels import strided_copy

        loops, compiled, split = permuted_loops(signature), strided_copy.compile(), own_device(device).split
        extents, strides = int64(loops.extents), int64(loops.strides[0])

        def launch(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any) -> None:
            x, y = inputs[0].flat, outputs[0].flat
            split(
                lambda begin, end, _: compiled(x, y, extents, strides, begin, end),
                loops.rows,
                parallel=self.parallel,
            )

        return launch


def permuted_loops(signature: OpSignature) -> Loops:
    """Return the loops of a Transpose, over the output, with the strides of the input."""
    dims = dims_of(signature, 0)
    order = signature.attribute("perm") or tuple(reversed(range(len(dims))))
    strides = contiguous(dims)
    return collapse([dims[axis] for axis in order], [strides[axis] for axis in order])


TACTICS: list[type[Tactic]] = [Copy, Transpose]
