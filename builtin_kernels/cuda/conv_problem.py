"""Convolutions as one geometry: three spatial dimensions, any groups, strides, dilations and padding."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tactician.builtin_kernels.cuda.epilogue import FusedCall, fused_call
from tactician.builtin_kernels.cuda.epilogue_source import Epilogue
from tactician.builtin_kernels.cuda.indexing import MAX_INDEX_32, Shape, ceil_div
from tactician.signature import OpSignature, TensorType

FLOATS = {"float32": "float", "float16": "f16", "bfloat16": "bf16", "float64": "double"}
"""C types of the element types that are convolved."""

AXES = "DHW"
"""Suffixes of the macros of the three spatial dimensions, outermost first."""

MAX_EXTENT = MAX_INDEX_32 - 65536
"""Most elements of one image, of the filters, and of the output's pixels: tiles that stick out are numbered with 31 bits."""


class GeometryError(Exception):
    """Attributes that make no convolution or pooling; the message is the reason to decline with."""


@dataclass(frozen=True)
class Window:
    """A window that slides over an input: one entry for each of the three spatial dimensions.

    ``before`` and ``after`` are the padding, ``out`` the number of windows, which with ``ceil_mode`` may reach
    even further.
    """

    size: Shape
    kernel: Shape
    strides: Shape
    dilations: Shape
    before: Shape
    after: Shape
    out: Shape

    @property
    def taps(self) -> int:
        """Elements of the window."""
        return math.prod(self.kernel)

    @property
    def in_size(self) -> int:
        """Elements of one channel of the input."""
        return math.prod(self.size)

    @property
    def out_size(self) -> int:
        """Number of windows over one channel."""
        return math.prod(self.out)

    def spans(self) -> Shape:
        """Return how far a window reaches."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    def leaves(self) -> tuple[bool, ...]:
        """Return, for each dimension, whether some window reaches outside of the input."""
        ends = (
            (n - 1) * s - b + span
            for n, s, b, span in zip(self.out, self.strides, self.before, self.spans(), strict=True)
        )
        return tuple(b > 0 or end > n for b, end, n in zip(self.before, ends, self.size, strict=True))

    def macros(self) -> dict[str, int | str]:
        """Return the macros that the kernels read the geometry from."""
        values = {
            "IN": [f"{n}u" for n in self.size],
            "OUT": [f"{n}u" for n in self.out],
            "KERNEL": [f"{n}u" for n in self.kernel],
            "STRIDE": list(self.strides),
            "DILATION": list(self.dilations),
            "PAD": list(self.before),
            "LEAVES": [int(leaves) for leaves in self.leaves()],
        }
        return {
            f"{name}_{axis}": v for name, row in values.items() for axis, v in zip(AXES, row, strict=True)
        }


@dataclass(frozen=True)
class ConvProblem:
    """``y[n, g, m, p] = bias[g, m] + Σ over c and taps t of w[g, m, c, t] * x[n, g, c, p * stride - pad + t * dilation]``.

    ``channels`` and ``filters`` are those of one group.
    """

    batch: int
    groups: int
    channels: int
    filters: int
    window: Window
    bias: bool
    dtype: str
    call: FusedCall | None = None
    """The node that it is of, where operators behind the convolution are fused with it."""

    @property
    def epilogue(self) -> Epilogue:
        """What is done to the results."""
        return Epilogue(self.call, self.pixels)

    @property
    def depth(self) -> int:
        """Products in each sum."""
        return self.channels * self.window.taps

    @property
    def pixels(self) -> int:
        """Output pixels of all images."""
        return self.batch * self.window.out_size

    @property
    def outputs(self) -> int:
        """Elements of the output."""
        return self.pixels * self.groups * self.filters

    @property
    def is_empty(self) -> bool:
        """Whether there is no result to write."""
        return self.outputs == 0

    @property
    def is_pointwise(self) -> bool:
        """Whether an output pixel is made of the input pixel of the same number: 1 x 1, stride 1, no padding."""
        return self.window.taps == 1 and set(self.window.strides) == {1} and not any(self.window.leaves())

    def tiles(self, block_m: int, block_n: int) -> int:
        """Return the number of tiles of ``block_m`` filters by ``block_n`` pixels in all groups."""
        return ceil_div(self.filters, block_m) * ceil_div(self.pixels, block_n) * self.groups

    def macros(self) -> dict[str, int | str]:
        """Return the macros that kernels of this family share."""
        counts = {
            "BATCH": self.batch,
            "GROUPS": self.groups,
            "CHANNELS": self.channels,
            "FILTERS": self.filters,
        }
        return {k: f"{v}u" for k, v in counts.items()} | self.window.macros() | {"HAS_BIAS": int(self.bias)}


def conv_problem(signature: OpSignature) -> ConvProblem | str:
    """Return the convolution that ``signature`` asks for, or why kernels can't make it."""
    if not signature.is_static:
        return "needs static shapes"
    if signature.op != "ai.onnx::Conv" or signature.body is not None:
        return f"{signature.op_type} is no convolution"
    x, w, y = signature.input(0), signature.input(1), signature.outputs[0]
    if x is None or w is None or y is None:
        return "an operand is absent"
    if x.dtype not in FLOATS or {w.dtype, y.dtype} != {x.dtype}:
        return f"element types {x.dtype}, {w.dtype} and {y.dtype} are not supported"
    try:
        problem = _conv(signature, x, w)
    except GeometryError as reason:
        return str(reason)
    expected = (problem.batch, problem.groups * problem.filters, *problem.window.out[-len(x.dims) + 2 :])
    if y.dims != expected:
        return f"the output is {y}, but this convolution gives {list(expected)}"
    largest = max(
        problem.groups * problem.channels * problem.window.in_size,
        problem.groups * problem.filters * max(problem.depth, problem.window.out_size),
        problem.pixels,
        problem.tiles(1, 16),
    )
    return (
        problem
        if largest <= MAX_EXTENT
        else f"{largest} elements in one image, filter bank or row need more than 31 bits"
    )


def fused_conv_problem(
    signature: OpSignature, problem_of: Callable[[OpSignature], ConvProblem | str] = conv_problem
) -> ConvProblem | str:
    """Return the convolution that ``signature`` asks for with what follows it, or why kernels can't make it."""
    call = fused_call(signature)
    problem = call if isinstance(call, str) else problem_of(call.anchor)
    if isinstance(call, str) or isinstance(problem, str):
        return problem
    if call.program is not None and problem.dtype == "float64":
        return "sums in float64 have no epilogue"
    return replace(problem, call=call)


def window_of(signature: OpSignature, kernel: Sequence[int], size: Sequence[int]) -> Window:
    """Return what the attributes of a convolution or pooling mean for ``kernel`` on an input of spatial ``size``.

    Raises
    ------
    GeometryError
        If there are more than three spatial dimensions, or the attributes don't fit them.
    """
    rank = len(size)
    if not 1 <= rank <= 3 or len(kernel) != rank:
        raise GeometryError(f"a window of {len(kernel)} dimensions over {rank} is not supported")
    strides = _numbers(signature, "strides", (1,) * rank, 1)
    dilations = _numbers(signature, "dilations", (1,) * rank, 1)
    pads = _numbers(signature, "pads", (0,) * (2 * rank), 0)
    if min(*kernel, 1) < 1:
        raise GeometryError(f"a window of {tuple(kernel)} has no elements")
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    auto = _text(signature.attribute("auto_pad", "NOTSET"))
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        total = [
            max(0, (ceil_div(n, s) - 1) * s + span - n)
            for n, s, span in zip(size, strides, spans, strict=True)
        ]
        small, large = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
        pads = (*small, *large) if auto == "SAME_UPPER" else (*large, *small)
    elif auto == "VALID":
        pads = (0,) * (2 * rank)
    elif auto not in ("", "NOTSET"):
        raise GeometryError(f"auto_pad '{auto}' is not known")
    before, after = pads[:rank], pads[rank:]
    ceil = bool(signature.attribute("ceil_mode", 0))
    out = [_windows(*numbers, ceil) for numbers in zip(size, before, after, strides, spans, strict=True)]
    pad = 3 - rank

    def three(values: Sequence[int], fill: int) -> Shape:
        return (fill,) * pad + tuple(values)

    return Window(
        three(size, 1),
        three(kernel, 1),
        three(strides, 1),
        three(dilations, 1),
        three(before, 0),
        three(after, 0),
        three(out, 1),
    )


def _conv(signature: OpSignature, x: TensorType, w: TensorType) -> ConvProblem:
    if not 3 <= len(x.dims) <= 5 or len(w.dims) != len(x.dims):
        raise GeometryError(f"input {x} and filters {w} are no convolution in 1 to 3 dimensions")
    (batch, all_channels, *size), (all_filters, channels, *kernel) = x.dims, w.dims
    groups = int(signature.attribute("group", 1))
    if groups < 1 or channels < 1 or all_channels != groups * channels or all_filters % groups:
        raise GeometryError(f"{all_channels} channels and filters {w} don't make {groups} groups")
    if tuple(signature.attribute("kernel_shape", kernel)) != tuple(kernel):
        raise GeometryError(
            f"kernel_shape {signature.attribute('kernel_shape')} differs from the filters {w}"
        )
    b = signature.input(2)
    if b is not None and (b.dims != (all_filters,) or b.dtype != x.dtype):
        raise GeometryError(f"the bias is {b}, not {x.dtype}[{all_filters}]")
    window = window_of(signature, kernel, size)
    return ConvProblem(batch, groups, channels, all_filters // groups, window, b is not None, x.dtype)


def _windows(size: int, before: int, after: int, stride: int, span: int, ceil: bool) -> int:
    """Return how many windows fit; with ``ceil`` the last may stick out, if it starts within the input or its front padding."""
    room = size + before + after - span
    if room < 0 and not ceil:
        raise GeometryError(f"a window that reaches over {span} doesn't fit into {size} + {before} + {after}")
    if not ceil:
        return room // stride + 1
    count = ceil_div(room, stride) + 1
    return max(0, count - 1 if (count - 1) * stride >= size + before else count)


def _numbers(signature: OpSignature, name: str, default: Shape, least: int) -> Shape:
    given: Any = signature.attribute(name)
    values = tuple(int(v) for v in given) if given else default
    if len(values) != len(default) or min(values) < least:
        raise GeometryError(f"{name} {values} don't fit {len(default)} numbers of at least {least}")
    return values


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
