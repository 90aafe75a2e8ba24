"""Matrix products on Hopper's tensor cores: wgmma on tiles that the tensor memory accelerator brings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from tactician.builtin_kernels.cuda.compiler import KernelSource, read_source
from tactician.builtin_kernels.cuda.epilogue import epilogue_form
from tactician.builtin_kernels.cuda.gemm_problem import (
    FLOATS,
    GEMM_OPS,
    GemmProblem,
    fused_gemm_problem,
    nothing,
)
from tactician.builtin_kernels.cuda.indexing import ceil_div
from tactician.builtin_kernels.cuda.kernel_text import specialise
from tactician.builtin_kernels.cuda.tensor_map import ALIGNMENT, mapper
from tactician.builtin_kernels.cuda.wgmma import KINDS, multiply_text
from tactician.builtin_kernels.cuda.wgmma_tile import LINE_ELEMENTS, ProductShape, WgmmaTile, most_promising
from tactician.signature import OpSignature
from tactician.tactics.fused_form import FusedForm
from tactician.tactics.tactic import Launch, Tactic


@dataclass(frozen=True)
class GemmWgmma(WgmmaTile, Tactic):
    """Tiles of rows and columns, each a ring of stages between a producer and consumers; sums in float32."""

    op: ClassVar[tuple[str, ...]] = GEMM_OPS
    target: ClassVar[str] = "cuda"
    fused_forms: ClassVar[tuple[FusedForm, ...]] = (epilogue_form(*GEMM_OPS),)

    @classmethod
    def candidates(cls, signature: OpSignature, device: Any) -> Iterable[Self]:
        """Yield what a model of waves and steps takes to be fastest, best first."""
        problem, found = fused_gemm_problem(signature), list(cls.search_space(signature, device))
        if isinstance(problem, GemmProblem) and len(found) > 1:
            found = most_promising(found, product_shape(problem), int(device.facts["multiprocessors"]))
        yield from found

    @classmethod
    def search_space(cls, signature: OpSignature, device: Any) -> Iterable[Self]:
        """Yield all tiles that fit the shape, with as many stages as shared memory holds."""
        problem = fused_gemm_problem(signature)
        if isinstance(problem, str) or problem.is_empty or problem.k == 0:
            yield cls()
            return
        tiles = cls.tiles_for(product_shape(problem), int(device.facts["multiprocessors"]))
        yield from [t for t in tiles if t.decline(signature, device) is None] or [cls()]

    def decline(self, signature: OpSignature, device: Any) -> str | None:
        """Decline other GPUs than Hopper, types without this instruction, and rows that TMA can't address."""
        problem = fused_gemm_problem(signature)
        if isinstance(problem, str):
            return problem
        if problem.dtype not in KINDS:
            return f"wgmma multiplies no {problem.dtype} here"
        if device.facts["arch"] != "sm_90a":
            return f"is for compute capability 9.0; the GPU has {device.facts['compute_capability']}"
        if problem.k == 0:
            return "there is nothing to add up"
        for name, length in {"a": problem.row_a, "b": problem.row_b, "d": problem.n}.items():
            if length * 2 % ALIGNMENT:
                return f"rows of {name} are of {length} elements, not of whole {ALIGNMENT} bytes"
        return self.decline_fields(product_shape(problem), int(device.facts["shared_bytes_per_block"]))

    def prepare(self, signature: OpSignature, device: Any) -> Launch:
        """Compile the kernel for this shape; maps of the tensors are made when addresses are first seen."""
        problem = fused_gemm_problem(signature)
        assert isinstance(problem, GemmProblem), problem
        if problem.is_empty:
            return nothing
        kernel, shape = device.compile(self.source(problem)), product_shape(problem)
        grid = self.grid(shape, int(device.facts["multiprocessors"]))
        threads, shared = self.threads(), self.shared_bytes(shape.vectors)
        map_a, map_b, map_d = self._mappers(problem)
        assert problem.call is not None
        at_a, at_b, at_bias = problem.call.places(3)
        reads = problem.call.reads

        def run(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any) -> None:
            bias = None if at_bias < 0 else inputs[at_bias]
            maps = map_a(inputs[at_a]), map_b(inputs[at_b]), map_d(outputs[0])
            read = [inputs[i] for i in reads]
            kernel.launch(stream, grid, threads, *maps, bias, outputs[0], *read, shared_bytes=shared)

        return run

    def source(self, problem: GemmProblem) -> KernelSource:
        """Return the kernel for ``problem``."""
        macros = problem.macros() | self.macros()
        macros |= {"SEGMENTS": "1u", "SEGMENT": "K", "BATCH": f"{problem.batch}u"}
        macros |= {"BIAS_ROW": int(problem.bias == "row")}
        types, headers = {"T": FLOATS[problem.dtype]}, ("hopper.cuh", *problem.epilogue.headers)
        head = specialise("gemm_wgmma", "tile_order.cuh", types, macros, *headers)
        multiply = multiply_text(self.block_n, problem.dtype, problem.trans_a, not problem.trans_b)
        body = read_source("wgmma_tiles.cuh", "gemm_wgmma.cu")
        return KernelSource("\n".join([head.text, multiply, problem.epilogue.text(), body]), "gemm_wgmma")

    def _mappers(self, problem: GemmProblem) -> tuple[Any, Any, Any]:
        line = LINE_ELEMENTS
        batch_a, batch_b = (problem.batch if s else 1 for s in (problem.stride_a, problem.stride_b))
        rows_a, rows_b = (
            problem.k if problem.trans_a else problem.m,
            problem.n if problem.trans_b else problem.k,
        )
        box_a = _box_rows(not problem.trans_a, self.block_m, self.cluster_n)
        box_b = _box_rows(problem.trans_b, self.block_n, self.cluster_m)
        return (
            mapper((batch_a, rows_a, problem.row_a), (1, box_a, line)),
            mapper((batch_b, rows_b, problem.row_b), (1, box_b, line)),
            mapper((problem.batch, problem.m, problem.n), (1, line, line)),
        )


def product_shape(problem: GemmProblem) -> ProductShape:
    """Return what a product comes to in tiles."""
    boxes, used = ceil_div(problem.k, LINE_ELEMENTS), min(problem.k, LINE_ELEMENTS)
    vectors = max(1, (problem.bias == "row") + problem.epilogue.vectors)
    return ProductShape(problem.m, problem.n, boxes, used, problem.batch, vectors)


def _box_rows(k_major: bool, extent: int, slices: int) -> int:
    """Return the rows of the box that one of ``slices`` blocks loads of a tile of ``extent`` rows or columns."""
    if k_major:
        return extent // slices
    return LINE_ELEMENTS if extent // LINE_ELEMENTS % slices == 0 else LINE_ELEMENTS // slices


TACTICS: list[type[Tactic]] = [GemmWgmma]
