"""Maximum and average pooling, over windows and over whole images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from tactician.builtin_kernels.cuda.compiler import KernelSource, read_source
from tactician.builtin_kernels.cuda.conv_problem import AXES, FLOATS, GeometryError, Window, window_of
from tactician.builtin_kernels.cuda.conv_stages import nothing
from tactician.builtin_kernels.cuda.indexing import MAX_INDEX_32, ceil_div
from tactician.builtin_kernels.cuda.kernel_text import specialise
from tactician.builtin_kernels.cuda.row_geometry import block_threads, row_groups, row_vector
from tactician.signature import OpSignature, TensorType
from tactician.tactics.tactic import Launch, Tactic

THREADS = 128
MAX_UNROLLED = 128
"""Taps of one thread that are written out one by one; more of them are looped over."""


@dataclass(frozen=True)
class PoolWindows(Tactic):
    """A thread makes a few outputs that lie below each other and loads each element under their windows once."""

    op: ClassVar[tuple[str, ...]] = ("ai.onnx::MaxPool", "ai.onnx::AveragePool")
    target: ClassVar[str] = "cuda"

    rows: int = 1
    """Output rows of a thread."""

    @classmethod
    def candidates(cls, signature: OpSignature, device: Any) -> Iterable[Self]:
        """Yield single outputs and, where windows overlap, several."""
        window = _window(signature)
        yield cls(1)
        if isinstance(window, Window):
            overlap = window.spans()[1] > window.strides[1]
            for rows in (2, 4) if overlap else (2,):
                if rows <= window.out[1] and window.taps * rows <= MAX_UNROLLED:
                    yield cls(rows)

    def decline(self, signature: OpSignature, device: Any) -> str | None:
        """Decline the indices of maxima, element types that are no floats, and several rows of large windows."""
        window = _window(signature)
        if isinstance(window, str):
            return window
        if self.rows > 1 and window.taps * self.rows > MAX_UNROLLED:
            return f"windows of {window.taps} elements are too large for {self.rows} rows"
        return _decline_output(signature, window)

    def prepare(self, signature: OpSignature, device: Any) -> Launch:
        """Compile the kernel for this shape."""
        window, x, y = _window(signature), signature.inputs[0], signature.outputs[0]
        assert isinstance(window, Window)
        assert x is not None
        assert y is not None
        if y.size == 0:
            return nothing
        planes = math.prod(x.dims[:2])
        padded = [b + n + a for b, n, a in zip(window.before, window.size, window.after, strict=True)]
        macros: dict[str, int | str] = {
            "WINDOWS_KERNEL": 1,
            "PLANES": f"{planes}u",
            "IN_SIZE": f"{window.in_size}u",
            "OUT_SIZE": f"{window.out_size}u",
            "ROWS": f"{self.rows}u",
            "THREADS": f"{THREADS}u",
            "UNROLLED": int(window.taps * self.rows <= MAX_UNROLLED),
            "COUNT_PADDING": int(signature.attribute("count_include_pad", 0)),
            **{f"COUNT_{axis}": n for axis, n in zip(AXES, padded, strict=True)},
        }
        kernel = device.compile(_source("pool_windows", signature, {**window.macros(), **macros}))
        threads = planes * window.out[0] * ceil_div(window.out[1], self.rows) * window.out[2]
        return _launch(kernel, ceil_div(threads, THREADS), THREADS)


@dataclass(frozen=True)
class PoolPlanes(Tactic):
    """A group of threads reduces the whole image of a channel."""

    op: ClassVar[tuple[str, ...]] = ("ai.onnx::GlobalAveragePool", "ai.onnx::GlobalMaxPool")
    target: ClassVar[str] = "cuda"

    group: int = 32
    """Threads that share an image: a power of two up to 32, or a multiple of 128."""

    @classmethod
    def candidates(cls, signature: OpSignature, device: Any) -> Iterable[Self]:
        """Yield groups that give each thread about two vectors."""
        x = signature.input(0)
        if _decline_planes(signature) is not None or x is None:
            yield cls()
            return
        yield from (cls(group) for group in row_groups(math.prod(x.dims[2:]), x.itemsize)[:3])

    def decline(self, signature: OpSignature, device: Any) -> str | None:
        """Decline element types that are no floats."""
        return _decline_planes(signature)

    def prepare(self, signature: OpSignature, device: Any) -> Launch:
        """Compile the kernel for this shape."""
        x = signature.inputs[0]
        assert x is not None
        planes, length, threads = math.prod(x.dims[:2]), math.prod(x.dims[2:]), block_threads(self.group)
        if planes == 0:
            return nothing
        macros: dict[str, int | str] = {
            "PLANES_KERNEL": 1,
            "PLANES": f"{planes}u",
            "IN_SIZE": f"{length}u",
            "GROUP": self.group,
            "THREADS": threads,
            "VECTOR": f"{row_vector(length, x.itemsize)}u",
        }
        kernel = device.compile(_source("pool_planes", signature, macros))
        return _launch(kernel, ceil_div(planes, threads // self.group), threads)


TACTICS: list[type[Tactic]] = [PoolWindows, PoolPlanes]


def _window(signature: OpSignature) -> Window | str:
    """Return the windows of a pooling, or why kernels can't make it."""
    reason = _decline_input(signature)
    if reason is not None:
        return reason
    if len([t for t in signature.outputs if t is not None]) > 1:
        return "the indices of maxima are not computed"
    x = signature.inputs[0]
    assert x is not None
    kernel = signature.attribute("kernel_shape")
    if not isinstance(kernel, tuple):
        return "kernel_shape is absent"
    try:
        return window_of(signature, [int(k) for k in kernel], x.dims[2:])
    except GeometryError as reason:
        return str(reason)


def _decline_input(signature: OpSignature) -> str | None:
    if not signature.is_static:
        return "needs static shapes"
    x = signature.input(0)
    if signature.body is not None or x is None:
        return "is for single operators"
    if x.dtype not in FLOATS:
        return f"element type {x.dtype} is not supported"
    if len(x.dims) < 3:
        return f"{x} has no spatial dimensions"
    return None if x.size <= MAX_INDEX_32 else f"{x.size} elements need more than 31 bits"


def _decline_output(signature: OpSignature, window: Window) -> str | None:
    x, y = signature.inputs[0], signature.outputs[0]
    assert x is not None
    expected = TensorType(x.dtype, (*x.dims[:2], *window.out[-len(x.dims) + 2 :]))
    if y != expected:
        return f"the output is {y}, but this pooling gives {expected}"
    return None if expected.size <= MAX_INDEX_32 else f"{expected.size} outputs need more than 31 bits"


def _decline_planes(signature: OpSignature) -> str | None:
    reason, x = _decline_input(signature), signature.input(0)
    if reason is not None or x is None:
        return reason
    if 0 in x.dims[2:]:
        return f"{x} has empty images"
    expected = TensorType(x.dtype, (*x.dims[:2], *(1 for _ in x.dims[2:])))
    return (
        None if signature.outputs[0] == expected else f"the output is {signature.outputs[0]}, not {expected}"
    )


def _source(name: str, signature: OpSignature, macros: Mapping[str, int | str]) -> KernelSource:
    x = signature.inputs[0]
    assert x is not None
    added: dict[str, int | str] = {"DOUBLE": 1} if x.dtype == "float64" else {}
    if signature.op_type.endswith("MaxPool"):
        added["MAXIMUM"] = 1
    head = specialise(name, "wide.cuh", {"T": FLOATS[x.dtype]}, {**macros, **added}, "rows.cuh")
    return KernelSource("\n".join([head.text, read_source("pooling.cu")]), name)


def _launch(kernel: Any, grid: int, threads: int) -> Launch:
    def run(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any) -> None:
        kernel.launch(stream, grid, threads, inputs[0], outputs[0])

    return run
