"""The convolutions that this plugin runs, as plain numbers, or why it doesn't run one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tactician import OpSignature, TensorType

ITEM_BYTES = {"float32": 4, "float16": 2}
"""Element types that are convolved, with their sizes in bytes."""

STRIDES = (1, 2)
MAX_ELEMENTS = 2**31 - 2**16
"""Most elements of one image and of the filters: the kernels count them with 31 bits, and tiles may stick out."""
MAX_GRID = 65535
"""Most blocks in the second and third dimension of a grid."""


@dataclass(frozen=True)
class Problem:
    """``y[n, m, p] = b[m] + Σ over c of w[m, c] * x[n, c, q(p)]``; ``q(p)`` is the input pixel under output pixel ``p``.

    ``in_pixels`` and ``pixels`` are those of one channel of the input and of the output.
    """

    batch: int
    channels: int
    filters: int
    in_pixels: int
    in_w: int
    pixels: int
    out_w: int
    stride: int
    dtype: str

    @property
    def item_bytes(self) -> int:
        """Bytes of an element."""
        return ITEM_BYTES[self.dtype]

    @property
    def outputs(self) -> int:
        """Elements of the output."""
        return self.batch * self.filters * self.pixels

    def arguments(self) -> list[np.uint32]:
        """Return the numbers in the order in which the kernels take them."""
        numbers = (
            self.channels,
            self.filters,
            self.pixels,
            self.in_pixels,
            self.in_w,
            self.out_w,
            self.stride,
        )
        return [np.uint32(n) for n in numbers]


def problem_of(signature: OpSignature) -> Problem | str:
    """Return the numbers of the convolution that ``signature`` asks for, or why this plugin doesn't run it, in words."""
    x, w, b, y = signature.input(0), signature.input(1), signature.input(2), signature.outputs[0]
    if signature.body is not None:
        return "runs a convolution alone, not a fused operator"
    if x is None or w is None or y is None or not signature.is_static:
        return "needs static shapes"
    reason = _decline_types(x, w, b, y) or _decline_attributes(signature)
    if reason is not None:
        return reason
    batch, channels, in_h, in_w = x.dims
    filters = w.dims[0]
    if min(batch, channels, filters, in_h, in_w) == 0:
        return "there is nothing to multiply"
    stride = int(signature.attribute("strides", (1, 1))[0])
    out_h, out_w = -(-in_h // stride), -(-in_w // stride)
    if w.dims[1] != channels or y.dims != (batch, filters, out_h, out_w):
        return f"filters {w} on {x} don't give {y}"
    if b is not None and b.dims != (filters,):
        return f"the bias is {b}, not one number for each of {filters} filters"
    largest = max(channels * in_h * in_w, filters * channels, filters * out_h * out_w)
    if largest > MAX_ELEMENTS:
        return f"{largest} elements in one image or in the filters need more than 31 bits"
    if batch > MAX_GRID:
        return f"a batch of {batch} needs more than {MAX_GRID} blocks in one dimension of the grid"
    return Problem(batch, channels, filters, in_h * in_w, in_w, out_h * out_w, out_w, stride, x.dtype)


def _decline_types(x: TensorType, w: TensorType, b: TensorType | None, y: TensorType) -> str | None:
    if x.dtype not in ITEM_BYTES:
        return f"float32 and float16 only, not {x.dtype}"
    for other in (w, b, y):
        if other is not None and other.dtype != x.dtype:
            return f"one element type only, not {x.dtype} and {other.dtype}"
    if x.rank != 4 or w.rank != 4:
        return f"two spatial dimensions only, not {x}"
    if w.dims[2:] != (1, 1):
        return f"windows of 1 x 1 only, not {w.dims[2]} x {w.dims[3]}"
    return None


def _decline_attributes(signature: OpSignature) -> str | None:
    """Return which attribute is in the way; ``dilations`` mean nothing to one pixel, nor does ``auto_pad`` pad for it."""
    group = signature.attribute("group", 1)
    if group != 1:
        return f"one group only, not {group}"
    strides = tuple(signature.attribute("strides", (1, 1)))
    if strides not in [(s, s) for s in STRIDES]:
        return f"strides of 1 or 2, equal in both dimensions, not {' x '.join(map(str, strides))}"
    auto_pad: Any = signature.attribute("auto_pad", "NOTSET")
    pads = tuple(signature.attribute("pads", ()))
    if auto_pad in ("NOTSET", b"NOTSET", "") and any(pads):
        return f"no padding, not {list(pads)}"
    return None
