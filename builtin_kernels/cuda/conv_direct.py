"""Direct convolution by fused multiply-adds: every form of it, in full precision, on any GPU."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from tactician.builtin_kernels.cuda.conv_problem import ConvProblem, conv_problem
from tactician.builtin_kernels.cuda.conv_stages import conv_source, nothing, operands
from tactician.signature import OpSignature
from tactician.tactics.tactic import Launch, Tactic

WEIGHT_BYTES = 24 * 1024
"""Shared memory, in bytes, that weights may take."""


@dataclass(frozen=True)
class ConvDirect(Tactic):
    """Sums of several filters and pixels in a thread's registers; weights in shared memory, x through the cache."""

    op: ClassVar[str] = "ai.onnx::Conv"
    target: ClassVar[str] = "cuda"

    block_m: int = 16
    """Filters of a block, all of them in every thread."""
    thread_n: int = 2
    """Pixels of a thread."""
    threads: int = 128
    """Threads of a block."""

    @classmethod
    def candidates(cls, signature: OpSignature, device: Any) -> Iterable[Self]:
        """Yield as many filters as a group has, and small blocks where there is little to do."""
        problem = conv_problem(signature)
        if isinstance(problem, str):
            yield cls()
            return
        choices = [
            cls(16, 2, 128),
            cls(32, 2, 128),
            cls(8, 4, 128),
            cls(16, 1, 64),
            cls(8, 1, 64),
            cls(4, 2, 128),
            cls(1, 4, 128),
        ]
        fitting = [
            t
            for t in choices
            if t.block_m < 2 * problem.filters and t.block_m * 4 >= min(problem.filters, 32)
        ]
        # the largest blocks that still give every multiprocessor one come first
        fitting.sort(key=lambda t: t._blocks(problem) < device.facts["multiprocessors"])
        yield from fitting[:4]

    def decline(self, signature: OpSignature, device: Any) -> str | None:
        """Decline what is no convolution of one floating-point type."""
        problem = conv_problem(signature)
        return problem if isinstance(problem, str) else None

    def prepare(self, signature: OpSignature, device: Any) -> Launch:
        """Compile the kernel for this shape."""
        problem = conv_problem(signature)
        assert isinstance(problem, ConvProblem), problem
        if problem.is_empty:
            return nothing
        macros: dict[str, int | str] = {
            "BLOCK_M": f"{self.block_m}u",
            "THREAD_N": f"{self.thread_n}u",
            "THREADS": f"{self.threads}u",
            "CHUNK": f"{self._chunk(problem)}u",
        }
        kernel = device.compile(conv_source("conv_direct", problem, macros, "conv_direct.cu"))
        return conv_launch(kernel, self._blocks(problem), self.threads, problem)

    def _blocks(self, problem: ConvProblem) -> int:
        return problem.tiles(self.block_m, self.threads * self.thread_n)

    def _chunk(self, problem: ConvProblem) -> int:
        """Return the steps of k whose weights lie in shared memory: whole windows where they fit."""
        size = 8 if problem.dtype == "float64" else 4
        most = min(WEIGHT_BYTES // (self.block_m * size), problem.depth)
        taps = problem.window.taps
        return most // taps * taps if most >= taps else most


def conv_launch(kernel: Any, grid: int, threads: int, problem: ConvProblem) -> Launch:
    """Return the launch of a kernel that takes x, the filters, the bias (or null) and the result."""

    def run(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any) -> None:
        x, w, bias, read = operands(problem, inputs)
        kernel.launch(stream, grid, threads, x, w, bias, outputs[0], *read)

    return run


TACTICS: list[type[Tactic]] = [ConvDirect]
