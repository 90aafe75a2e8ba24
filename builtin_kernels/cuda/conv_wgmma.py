"""Convolutions of channels-last tensors on Hopper's tensor cores: pixels come by TMA's im2col, the rest is a product."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

from tactician.builtin_kernels.cuda.compiler import KernelSource, read_source
from tactician.builtin_kernels.cuda.conv_problem import FLOATS, ConvProblem, conv_problem
from tactician.builtin_kernels.cuda.epilogue import FusedCall, epilogue_form, fused_call
from tactician.builtin_kernels.cuda.epilogue_source import Epilogue
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
        fused, found = fused_conv(signature), list(cls.search_space(signature, device))
        if not isinstance(fused, str) and len(found) > 1:
            found = most_promising(found, fused.shape, int(device.facts["multiprocessors"]))
        yield from found

    @classmethod
    def search_space(cls, signature: OpSignature, device: Any) -> Iterable[Self]:
        """Yield all tiles that fit the shape, with as many stages as shared memory holds."""
        fused = fused_conv(signature)
        if isinstance(fused, str) or fused.problem.is_empty or fused.problem.depth == 0:
            yield cls()
            return
        tiles = cls.tiles_for(fused.shape, int(device.facts["multiprocessors"]))
        yield from [t for t in tiles if t.decline(signature, device) is None] or [cls()]

    def decline(self, signature: OpSignature, device: Any) -> str | None:
        """Decline other GPUs than Hopper, groups, types without this instruction, and what TMA can't walk over."""
        fused = fused_conv(signature)
        if isinstance(fused, str):
            return fused
        problem = fused.problem
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
        return reason or self.decline_fields(fused.shape, int(device.facts["shared_bytes_per_block"]))

    def prepare(self, signature: OpSignature, device: Any) -> Launch:
        """Compile the kernel for this shape; maps of the tensors are made when addresses are first seen."""
        fused = fused_conv(signature)
        assert not isinstance(fused, str), fused
        if fused.problem.is_empty:
            return nothing
        kernel = device.compile(self.source(fused))
        grid = self.grid(fused.shape, int(device.facts["multiprocessors"]))
        threads, shared = self.threads(), self.shared_bytes(fused.shape.vectors)
        map_a, map_b, map_d = self._mappers(fused.problem)
        at_x, at_w, at_bias = (*fused.call.inputs, None)[:3]
        reads = fused.call.reads
        assert at_x is not None and at_w is not None

        def run(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any) -> None:
            bias = None if at_bias is None else inputs[at_bias]
            maps = map_a(inputs[at_x]), map_b(inputs[at_w]), map_d(outputs[0])
            read = [inputs[i] for i in reads]
            kernel.launch(stream, grid, threads, *maps, bias, outputs[0], *read, shared_bytes=shared)

        return run

    def source(self, fused: FusedConv) -> KernelSource:
        """Return the kernel for a convolution with its epilogue."""
        problem = fused.problem
        macros = _macros(problem) | self.macros()
        types, headers = {"T": FLOATS[problem.dtype]}, ("hopper.cuh", *fused.epilogue.headers)
        head = specialise("conv_wgmma", "tile_order.cuh", types, macros, *headers)
        multiply = multiply_text(self.block_n, problem.dtype, False, False)
        body = read_source("wgmma_tiles.cuh", "conv_wgmma.cu")
        return KernelSource("\n".join([head.text, multiply, fused.epilogue.text(), body]), "conv_wgmma")

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


@dataclass(frozen=True)
class FusedConv:
    """A convolution of channels-last tensors with what is done to its results."""

    call: FusedCall
    problem: ConvProblem

    @property
    def epilogue(self) -> Epilogue:
        """What the kernel does to its results."""
        return Epilogue(self.call, self.problem.pixels)

    @cached_property
    def shape(self) -> ProductShape:
        """The convolution as a product: no box of channels goes over the end of a filter's tap."""
        problem = self.problem
        boxes = problem.window.taps * ceil_div(problem.channels, LINE_ELEMENTS)
        used, vectors = min(problem.channels, LINE_ELEMENTS), max(1, problem.bias + self.epilogue.vectors)
        return ProductShape(problem.pixels, problem.filters, boxes, used, vectors=vectors)


def fused_conv(signature: OpSignature) -> FusedConv | str:
    """Return the convolution that ``signature`` asks for, with what follows it, or why kernels can't make it."""
    call = fused_call(signature)
    if isinstance(call, str):
        return call
    problem = nhwc_problem(call.anchor)
    return problem if isinstance(problem, str) else FusedConv(call, problem)


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
