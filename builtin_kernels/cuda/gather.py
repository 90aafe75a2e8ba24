"""Gather, GatherElements, GatherND, and ScatterElements and ScatterND without a reduction."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from tactician.builtin_kernels.cuda.compiler import KernelSource
from tactician.builtin_kernels.cuda.indexing import (
    Shape,
    ceil_div,
    contiguous_strides,
    index_type,
    offset_expression,
    power_of_two_below,
)
from tactician.builtin_kernels.cuda.kernel_text import specialise
from tactician.builtin_kernels.cuda.pieces import WIDEST_WORD, MovementError
from tactician.builtin_kernels.cuda.pointwise import pointwise_launch
from tactician.builtin_kernels.cuda.pointwise_program import copy_program
from tactician.builtin_kernels.cuda.pointwise_source import PointwiseKernel
from tactician.builtin_kernels.cuda.strided_copy import WORDS, decline_movement
from tactician.signature import OpSignature, TensorType
from tactician.tactics.tactic import Launch, Tactic

_INDEX_TYPES = {"int32": "i32", "int64": "i64"}


@dataclass(frozen=True)
class IndexedMove:
    """How the words of a gather's output, or of a scatter's updates, are placed in the indexed tensor."""

    count: int
    """Number of words moved."""
    word: int
    """Bytes of a word."""
    place: str
    """C text of the place of word ``i`` in the indexed tensor."""
    index: str
    """C type of places."""


@dataclass(frozen=True)
class Gather(Tactic):
    """Elements or rows by index."""

    op: ClassVar[tuple[str, ...]] = tuple(
        f"ai.onnx::{name}" for name in ("Gather", "GatherElements", "GatherND")
    )
    target: ClassVar[str] = "cuda"

    threads: int = 256
    unroll: int = 1
    """Words of a thread."""

    @classmethod
    def candidates(cls, signature: OpSignature, device: Any) -> Iterable[Self]:
        """Yield small blocks for small outputs, and more words per thread for large ones."""
        return _candidates(cls, signature, device)

    def decline(self, signature: OpSignature, device: Any) -> str | None:
        """Decline dynamic shapes and index types other than int32 and int64."""
        return decline_movement(signature, lambda: gather_plan(signature))

    def prepare(self, signature: OpSignature, device: Any) -> Launch:
        """Compile the kernel; without elements there is nothing to launch."""
        plan = gather_plan(signature)
        if plan.count == 0:
            return lambda inputs, outputs, workspace, stream: None
        launch = device.compile(_source(plan, signature, self.threads, self.unroll, scatter=False)).launch
        grid, threads = ceil_div(plan.count, self.threads * self.unroll), self.threads

        def run(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any) -> None:
            launch(stream, grid, threads, inputs[0], inputs[1], outputs[0])

        return run


@dataclass(frozen=True)
class Scatter(Tactic):
    """A copy of the data, then the updates over it. Where indices repeat, any one of the updates stays."""

    op: ClassVar[tuple[str, ...]] = tuple(
        f"ai.onnx::{name}" for name in ("ScatterElements", "ScatterND", "Scatter")
    )
    target: ClassVar[str] = "cuda"

    threads: int = 256
    unroll: int = 1
    """Words of a thread."""

    @classmethod
    def candidates(cls, signature: OpSignature, device: Any) -> Iterable[Self]:
        """Yield small blocks for small outputs, and more words per thread for large ones."""
        return _candidates(cls, signature, device)

    def decline(self, signature: OpSignature, device: Any) -> str | None:
        """Decline reductions, and elements of more than 8 bytes."""
        if signature.attribute("reduction", "none") != "none":
            return f"reduction '{signature.attribute('reduction')}' would need atomics"
        return decline_movement(signature, lambda: scatter_plan(signature))

    def prepare(self, signature: OpSignature, device: Any) -> Launch:
        """Compile the copy and the scatter."""
        data = _tensor(signature.input(0))
        plan = scatter_plan(signature)
        bits = f"uint{8 * data.itemsize}"
        program = copy_program(bits, (data.size,), (data.size,))
        copy = pointwise_launch(
            PointwiseKernel(program, WIDEST_WORD // data.itemsize, self.threads, self.unroll), device
        )
        if plan.count == 0:
            return copy
        launch = device.compile(_source(plan, signature, self.threads, self.unroll, scatter=True)).launch
        grid, threads = ceil_div(plan.count, self.threads * self.unroll), self.threads

        def run(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any) -> None:
            copy(inputs, outputs, None, stream)
            launch(stream, grid, threads, inputs[2], inputs[1], outputs[0])

        return run


TACTICS: list[type[Tactic]] = [Gather, Scatter]


def gather_plan(signature: OpSignature) -> IndexedMove:
    """Return how the output of a gather is placed in its data."""
    data, indices, output = (
        _tensor(t) for t in (signature.input(0), signature.input(1), signature.outputs[0])
    )
    build = {"Gather": _rows, "GatherElements": _elements, "GatherND": _tuples}[signature.op_type]
    return _plan(build, signature, data, indices, output)


def scatter_plan(signature: OpSignature) -> IndexedMove:
    """Return how the updates of a scatter are placed in its output."""
    data, indices, updates = (_tensor(signature.input(i)) for i in range(3))
    build = _tuples if signature.op_type == "ScatterND" else _elements
    return _plan(build, signature, data, indices, updates)


_Build = Callable[[OpSignature, Shape, Shape, Shape, str, int], tuple[str, int]]


def _plan(
    build: _Build, signature: OpSignature, data: TensorType, indices: TensorType, moved: TensorType
) -> IndexedMove:
    if indices.dtype not in _INDEX_TYPES:
        raise MovementError(f"indices of type {indices.dtype} are not supported")
    if moved.size and not data.size:
        raise MovementError("indexes a tensor without elements")
    index = index_type(data.size, moved.size, indices.size)
    place, factor = build(signature, data.dims, indices.dims, moved.dims, index, WIDEST_WORD // data.itemsize)
    return IndexedMove(moved.size // factor, data.itemsize * factor, place, index)


def _rows(
    signature: OpSignature, data: Shape, indices: Shape, moved: Shape, index: str, limit: int
) -> tuple[str, int]:
    """Gather: whole rows of everything behind the axis."""
    axis = int(signature.attribute("axis", 0)) % len(data)
    factor = power_of_two_below(math.prod(data[axis + 1 :]), limit)
    inner, entries = math.prod(data[axis + 1 :]) // factor, math.prod(indices)
    outer = f"i / {max(entries * inner, 1)}u * {data[axis] * inner}u"
    row = f"entry(indices, i / {max(inner, 1)}u % {max(entries, 1)}u, {data[axis]}, valid) * {inner}u"
    return f"{outer} + {row} + i % {max(inner, 1)}u", factor


def _elements(
    signature: OpSignature, data: Shape, indices: Shape, moved: Shape, index: str, limit: int
) -> tuple[str, int]:
    """GatherElements and ScatterElements: the index at the same place is the coordinate on one axis."""
    axis = int(signature.attribute("axis", 0)) % len(data)
    own = contiguous_strides(data)
    others = tuple(0 if d == axis else s for d, s in enumerate(own))
    entry = f"entry(indices, i, {data[axis]}, valid) * {own[axis]}u"
    return f"{offset_expression('i', moved, others, index)} + {entry}", 1


def _tuples(
    signature: OpSignature, data: Shape, indices: Shape, moved: Shape, index: str, limit: int
) -> tuple[str, int]:
    """GatherND and ScatterND: the last dimension of the indices holds coordinates of leading dimensions."""
    batched = int(signature.attribute("batch_dims", 0)) if signature.op_type == "GatherND" else 0
    depth = indices[-1]
    own = contiguous_strides(data)
    factor = power_of_two_below(math.prod(data[batched + depth :]), limit)
    inner = max(math.prod(data[batched + depth :]) // factor, 1)
    per_batch = math.prod(indices[batched:-1]) * inner
    terms = [f"i % {inner}u"]
    if batched:
        terms.append(f"i / {max(per_batch, 1)}u * {math.prod(data[batched:]) // factor}u")
    for k in range(depth):
        extent, stride = data[batched + k], own[batched + k] // factor
        terms.append(f"entry(indices, i / {inner}u * {depth}u + {k}u, {extent}, valid) * {stride}u")
    return " + ".join(terms), factor


def _source(
    plan: IndexedMove, signature: OpSignature, threads: int, unroll: int, *, scatter: bool
) -> KernelSource:
    indices = _tensor(signature.input(1))
    types = {"Word": WORDS[plan.word], "I": _INDEX_TYPES[indices.dtype], "Index": plan.index}
    macros: dict[str, int | str] = {
        "PLACE": plan.place,
        "COUNT": f"{plan.count}u",
        "THREADS": threads,
        "UNROLL": unroll,
    }
    return specialise("gather", "gather.cu", types, macros | ({"SCATTER": 1} if scatter else {}))


def _candidates(cls: Any, signature: OpSignature, device: Any) -> Iterable[Any]:
    tensor = signature.outputs[0]
    if tensor is None or not tensor.is_static or tensor.size < int(device.facts["multiprocessors"]) * 2048:
        yield cls(128, 1)
        return
    yield cls(256, 1)
    yield cls(256, 4)


def _tensor(tensor: TensorType | None) -> TensorType:
    if tensor is None:
        raise MovementError("an input is absent")
    return tensor
