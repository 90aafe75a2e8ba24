"""Matrix products on tensor cores by mma.sync: float16 and bfloat16 exactly, float32 through tf32."""

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

INSTRUCTIONS = {
    "float16": "m16n8k16.row.col.f32.f16.f16.f32",
    "bfloat16": "m16n8k16.row.col.f32.bf16.bf16.f32",
    "float32": "m16n8k8.row.col.f32.tf32.tf32.f32",
}
"""The shape and types of one mma.sync for each element type."""


@dataclass(frozen=True)
class GemmMma(Tactic):
    """Tiles that come by cp.async in several stages; sums in float32."""

    op: ClassVar[tuple[str, ...]] = GEMM_OPS
    target: ClassVar[str] = "cuda"

    block_m: int = 128
    """Rows of a block's tile."""
    block_n: int = 128
    """Columns of a block's tile."""
    block_k: int = 32
    """Steps of k in one stage."""
    warps_m: int = 2
    """Warps that share the rows of a tile."""
    warps_n: int = 2
    """Warps that share the columns of a tile."""
    stages: int = 4
    """Tiles in shared memory."""

    @classmethod
    def candidates(cls, signature: OpSignature, device: Any) -> Iterable[Self]:
        """Yield large tiles for large products and small ones that fill the GPU for small products."""
        problem = gemm_problem(signature)
        if isinstance(problem, str):
            yield cls()
            return
        k = 16 if problem.dtype == "float32" else 32
        tiles = [
            cls(128, 256, k, 2, 4, 3),
            cls(256, 128, k, 4, 2, 3),
            cls(128, 128, k, 2, 2, 4),
            cls(128, 128, k, 4, 2, 3),
            cls(128, 64, k, 2, 2, 4),
            cls(64, 128, 2 * k, 2, 2, 3),
            cls(64, 64, 2 * k, 2, 2, 4),
            cls(32, 64, 2 * k, 2, 2, 4),
            cls(16, 64, 4 * k, 1, 4, 4),
        ]
        useful = [
            t for t in tiles if t.block_m < 2 * max(problem.m, 16) and t.block_n < 2 * max(problem.n, 64)
        ]
        if problem.dtype != "float32" and (problem.row_a | problem.row_b) % 2:
            # rows of odd length come through registers, which large tiles have no room for
            useful = [t for t in useful if t.block_m * t.block_n <= 128 * 128]
        # the largest tiles that still give every multiprocessor one come first
        blocks = device.facts["multiprocessors"]
        useful.sort(key=lambda t: problem.tiles(t.block_m, t.block_n) < blocks)
        yield from (t for t in useful if t._shared_bytes(problem) <= device.facts["shared_bytes_per_block"])

    def decline(self, signature: OpSignature, device: Any) -> str | None:
        """Decline old GPUs, element types without tensor cores, and tiles that don't fit."""
        problem = gemm_problem(signature)
        if isinstance(problem, str):
            return problem
        if problem.dtype not in INSTRUCTIONS:
            return f"mma.sync multiplies no {problem.dtype} here"
        if device.facts["sm"] < 80:
            return f"needs compute capability 8.0; the GPU has {device.facts['compute_capability']}"
        needed, given = self._shared_bytes(problem), device.facts["shared_bytes_per_block"]
        if needed > given:
            return f"stages take {needed} bytes of shared memory; a block has {given}"
        return None

    def numerics(self, signature: OpSignature) -> frozenset[str]:
        """Return that float32 operands are rounded to tf32."""
        tensor = signature.input(0)
        return frozenset({"tf32"} if tensor is not None and tensor.dtype == "float32" else ())

    def prepare(self, signature: OpSignature, device: Any) -> Launch:
        """Compile the kernel for this shape."""
        problem = gemm_problem(signature)
        assert isinstance(problem, GemmProblem), problem
        if problem.is_empty:
            return nothing
        grid, threads = problem.tiles(self.block_m, self.block_n), 32 * self.warps_m * self.warps_n
        return gemm_launch(
            device.compile(self._source(problem)).launch, grid, threads, self._shared_bytes(problem)
        )

    def _shared_bytes(self, problem: GemmProblem) -> int:
        size = numpy_dtype(problem.dtype).itemsize

        def tile(rows: int, k_contiguous: bool) -> int:
            return rows * (self.block_k + 16 // size) if k_contiguous else self.block_k * (rows + 8)

        return (
            self.stages
            * size
            * (tile(self.block_m, not problem.trans_a) + tile(self.block_n, problem.trans_b))
        )

    def _source(self, problem: GemmProblem) -> KernelSource:
        widest = 16 // numpy_dtype(problem.dtype).itemsize
        tile: dict[str, int | str] = {
            "BLOCK_M": self.block_m,
            "BLOCK_N": self.block_n,
            "BLOCK_K": self.block_k,
            "WARPS_M": self.warps_m,
            "WARPS_N": self.warps_n,
            "STAGES": self.stages,
            "VECTOR_A": power_of_two_below(problem.row_a, widest),
            "VECTOR_B": power_of_two_below(problem.row_b, widest),
            "VECTOR_D": power_of_two_below(problem.n, 2),
            "MMA": f'"{INSTRUCTIONS[problem.dtype]}"',
        }
        macros = problem.macros() | tile | ({"TF32": 1} if problem.dtype == "float32" else {})
        return specialise("gemm_mma", "gemm_mma.cu", {"T": FLOATS[problem.dtype]}, macros)


TACTICS: list[type[Tactic]] = [GemmMma]
