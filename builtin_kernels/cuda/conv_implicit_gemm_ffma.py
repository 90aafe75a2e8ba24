"""Convolutions as matrix products by fused multiply-adds: strict float32 and float64, on any GPU."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from tactician.builtin_kernels.cuda.compiler import KernelSource
from tactician.builtin_kernels.cuda.conv_problem import ConvProblem, fused_conv_problem
from tactician.builtin_kernels.cuda.conv_stages import (
    adder,
    best,
    conv_source,
    decline_split,
    nothing,
    operands,
    part_bytes,
    splits,
)
from tactician.builtin_kernels.cuda.epilogue import epilogue_form
from tactician.builtin_kernels.cuda.indexing import MAX_INDEX_32, power_of_two_below
from tactician.signature import OpSignature, numpy_dtype
from tactician.tactics.fused_form import FusedForm
from tactician.tactics.tactic import Launch, Tactic

STATIC_SHARED_BYTES = 48 * 1024
"""Shared memory, in bytes, that a kernel may declare on every GPU."""

MAX_CANDIDATES = 6


@dataclass(frozen=True)
class ConvImplicitGemmFfma(Tactic):
    """Tiles of filters by pixels in shared memory, sums in registers; halves are summed up in float32."""

    op: ClassVar[str] = "ai.onnx::Conv"
    target: ClassVar[str] = "cuda"
    fused_forms: ClassVar[tuple[FusedForm, ...]] = (epilogue_form("ai.onnx::Conv"),)

    block_m: int = 64
    """Filters of a block's tile."""
    block_n: int = 64
    """Pixels of a block's tile."""
    block_k: int = 16
    """Steps of k in shared memory."""
    thread_m: int = 4
    """Filters of a thread."""
    thread_n: int = 4
    """Pixels of a thread."""
    split_k: int = 1
    """Blocks that share a tile, each with a part of k; more than one needs a second stage."""

    @classmethod
    def candidates(cls, signature: OpSignature, device: Any) -> Iterable[Self]:
        """Yield the tiles that a simple cost model likes best, split where tiles are few."""
        problem = fused_conv_problem(signature)
        if isinstance(problem, str):
            yield cls()
            return
        processors = int(device.facts["multiprocessors"])
        shapes = [
            (128, 128, 8, 8, 8),
            (128, 64, 16, 8, 4),
            (64, 128, 16, 4, 8),
            (64, 64, 16, 4, 4),
            (32, 64, 16, 4, 4),
            (32, 32, 32, 2, 4),
            (16, 128, 16, 2, 8),
        ]
        if problem.dtype == "float64":
            shapes = shapes[3:]
        tiles = [
            cls(*shape, split)
            for shape in shapes
            if shape[0] < 2 * max(problem.filters, 16)
            for split in splits(problem, *shape[:3], processors)
        ]
        yield from best(problem, tiles, processors, MAX_CANDIDATES)

    def decline(self, signature: OpSignature, device: Any) -> str | None:
        """Decline what is no convolution of one floating-point type, and tiles that don't fit."""
        problem = fused_conv_problem(signature)
        if isinstance(problem, str):
            return problem
        if self._shared_bytes(problem) > STATIC_SHARED_BYTES:
            return f"tiles take {self._shared_bytes(problem)} bytes of shared memory, more than 48 KiB"
        if self._blocks(problem) > MAX_INDEX_32:
            return "needs more blocks than a grid has"
        return decline_split(problem, self)

    def workspace(self, signature: OpSignature, device: Any) -> int:
        """Return the bytes of the partial sums."""
        problem = fused_conv_problem(signature)
        assert isinstance(problem, ConvProblem), problem
        return part_bytes(problem, self.split_k)

    def prepare(self, signature: OpSignature, device: Any) -> Launch:
        """Compile the kernels for this shape."""
        problem = fused_conv_problem(signature)
        assert isinstance(problem, ConvProblem), problem
        if problem.is_empty:
            return nothing
        kernel = device.compile(self._source(problem))
        add = adder(problem, self.split_k, device)
        grid, threads = self._blocks(problem), self._threads

        def run(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any) -> None:
            x, filters, bias, read = operands(problem, inputs)
            kernel.launch(stream, grid, threads, x, filters, bias, outputs[0], workspace, *read)
            add(stream, workspace, bias, outputs[0], *read)

        return run

    @property
    def _threads(self) -> int:
        return self.block_m // self.thread_m * (self.block_n // self.thread_n)

    def _blocks(self, problem: ConvProblem) -> int:
        return problem.tiles(self.block_m, self.block_n) * self.split_k

    def _shared_bytes(self, problem: ConvProblem) -> int:
        size = 8 if problem.dtype == "float64" else 4
        return 2 * self.block_k * (self.block_m + 16 // size + self.block_n) * size

    def _source(self, problem: ConvProblem) -> KernelSource:
        widest, group = 16 // numpy_dtype(problem.dtype).itemsize, 2 if problem.dtype == "float64" else 4
        group_m, group_n = min(group, self.thread_m), min(group, self.thread_n)
        each_a, each_b = (
            max(1, block * self.block_k // self._threads) for block in (self.block_m, self.block_n)
        )
        vector_b = (
            power_of_two_below(problem.window.out_size, min(widest, each_b)) if problem.is_pointwise else 1
        )
        macros: dict[str, int | str] = {
            "BLOCK_M": f"{self.block_m}u",
            "BLOCK_N": f"{self.block_n}u",
            "BLOCK_K": f"{self.block_k}u",
            "THREAD_M": f"{self.thread_m}u",
            "THREAD_N": f"{self.thread_n}u",
            "GROUP_M": f"{group_m}u",
            "GROUP_N": f"{group_n}u",
            "SPLITS": f"{self.split_k}u",
            "VECTOR_A": f"{power_of_two_below(problem.depth, min(widest, each_a))}u",
            "VECTOR_B": f"{vector_b}u",
            "VECTOR_D": f"{power_of_two_below(problem.window.out_size, group_n)}u",
        }
        return conv_source("conv_implicit_gemm_ffma", problem, macros, "conv_implicit_gemm_ffma.cu")


TACTICS: list[type[Tactic]] = [ConvImplicitGemmFfma]
