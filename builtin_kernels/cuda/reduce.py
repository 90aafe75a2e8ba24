"""Reductions, ArgMax and ArgMin over any axes, in a fixed order: no atomics, the same bits every time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from tactician.builtin_kernels.cuda.indexing import ceil_div
from tactician.builtin_kernels.cuda.kernel_text import specialise
from tactician.builtin_kernels.cuda.pieces import MovementError
from tactician.builtin_kernels.cuda.reduce_problem import (
    ReduceError,
    ReduceProblem,
    arithmetic_macros,
    partial_bytes,
)
from tactician.signature import OpSignature
from tactician.tactics.tactic import Launch, Tactic

_NAMES = ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")
OPS = (*(f"ai.onnx::Reduce{name}" for name in _NAMES), "ai.onnx::ArgMax", "ai.onnx::ArgMin")
STAGE_2_SLICES = 8
"""Warps that share 32 outputs when partial results are combined."""


@dataclass(frozen=True)
class ReduceRows(Tactic):
    """A contiguous innermost dimension is reduced: the threads of a group read neighbouring elements."""

    op: ClassVar[tuple[str, ...]] = OPS
    target: ClassVar[str] = "cuda"

    group: int = 256
    """Threads that share an output."""
    splits: int = 1
    """Blocks that share an output; more than one needs a second stage."""

    @classmethod
    def candidates(cls, signature: OpSignature, device: Any) -> Iterable[Self]:
        """Yield warps for short rows and blocks for long ones, split where outputs are few."""
        if _decline(signature) is not None:
            yield cls()
            return
        problem = ReduceProblem.of(signature)
        for group in sorted((8, 32, 128, 512), key=lambda g: abs(problem.length - 16 * g))[:2]:
            blocks = ceil_div(problem.outputs * group, max(group, 128))
            for splits in _splits(blocks, problem.length // (group * 16), device):
                yield cls(group, splits)

    def decline(self, signature: OpSignature, device: Any) -> str | None:
        """Decline what has a contiguous kept dimension, and types or axes that are not known."""
        reason = _decline(signature)
        return reason or (None if ReduceProblem.of(signature).in_rows else "the innermost dimension is kept")

    def workspace(self, signature: OpSignature, device: Any) -> int:
        """Return the bytes of the partial results."""
        return _workspace(signature, self.splits)

    def prepare(self, signature: OpSignature, device: Any) -> Launch:
        """Compile one kernel, or two where outputs are split."""
        problem, tensor = ReduceProblem.of(signature), signature.inputs[0]
        assert tensor is not None
        threads = max(self.group, 128)
        macros: dict[str, int | str] = {
            "ROWS_KERNEL": 1,
            "GROUP": self.group,
            "THREADS": threads,
            "VECTOR": problem.vector(tensor.itemsize),
        }
        grid = ceil_div(problem.outputs, threads // self.group) * self.splits
        return _launch("reduce_rows", signature, problem, macros, self.splits, (grid, threads), device)


@dataclass(frozen=True)
class ReduceColumns(Tactic):
    """A contiguous innermost dimension is kept: neighbouring threads have neighbouring outputs."""

    op: ClassVar[tuple[str, ...]] = OPS
    target: ClassVar[str] = "cuda"

    slices: int = 8
    """Warps that share their outputs."""
    vector: int = 1
    """Consecutive outputs of a thread."""
    splits: int = 1
    """Blocks that share an output; more than one needs a second stage."""

    @classmethod
    def candidates(cls, signature: OpSignature, device: Any) -> Iterable[Self]:
        """Yield scalar and wide accesses, split where outputs are few."""
        tensor = signature.input(0)
        if _decline(signature) is not None or tensor is None:
            yield cls()
            return
        problem = ReduceProblem.of(signature)
        widest = min(problem.vector(tensor.itemsize), 4)
        for slices, vector in dict.fromkeys([(8, widest), (8, 1), (16, widest)]):
            blocks = ceil_div(problem.outputs, 32 * vector)
            for splits in _splits(blocks, problem.length // (slices * 8), device)[:2]:
                yield cls(slices, vector, splits)

    def decline(self, signature: OpSignature, device: Any) -> str | None:
        """Decline what reduces the innermost dimension, and types or axes that are not known."""
        reason = _decline(signature)
        return reason or (
            "the innermost dimension is reduced" if ReduceProblem.of(signature).in_rows else None
        )

    def workspace(self, signature: OpSignature, device: Any) -> int:
        """Return the bytes of the partial results."""
        return _workspace(signature, self.splits)

    def prepare(self, signature: OpSignature, device: Any) -> Launch:
        """Compile one kernel, or two where outputs are split."""
        problem = ReduceProblem.of(signature)
        macros: dict[str, int | str] = {"SLICES": self.slices, "VECTOR": self.vector}
        grid = ceil_div(problem.outputs, 32 * self.vector) * self.splits
        return _launch(
            "reduce_columns", signature, problem, macros, self.splits, (grid, 32 * self.slices), device
        )


TACTICS: list[type[Tactic]] = [ReduceRows, ReduceColumns]


def _decline(signature: OpSignature) -> str | None:
    if not signature.is_static:
        return "needs static shapes"
    if signature.body is not None:
        return "is for single operators"
    try:
        ReduceProblem.of(signature)
        arithmetic_macros(signature)
    except (ReduceError, MovementError) as reason:
        return str(reason)
    return None


def _splits(blocks: int, most: int, device: Any) -> list[int]:
    """Return the numbers of splits worth timing: one, and enough for two blocks on each multiprocessor."""
    wanted = ceil_div(2 * int(device.facts["multiprocessors"]), max(blocks, 1))
    splits = max(1, min(wanted, most))
    return [splits, 1] if splits > 1 else [1]


def _workspace(signature: OpSignature, splits: int) -> int:
    return 0 if splits == 1 else splits * ReduceProblem.of(signature).outputs * partial_bytes(signature)


def _launch(
    name: str,
    signature: OpSignature,
    problem: ReduceProblem,
    macros: dict[str, int | str],
    splits: int,
    geometry: tuple[int, int],
    device: Any,
) -> Launch:
    """Compile the stages and return the launch that runs them one after the other."""
    if problem.outputs == 0:
        return lambda inputs, outputs, workspace, stream: None
    types, arithmetic = arithmetic_macros(signature)
    types["Index"] = problem.index
    first = arithmetic | problem.macros() | macros | {"STAGE": 1, "SPLITS": splits}
    grid, threads = geometry
    stage_1 = device.compile(specialise(name, "reduce.cu", types, first, "rows.cuh")).launch
    if splits == 1:

        def run(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any) -> None:
            stage_1(stream, grid, threads, inputs[0], outputs[0])

        return run

    parts = ReduceProblem((problem.outputs,), (1,), (splits,), (problem.outputs,), splits * problem.outputs)
    last = arithmetic | parts.macros() | {"SLICES": STAGE_2_SLICES, "VECTOR": 1, "STAGE": 2, "SPLITS": 1}
    stage_2 = device.compile(specialise("reduce_columns", "reduce.cu", types, last, "rows.cuh")).launch
    grid_2 = ceil_div(problem.outputs, 32)

    def run_both(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any) -> None:
        stage_1(stream, grid, threads, inputs[0], workspace)
        stage_2(stream, grid_2, 32 * STAGE_2_SLICES, workspace, outputs[0])

    return run_both
