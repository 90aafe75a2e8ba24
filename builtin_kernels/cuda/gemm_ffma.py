"""Matrix products by fused multiply-adds: exact float32 and float64, any shape, any transposition."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from tactician.builtin_kernels.cuda.compiler import KernelSource
from tactician.builtin_kernels.cuda.gemm_problem import (
    FLOATS,
    GEMM_OPS,
    GemmProblem,
    gemm_launch,
    gemm_problem,
    nothing,
)
from tactician.builtin_kernels.cuda.indexing import power_of_two_below
from tactician.builtin_kernels.cuda.kernel_text import specialise
from tactician.signature import OpSignature, numpy_dtype
from tactician.tactics.tactic import Launch, Tactic

LARGE_TILES = (
    (128, 128, 8, 8, 16, 2),
    (128, 128, 8, 16, 8, 2),
    (128, 256, 8, 8, 16, 1),
    (256, 128, 8, 16, 8, 1),
    (128, 128, 16, 8, 8, 1),
)
"""Tiles of 128 rows and more. Sums of 8 x 16 need fewer words of shared memory for each product."""
MOST_SUMS = 128
"""Registers of a thread that may hold sums."""
LANES_M, LANES_N = 4, 8
"""Threads of a warp, along rows and columns."""
STATIC_SHARED_BYTES = 48 * 1024
"""Shared memory, in bytes, that a kernel may declare on every GPU."""


@dataclass(frozen=True)
class GemmFfma(Tactic):
    """Tiles in shared memory, sums in registers; half-precision operands are summed up in float32."""

    op: ClassVar[tuple[str, ...]] = GEMM_OPS
    target: ClassVar[str] = "cuda"

    block_m: int = 64
    """Rows of a block's tile."""
    block_n: int = 64
    """Columns of a block's tile."""
    block_k: int = 16
    """Steps of k that lie in shared memory."""
    thread_m: int = 4
    """Rows of a thread's results."""
    thread_n: int = 4
    """Columns of a thread's results."""
    blocks: int = 1
    """Blocks that a multiprocessor has registers for, at least."""

    @classmethod
    def candidates(cls, signature: OpSignature, device: Any) -> Iterable[Self]:
        """Yield large tiles for large products and small ones that fill the GPU for small products."""
        problem = gemm_problem(signature)
        tiles = [
            *(cls(*tile) for tile in LARGE_TILES),
            cls(64, 64, 16, 4, 4),
            cls(32, 32, 32, 2, 2),
            cls(16, 64, 32, 1, 4),
        ]
        if isinstance(problem, str):
            yield cls()
            return
        if problem.m <= 16:
            tiles = tiles[::-1]
        for tactic in tiles:
            too_large = tactic.block_m >= 128 and min(problem.m, problem.n) <= 32
            if tactic.decline(signature, device) is None and not too_large:
                yield tactic

    def decline(self, signature: OpSignature, device: Any) -> str | None:
        """Decline what is no matrix product of one floating-point type, and tiles that don't fit."""
        problem = gemm_problem(signature)
        if isinstance(problem, str):
            return problem
        if self._shared_bytes(problem) > STATIC_SHARED_BYTES:
            return f"tiles take {self._shared_bytes(problem)} bytes of shared memory, more than 48 KiB"
        words = self.thread_m * self.thread_n * (2 if problem.dtype == "float64" else 1)
        if words > MOST_SUMS:
            return f"sums of {words} registers don't fit into the registers of a thread"
        rows, columns = self.block_m // self.thread_m, self.block_n // self.thread_n
        if rows % LANES_M or columns % LANES_N:
            return f"{rows} x {columns} threads are no whole warps of {LANES_M} x {LANES_N}"
        return None

    def prepare(self, signature: OpSignature, device: Any) -> Launch:
        """Compile the kernel for this shape."""
        problem = gemm_problem(signature)
        assert isinstance(problem, GemmProblem), problem
        if problem.is_empty:
            return nothing
        launch = device.compile(self._source(problem)).launch
        return gemm_launch(launch, problem.tiles(self.block_m, self.block_n), self._threads)

    @property
    def _threads(self) -> int:
        return self.block_m // self.thread_m * (self.block_n // self.thread_n)

    def _shared_bytes(self, problem: GemmProblem) -> int:
        size = 8 if problem.dtype == "float64" else 4
        padding = 2 * 16 // size
        return 2 * self.block_k * (self.block_m + self.block_n + padding) * size

    def _source(self, problem: GemmProblem) -> KernelSource:
        double = problem.dtype == "float64"
        widest, group = 16 // numpy_dtype(problem.dtype).itemsize, 2 if double else 4
        group_m, group_n = min(group, self.thread_m), min(group, self.thread_n)

        def vector(block: int, row: int) -> int:
            each = max(1, block * self.block_k // self._threads)
            return power_of_two_below(row, min(widest, each))

        tile: dict[str, int | str] = {
            "BLOCK_M": self.block_m,
            "BLOCK_N": self.block_n,
            "BLOCK_K": self.block_k,
            "THREAD_M": self.thread_m,
            "THREAD_N": self.thread_n,
            "BLOCKS": self.blocks,
            "GROUP_M": group_m,
            "GROUP_N": group_n,
            "VECTOR_A": vector(self.block_m, problem.row_a),
            "VECTOR_B": vector(self.block_n, problem.row_b),
            "VECTOR_D": power_of_two_below(problem.n, group_n),
        }
        types = {"T": FLOATS[problem.dtype], "A": "double" if double else "float"}
        macros = problem.macros() | tile | ({"DOUBLE": 1} if double else {})
        return specialise("gemm_ffma", "gemm_ffma.cu", types, macros)


TACTICS: list[type[Tactic]] = [GemmFfma]
