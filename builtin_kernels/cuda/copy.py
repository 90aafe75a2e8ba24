"""Reshape, Flatten, Squeeze, Unsqueeze and Expand: a vectorised copy, of a tensor that is repeated or not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from tactician.builtin_kernels.cuda.pointwise import geometries, pointwise_launch
from tactician.builtin_kernels.cuda.pointwise_program import PointwiseProgram, copy_program
from tactician.builtin_kernels.cuda.pointwise_source import PointwiseKernel
from tactician.builtin_kernels.cuda.strided_copy import decline_movement
from tactician.signature import OpSignature
from tactician.tactics.tactic import Launch, Tactic

_BITS = {1: "uint8", 2: "uint16", 4: "uint32", 8: "uint64"}


@dataclass(frozen=True)
class Copy(Tactic):
    """A copy by the pointwise kernel, in unsigned integers of the elements' size."""

    op: ClassVar[tuple[str, ...]] = tuple(
        f"ai.onnx::{name}" for name in ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand")
    )
    target: ClassVar[str] = "cuda"

    vector: int = 4
    """Consecutive elements of a thread."""
    threads: int = 256
    unroll: int = 1
    """Vectors of a thread."""

    @classmethod
    def candidates(cls, signature: OpSignature, device: Any) -> Iterable[Self]:
        """Yield what is worth timing for an elementwise operator of this size."""
        if not signature.is_static:
            yield cls()
            return
        for vector, threads, unroll in geometries(signature, int(device.facts["multiprocessors"])):
            yield cls(vector, threads, unroll)

    def decline(self, signature: OpSignature, device: Any) -> str | None:
        """Decline dynamic shapes and elements of more than 8 bytes."""
        return decline_movement(signature, lambda: None) or (
            None
            if signature.outputs[0] and signature.outputs[0].itemsize in _BITS
            else "elements are too wide"
        )

    def prepare(self, signature: OpSignature, device: Any) -> Launch:
        """Compile the copy."""
        return pointwise_launch(
            PointwiseKernel(_program(signature), self.vector, self.threads, self.unroll), device
        )


TACTICS: list[type[Tactic]] = [Copy]


def _program(signature: OpSignature) -> PointwiseProgram:
    source, target = signature.inputs[0], signature.outputs[0]
    assert source is not None
    assert target is not None
    dtype = _BITS[target.itemsize]
    if signature.op_type == "Expand":
        return copy_program(dtype, target.dims, source.dims)
    return copy_program(dtype, (target.size,), (target.size,))
