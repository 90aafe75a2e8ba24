"""Convolutions as matrix products on tensor cores by mma.sync: float16 and bfloat16 exactly, float32 through tf32."""

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
    packer,
    part_bytes,
    splits,
)
from tactician.builtin_kernels.cuda.epilogue import epilogue_form
from tactician.builtin_kernels.cuda.indexing import MAX_INDEX_32, ceil_div, power_of_two_below
from tactician.signature import OpSignature, numpy_dtype
from tactician.tactics.fused_form import FusedForm
from tactician.tactics.tactic import Launch, Tactic

INSTRUCTIONS = {
    "float16": "m16n8k16.row.col.f32.f16.f16.f32",
    "bfloat16": "m16n8k16.row.col.f32.bf16.bf16.f32",
    "float32": "m16n8k8.row.col.f32.tf32.tf32.f32",
}
"""The shape and types of one mma.sync for each element type."""

MAX_CANDIDATES = 10
MAX_GATHERED = 16
"""Halves that a thread holds on their way to shared memory, if each of them is looked up by itself."""

WORKSPACE_ALIGNMENT = 256


@dataclass(frozen=True)
class ConvImplicitGemm(Tactic):
    """Tiles of filters by pixels in several stages; sums in float32."""

    op: ClassVar[str] = "ai.onnx::Conv"
    target: ClassVar[str] = "cuda"
    fused_forms: ClassVar[tuple[FusedForm, ...]] = (epilogue_form("ai.onnx::Conv"),)

    block_m: int = 64
    """Filters of a block's tile."""
    block_n: int = 64
    """Pixels of a block's tile."""
    block_k: int = 32
    """Steps of k in one stage."""
    warps_m: int = 2
    """Warps that share the filters of a tile."""
    warps_n: int = 2
    """Warps that share the pixels of a tile."""
    stages: int = 3
    """Tiles in shared memory."""
    tap_major: bool = True
    """Whether k runs over all channels of one tap of the window before the next one; filters are reordered for it."""
    split_k: int = 1
    """Blocks that share a tile, each with a part of k; more than one needs a second stage."""

    @classmethod
    def candidates(cls, signature: OpSignature, device: Any) -> Iterable[Self]:
        """Yield the tiles that a simple cost model likes best, in the better order of k, split where tiles are few."""
        problem = fused_conv_problem(signature)
        if isinstance(problem, str) or problem.dtype not in INSTRUCTIONS:
            yield cls()
            return
        k, processors = (16 if problem.dtype == "float32" else 32), int(device.facts["multiprocessors"])
        shapes = [
            (128, 128, k, 2, 4, 3),
            (128, 64, k, 4, 2, 3),
            (64, 128, k, 2, 4, 3),
            (64, 64, k, 2, 2, 4),
            (64, 64, 2 * k, 2, 2, 3),
            (32, 128, k, 1, 4, 4),
            (32, 64, 2 * k, 2, 2, 3),
            (32, 64, k, 2, 2, 4),
            (16, 128, k, 1, 4, 4),
            (16, 64, k, 1, 4, 4),
        ]
        tiles = []
        for shape in shapes:
            padded = ceil_div(problem.channels, shape[2]) * shape[2]
            # channels that fill up a step are multiplied in vain; a quarter of that is still better than gathering
            tap_major = problem.window.taps == 1 or 4 * padded <= 5 * problem.channels
            orders = {tap_major, True} if problem.channels * 2 > padded else {tap_major}
            tiles += [
                cls(*shape, order, split)
                for order in orders
                for split in splits(problem, *shape[:3], processors)
            ]
        useful = [t for t in tiles if t.block_m < 2 * max(problem.filters, 16) and not t._crowded(problem)]
        yield from best(problem, useful, processors, MAX_CANDIDATES)

    def decline(self, signature: OpSignature, device: Any) -> str | None:
        """Decline old GPUs, element types without tensor cores, and tiles that don't fit."""
        problem = fused_conv_problem(signature)
        if isinstance(problem, str):
            return problem
        if problem.dtype not in INSTRUCTIONS:
            return f"mma.sync multiplies no {problem.dtype} here"
        if device.facts["sm"] < 80:
            return f"needs compute capability 8.0; the GPU has {device.facts['compute_capability']}"
        needed, given = self._shared_bytes(problem), device.facts["shared_bytes_per_block"]
        if needed > given:
            return f"stages take {needed} bytes of shared memory; a block has {given}"
        if self._blocks(problem) > MAX_INDEX_32 or self._packed_elements(problem) > MAX_INDEX_32:
            return "needs more blocks than a grid has"
        return decline_split(problem, self)

    def numerics(self, signature: OpSignature) -> frozenset[str]:
        """Return that float32 operands are rounded to tf32."""
        tensor = signature.anchor.input(0)
        return frozenset({"tf32"} if tensor is not None and tensor.dtype == "float32" else ())

    def workspace(self, signature: OpSignature, device: Any) -> int:
        """Return the bytes of the reordered filters and of the partial sums."""
        problem = fused_conv_problem(signature)
        assert isinstance(problem, ConvProblem), problem
        return 0 if problem.is_empty else self._packed_bytes(problem) + part_bytes(problem, self.split_k)

    def prepare(self, signature: OpSignature, device: Any) -> Launch:
        """Compile the kernels for this shape: reordering of the filters, product, and sum of the parts, as needed."""
        problem = fused_conv_problem(signature)
        assert isinstance(problem, ConvProblem), problem
        if problem.is_empty:
            return nothing
        packed_bytes = self._packed_bytes(problem)
        pack = packer(problem, *self._pitches(problem), device) if packed_bytes else None
        kernel = device.compile(self._source(problem))
        add = adder(problem, self.split_k, device)
        grid, threads, shared_bytes = (
            self._blocks(problem),
            32 * self.warps_m * self.warps_n,
            self._shared_bytes(problem),
        )

        def run(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any) -> None:
            (x, filters, bias, read), y = operands(problem, inputs), outputs[0]
            scratch = 0 if workspace is None else workspace.pointer
            parts = scratch + packed_bytes
            if pack is not None:
                pack(stream, filters, scratch)
                filters = scratch
            kernel.launch(stream, grid, threads, x, filters, bias, y, parts, *read, shared_bytes=shared_bytes)
            add(stream, parts, bias, y, *read)

        return run

    def _crowded(self, problem: ConvProblem) -> bool:
        """Return whether a thread would hold so many single halves, each with its own address, that registers run out."""
        held = self.block_n * self.block_k // (32 * self.warps_m * self.warps_n)
        return problem.dtype != "float32" and not self.tap_major and held > MAX_GATHERED

    def _blocks(self, problem: ConvProblem) -> int:
        return problem.tiles(self.block_m, self.block_n) * self.split_k

    def _shared_bytes(self, problem: ConvProblem) -> int:
        size = numpy_dtype(problem.dtype).itemsize
        rows = self.block_m * (self.block_k + 16 // size) + self.block_k * (self.block_n + 8)
        return self.stages * rows * size

    def _pitches(self, problem: ConvProblem) -> tuple[int, int]:
        """Return the elements of a row of filters as the kernel reads it, and of one of its taps (0: not by taps)."""
        whole = 16 // numpy_dtype(problem.dtype).itemsize
        if not self.tap_major:
            return ceil_div(problem.depth, whole) * whole, 0
        if problem.window.taps == 1:
            channels = ceil_div(problem.channels, whole) * whole
            return channels, channels
        channels = ceil_div(problem.channels, self.block_k) * self.block_k
        return channels * problem.window.taps, channels

    def _packed_elements(self, problem: ConvProblem) -> int:
        """Return the elements of the reordered filters; 0 where they are read as they are."""
        pitch, _ = self._pitches(problem)
        as_they_are = pitch == problem.depth and not (self.tap_major and problem.window.taps > 1)
        return 0 if as_they_are else problem.groups * problem.filters * pitch

    def _packed_bytes(self, problem: ConvProblem) -> int:
        nbytes = self._packed_elements(problem) * numpy_dtype(problem.dtype).itemsize
        return ceil_div(nbytes, WORKSPACE_ALIGNMENT) * WORKSPACE_ALIGNMENT

    def _source(self, problem: ConvProblem) -> KernelSource:
        size = numpy_dtype(problem.dtype).itemsize
        per_row = self.block_n * self.block_k // (32 * self.warps_m * self.warps_n)
        vector = (
            power_of_two_below(problem.window.out_size, min(16 // size, per_row))
            if problem.is_pointwise
            else 1
        )
        contiguous = vector * size >= 4
        macros: dict[str, int | str] = {
            "BLOCK_M": f"{self.block_m}u",
            "BLOCK_N": f"{self.block_n}u",
            "BLOCK_K": f"{self.block_k}u",
            "WARPS_M": f"{self.warps_m}u",
            "WARPS_N": f"{self.warps_n}u",
            "STAGES": f"{self.stages}u",
            "SPLITS": f"{self.split_k}u",
            "TAP_MAJOR": int(self.tap_major),
            "PITCH": f"{self._pitches(problem)[0]}u",
            "CHANNEL_PITCH": f"{ceil_div(problem.channels, self.block_k) * self.block_k}u",
            "CONTIGUOUS": int(contiguous),
            # single halves are paired, so that shared memory is written in words
            "VECTOR": f"{vector if contiguous else 4 // size}u",
            "VECTOR_D": f"{power_of_two_below(problem.window.out_size, 2)}u",
            "MMA": f'"{INSTRUCTIONS[problem.dtype]}"',
        }
        if problem.dtype == "float32":
            macros["TF32"] = 1
        return conv_source("conv_implicit_gemm", problem, macros, "conv_mma.cuh", "conv_implicit_gemm.cu")


TACTICS: list[type[Tactic]] = [ConvImplicitGemm]
