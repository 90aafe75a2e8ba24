"""Convolutions of channels-last tensors on Hopper's tensor cores: pixels come by TMA's im2col, the rest is a product."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from tactician.builtin_kernels.cuda.compiler import KernelSource, read_source
from tactician.builtin_kernels.cuda.conv_problem import FLOATS, ConvProblem, conv_problem, fused_conv_problem
from tactician.builtin_kernels.cuda.epilogue import epilogue_form
from tactician.builtin_kernels.cuda.gemm_problem import nothing
from tactician.builtin_kernels.cuda.im2col import Im2col
from tactician.builtin_kernels.cuda.indexing import ceil_div
from tactician.builtin_kernels.cuda.kernel_text import specialise
from tactician.builtin_kernels.cuda.tensor_map import ALIGNMENT, mapper
from tactician.builtin_kernels.cuda.wgmma import KINDS, multiply_text
from tactician.builtin_kernels.cuda.wgmma_tile import (
    LINE_ELEMENTS,
    ProductShape,
    WgmmaTile,
    most_promising,
)
from tactician.builtin_kernels.nhwc import CONV, standard_conv
from tactician.signature import OpSignature
from tactician.tactics.fused_form import FusedForm
from tactician.tactics.tactic import Launch, Tactic


@dataclass(frozen=True)
class ConvWgmma(WgmmaTile, Tactic):
    """A product of pixels and filters: rows are pixels of the output, columns filters, k taps and channels."""

    op: ClassVar[str] = CONV
    target: ClassVar[str] = "cuda"
    fused_forms: ClassVar[tuple[FusedForm, ...]] = (epilogue_form(CONV),)

    @classmethod
    def candidates(cls, signature: OpSignature, device: Any) -> Iterable[Self]:
        """Yield what a model of waves and steps takes to be fastest, best first."""
        problem, found = fused_nhwc_problem(signature), list(cls.search_space(signature, device))
        if isinstance(problem, ConvProblem) and len(found) > 1:
            found = most_promising(found, product_shape(problem), int(device.facts["multiprocessors"]))
        yield from found

    @classmethod
    def search_space(cls, signature: OpSignature, device: Any) -> Iterable[Self]:
        """Yield all tiles that fit the shape, with as many stages as shared memory holds."""
        problem = fused_nhwc_problem(signature)
        if isinstance(problem, str) or problem.is_empty or problem.depth == 0:
            yield cls()
            return
        tiles = cls.tiles_for(product_shape(problem), int(device.facts["multiprocessors"]))
        yield from [t for t in tiles if t.decline(signature, device) is None] or [cls()]

    def decline(self, signature: OpSignature, device: Any) -> str | None:
        """Decline other GPUs than Hopper, groups, types without this instruction, and what TMA can't walk over."""
        problem = fused_nhwc_problem(signature)
        if isinstance(problem, str):
            return problem
        if signature.outputs[0] is None or signature.outputs[0].rank != 4:
            return "convolves in two dimensions only"
        if problem.dtype not in KINDS:
            return f"wgmma multiplies no {problem.dtype} here"
        if device.facts["arch"] != "sm_90a":
            return f"is for compute capability 9.0; the GPU has {device.facts['compute_capability']}"
        if problem.groups != 1:
            return f"convolves one group of channels, not {problem.groups}"
        if problem.depth == 0:
            return "there is nothing to add up"
        for what, count in (("channels", problem.channels), ("filters", problem.filters)):
            if count * 2 % ALIGNMENT:
                return f"{count} {what} don't fill whole {ALIGNMENT} bytes"
        reason = None if problem.is_pointwise else Im2col.of(problem).decline()
        return reason or self.decline_fields(
            product_shape(problem), int(device.facts["shared_bytes_per_block"])
        )

    def prepare(self, signature: OpSignature, device: Any) -> Launch:
        """Compile the kernel for this shape; maps of the tensors are made when addresses are first seen."""
        problem = fused_nhwc_problem(signature)
        assert isinstance(problem, ConvProblem), problem
        if problem.is_empty:
            return nothing
        kernel, shape = device.compile(self.source(problem)), product_shape(problem)
        grid = self.grid(shape, int(device.facts["multiprocessors"]))
        threads, shared = self.threads(), self.shared_bytes(shape.vectors)
        map_a, map_b, map_d = self._mappers(problem)
        assert problem.call is not None
        at_x, at_w, at_bias = problem.call.places(3)
        reads = problem.call.reads

        def run(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any) -> None:
            bias = None if at_bias < 0 else inputs[at_bias]
            maps = map_a(inputs[at_x]), map_b(inputs[at_w]), map_d(outputs[0])
            read = [inputs[i] for i in reads]
            kernel.launch(stream, grid, threads, *maps, bias, outputs[0], *read, shared_bytes=shared)

        return run

    def source(self, problem: ConvProblem) -> KernelSource:
        """Return the kernel for ``problem``."""
        macros = _macros(problem) | self.macros()
        types, headers = {"T": FLOATS[problem.dtype]}, ("hopper.cuh", *problem.epilogue.headers)
        head = specialise("conv_wgmma", "tile_order.cuh", types, macros, *headers)
        multiply = multiply_text(self.block_n, problem.dtype, False, False)
        body = read_source("wgmma_tiles.cuh", "conv_wgmma.cu")
        return KernelSource("\n".join([head.text, multiply, problem.epilogue.text(), body]), "conv_wgmma")

    def _mappers(self, problem: ConvProblem) -> tuple[Any, Any, Any]:
        line, filters, channels = LINE_ELEMENTS, problem.filters, problem.channels
        pixels = self.block_m // self.cluster_n
        of_pixels = (
            mapper((1, problem.pixels, channels), (1, pixels, line))
            if problem.is_pointwise
            else Im2col.of(problem).mapper(line, pixels)
        )
        return (
            of_pixels,
            mapper((filters, problem.window.taps, channels), (self.block_n // self.cluster_m, 1, line)),
            mapper((1, problem.pixels, filters), (1, line, line)),
        )


def fused_nhwc_problem(signature: OpSignature) -> ConvProblem | str:
    """Return the convolution that ``signature`` asks for with what follows it, or why kernels can't make it."""
    return fused_conv_problem(signature, nhwc_problem)


def product_shape(problem: ConvProblem) -> ProductShape:
    """Return the convolution as a product: no box of channels goes over the end of a filter's tap."""
    boxes = problem.window.taps * ceil_div(problem.channels, LINE_ELEMENTS)
    used, vectors = min(problem.channels, LINE_ELEMENTS), max(1, problem.bias + problem.epilogue.vectors)
    return ProductShape(problem.pixels, problem.filters, boxes, used, vectors=vectors)


def nhwc_problem(signature: OpSignature) -> ConvProblem | str:
    """Return the convolution that ``signature`` asks for, or why kernels can't make it."""
    if signature.op != CONV or signature.body is not None:
        return f"{signature.op_type} is no convolution of channels-last tensors"
    return conv_problem(standard_conv(signature))


def _macros(problem: ConvProblem) -> dict[str, int | str]:
    sizes = {
        "M": problem.pixels,
        "N": problem.filters,
        "SEGMENTS": problem.window.taps,
        "SEGMENT": problem.channels,
        "BATCH": 1,
    }
    macros = problem.window.macros() | {name: f"{size}u" for name, size in sizes.items()}
    return macros | {
        "POINTWISE": int(problem.is_pointwise),
        "HAS_BIAS": int(problem.bias),
        "BIAS_ROW": int(problem.bias),
        "BIAS_INDEX": "column",
        "ALPHA": "1.0f",
        "BETA": "1.0f",
        "TRANS_A": 0,
        "TRANS_B": 1,
    }


TACTICS: list[type[Tactic]] = [ConvWgmma]
