"""Elementwise operators, single or fused into a chain: one generated kernel, one read and one write."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from tactician.builtin_kernels.cuda.epilogue import POINTWISE
from tactician.builtin_kernels.cuda.pointwise_body import body_program
from tactician.builtin_kernels.cuda.pointwise_ops import UnsupportedError
from tactician.builtin_kernels.cuda.pointwise_program import PointwiseProgram, operator_program
from tactician.builtin_kernels.cuda.pointwise_source import PointwiseKernel
from tactician.plugins.target import Artifacts
from tactician.signature import OpSignature, numpy_dtype
from tactician.tactics.fused_form import FusedForm
from tactician.tactics.tactic import ANY_OP, Launch, Tactic

ACCESS_BYTES = 16
"""The widest access of one thread."""


@dataclass(frozen=True)
class Pointwise(Tactic):
    """One elementwise operator over inputs that broadcast."""

    op: ClassVar[tuple[str, ...]] = POINTWISE
    target: ClassVar[str] = "cuda"

    vector: int = 4
    """Consecutive elements of a thread."""
    threads: int = 256
    unroll: int = 1
    """Vectors of a thread."""

    @classmethod
    def candidates(cls, signature: OpSignature, device: Any) -> Iterable[Self]:
        """Yield wide accesses first, and more work per thread where there is enough for the device."""
        if not signature.is_static or signature.body is not None:
            yield cls()
            return
        for vector, threads, unroll in geometries(signature, int(device.facts["multiprocessors"])):
            yield cls(vector, threads, unroll)

    def decline(self, signature: OpSignature, device: Any) -> str | None:
        """Decline dynamic shapes, and types or attributes that the generator can't express."""
        if not signature.is_static:
            return "needs static shapes"
        if signature.body is not None:
            return "is for single operators"
        try:
            operator_program(signature)
        except UnsupportedError as reason:
            return str(reason)
        return None

    def prepare(self, signature: OpSignature, device: Any) -> Launch:
        """Generate and compile the kernel."""
        return pointwise_launch(
            PointwiseKernel(operator_program(signature), self.vector, self.threads, self.unroll), device
        )


@dataclass(frozen=True)
class PointwiseChain(Tactic):
    """A fused node whose body holds elementwise operators only."""

    op: ClassVar[str] = ANY_OP
    target: ClassVar[str] = "cuda"
    fused_forms: ClassVar[tuple[FusedForm, ...]] = (FusedForm(POINTWISE, epilogue=POINTWISE, longest=8),)

    vector: int = 4
    """Consecutive elements of a thread."""
    threads: int = 256
    unroll: int = 1
    """Vectors of a thread."""

    @classmethod
    def candidates(cls, signature: OpSignature, device: Any) -> Iterable[Self]:
        """Yield the same geometries as for single operators, and nothing for a node that is not fused."""
        if signature.body is None:
            return
        if not signature.is_static:
            yield cls()
            return
        for vector, threads, unroll in geometries(signature, int(device.facts["multiprocessors"])):
            yield cls(vector, threads, unroll)

    def decline(self, signature: OpSignature, device: Any) -> str | None:
        """Decline bodies with any operator that is not elementwise."""
        if signature.body is None:
            return "is for fused nodes"
        if not signature.is_static:
            return "needs static shapes"
        program = body_program(signature)
        return program if isinstance(program, str) else None

    def prepare(self, signature: OpSignature, device: Any) -> Launch:
        """Generate and compile the kernel. The program is an artifact: loading an engine needs no onnx."""
        key = Artifacts.key("pointwise-program", signature.key)
        program = PointwiseProgram.decode(device.artifacts.get(key, lambda: _encoded_body(signature)))
        return pointwise_launch(PointwiseKernel(program, self.vector, self.threads, self.unroll), device)


TACTICS: list[type[Tactic]] = [Pointwise, PointwiseChain]


def geometries(signature: OpSignature, multiprocessors: int) -> list[tuple[int, int, int]]:
    """Return vector width, threads and unrolling worth timing for a static signature, best guess first."""
    types = [t for t in (*signature.inputs, *signature.outputs) if t is not None]
    sizes = [numpy_dtype(t.dtype).itemsize for t in types if t.size > 1] or [4]
    count = max((t.size for t in signature.outputs if t is not None), default=1)
    wide, widest = ACCESS_BYTES // max(sizes), ACCESS_BYTES // min(sizes)
    per_wave = multiprocessors * 2048
    if count < per_wave:  # one element a thread already doesn't fill the device
        return list(dict.fromkeys([(1, 128, 1), (min(wide, 2), 128, 1), (wide, 128, 1)]))
    found = [(wide, 256, 1), (wide, 256, 2), (wide, 512, 1)]
    if count >= per_wave * wide * 4:
        found += [(wide, 256, 4), (wide, 128, 2)]
    if widest != wide:
        found += [(min(widest, wide * 4), 256, 1)]
    return list(dict.fromkeys(found))


def pointwise_launch(kernel: PointwiseKernel, device: Any) -> Launch:
    """Compile ``kernel`` and return its launch, which does nothing where there are no elements."""
    if math.prod(kernel.program.shape) == 0:
        return _nothing
    compiled = device.compile(kernel.source())
    launch: Callable[..., None] = compiled.launch
    grid, threads, order = kernel.grid, kernel.threads, kernel.inputs

    def run(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any) -> None:
        launch(stream, grid, threads, *(inputs[i] for i in order), *outputs)

    return run


def _nothing(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any) -> None:
    """Do nothing: the launch of tensors without elements."""


def _encoded_body(signature: OpSignature) -> bytes:
    program = body_program(signature)
    if isinstance(program, str):
        raise UnsupportedError(program)
    return program.encode()
