"""Softmax and LogSoftmax over any axis: one read and one write."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from tactician.builtin_kernels.cuda.compiler import KernelSource
from tactician.builtin_kernels.cuda.indexing import ceil_div
from tactician.builtin_kernels.cuda.kernel_text import specialise
from tactician.builtin_kernels.cuda.row_geometry import HELD_ELEMENTS, block_threads, row_groups, row_vector
from tactician.signature import OpSignature
from tactician.tactics.tactic import Launch, Tactic

T_NAMES = {"float32": "float", "float16": "f16", "bfloat16": "bf16", "float64": "double"}
"""C types of the floating-point element types."""

_SINGLE = {
    "EXP": "expf",
    "LOGARITHM": "logf",
    "SQUARE_ROOT": "sqrtf",
    "INFINITE": "__int_as_float(0x7f800000)",
}
_DOUBLE = {
    "EXP": "exp",
    "LOGARITHM": "log",
    "SQUARE_ROOT": "sqrt",
    "INFINITE": "__longlong_as_double(0x7ff0000000000000ll)",
}


@dataclass(frozen=True)
class SoftmaxProblem:
    """A softmax as one over the middle dimension of ``[outer, length, inner]``."""

    outer: int
    length: int
    inner: int

    @classmethod
    def of(cls, signature: OpSignature) -> SoftmaxProblem:
        """Return the problem of a static signature."""
        tensor = signature.inputs[0]
        assert tensor is not None
        dims = tensor.dims or (1,)
        axis = int(signature.attribute("axis", 1 if signature.version < 13 else -1)) % len(dims)
        return cls(math.prod(dims[:axis]), dims[axis], math.prod(dims[axis + 1 :]))


@dataclass(frozen=True)
class SoftmaxRows(Tactic):
    """Rows of contiguous elements, each shared by a group of threads."""

    op: ClassVar[tuple[str, ...]] = ("ai.onnx::Softmax", "ai.onnx::LogSoftmax")
    target: ClassVar[str] = "cuda"

    group: int = 32
    """Threads that share a row."""

    @classmethod
    def candidates(cls, signature: OpSignature, device: Any) -> Iterable[Self]:
        """Yield groups that hold the row in registers where that is possible."""
        tensor = signature.input(0)
        if tensor is None or not tensor.is_static or tensor.dtype not in T_NAMES:
            yield cls()
            return
        for group in row_groups(SoftmaxProblem.of(signature).length, tensor.itemsize):
            yield cls(group)

    def decline(self, signature: OpSignature, device: Any) -> str | None:
        """Decline an axis with other dimensions behind it."""
        reason = _decline(signature)
        if reason is None and SoftmaxProblem.of(signature).inner != 1:
            reason = "the axis has dimensions behind it"
        return reason

    def prepare(self, signature: OpSignature, device: Any) -> Launch:
        """Compile the kernel for this row length."""
        problem, tensor = SoftmaxProblem.of(signature), signature.inputs[0]
        assert tensor is not None
        vector, threads = row_vector(problem.length, tensor.itemsize), block_threads(self.group)
        held = ceil_div(problem.length // vector, self.group)
        macros: dict[str, int | str] = {
            "ROWS_KERNEL": 1,
            "GROUP": self.group,
            "THREADS": threads,
            "VECTOR": vector,
            "HELD": held if held * vector <= HELD_ELEMENTS else 0,
        }
        source = _source("softmax_rows", signature, problem, macros)
        return _launch(source, ceil_div(problem.outer, threads // self.group), threads, problem, device)


@dataclass(frozen=True)
class SoftmaxColumns(Tactic):
    """An axis with other dimensions behind it: neighbouring columns go to neighbouring threads."""

    op: ClassVar[tuple[str, ...]] = ("ai.onnx::Softmax", "ai.onnx::LogSoftmax")
    target: ClassVar[str] = "cuda"

    slices: int = 4
    """Warps that share 32 columns."""

    @classmethod
    def candidates(cls, signature: OpSignature, device: Any) -> Iterable[Self]:
        """Yield few and many warps for each 32 columns."""
        yield cls(4)
        yield cls(1)
        yield cls(16)

    def decline(self, signature: OpSignature, device: Any) -> str | None:
        """Decline rows of contiguous elements."""
        reason = _decline(signature)
        if reason is None and SoftmaxProblem.of(signature).inner == 1:
            reason = "the axis is the innermost dimension"
        return reason

    def prepare(self, signature: OpSignature, device: Any) -> Launch:
        """Compile the kernel for this shape."""
        problem = SoftmaxProblem.of(signature)
        source = _source("softmax_columns", signature, problem, {"SLICES": self.slices})
        return _launch(source, ceil_div(problem.outer * problem.inner, 32), 32 * self.slices, problem, device)


TACTICS: list[type[Tactic]] = [SoftmaxRows, SoftmaxColumns]


def arithmetic(dtype: str) -> tuple[dict[str, str], dict[str, int | str]]:
    """Return the types T, of elements, and A, of arithmetic on them, and macros that name A's functions."""
    double = dtype == "float64"
    return {"T": T_NAMES[dtype], "A": "double" if double else "float"}, dict(_DOUBLE if double else _SINGLE)


def _decline(signature: OpSignature) -> str | None:
    if not signature.is_static:
        return "needs static shapes"
    if signature.body is not None:
        return "is for single operators"
    tensor = signature.input(0)
    if tensor is None or tensor.dtype not in T_NAMES:
        return f"element type {tensor and tensor.dtype} is not supported"
    if signature.version < 13 and SoftmaxProblem.of(signature).inner != 1:
        return "before opset 13 all dimensions from the axis on are one row"
    return None


def _source(
    name: str, signature: OpSignature, problem: SoftmaxProblem, macros: dict[str, int | str]
) -> KernelSource:
    tensor = signature.inputs[0]
    assert tensor is not None
    shape = {"OUTER": f"{problem.outer}ull", "LENGTH": f"{problem.length}u", "INNER": f"{problem.inner}ull"}
    types, functions = arithmetic(tensor.dtype)
    log = {"LOG": int(signature.op_type == "LogSoftmax")}
    return specialise(name, "softmax.cu", types, functions | shape | macros | log, "rows.cuh")


def _launch(source: KernelSource, grid: int, threads: int, problem: SoftmaxProblem, device: Any) -> Launch:
    if problem.outer * problem.length * problem.inner == 0:
        return lambda inputs, outputs, workspace, stream: None
    launch = device.compile(source).launch

    def run(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any) -> None:
        launch(stream, grid, threads, inputs[0], outputs[0])

    return run
