"""Every form of convolution, pooling and batch normalisation, and layers of real networks."""

from __future__ import annotations

from typing import Any

import numpy as np
from memory_bound_cases import BF16, Case, normal, positive

HALF = np.dtype(np.float16)
SINGLE = np.dtype(np.float32)
DOUBLE = np.dtype(np.float64)


def conv(
    x: tuple[int, ...], w: tuple[int, ...], dtype: Any = SINGLE, *, bias: bool = True, **attributes: Any
) -> Case:
    """Return a convolution of an input and filters of these shapes."""
    operands = [normal(*x, dtype=dtype), normal(*w, dtype=dtype)]
    return Case("Conv", [*operands, normal(w[0], dtype=dtype)] if bias else operands, attributes)


def layer(
    batch: int,
    channels: int,
    size: int,
    filters: int,
    kernel: int,
    stride: int = 1,
    groups: int = 1,
    dtype: Any = SINGLE,
) -> Case:
    """Return a square convolution with a bias and padding of half its kernel, as networks have them."""
    attributes = {"pads": [kernel // 2] * 4, "strides": [stride] * 2, "group": groups}
    shapes = (batch, channels, size, size), (filters, channels // groups, kernel, kernel)
    return conv(*shapes, dtype, **attributes)


def pool(op: str, *shape: int, dtype: Any = SINGLE, **attributes: Any) -> Case:
    """Return a pooling of an input of this shape."""
    return Case(op, [normal(*shape, dtype=dtype)], attributes)


def batch_norm(
    shape: tuple[int, ...], dtype: Any = SINGLE, parameters: Any = None, **attributes: Any
) -> Case:
    """Return a normalisation with given statistics, of type ``parameters`` if that is not the input's."""
    kind = dtype if parameters is None else parameters
    scale, bias, mean = (normal(shape[1], dtype=kind) for _ in range(3))
    operands = [normal(*shape, dtype=dtype), scale, bias, mean, positive(shape[1], dtype=kind)]
    return Case("BatchNormalization", operands, attributes)


CONVOLUTIONS = [
    *(conv((2, 5, 9, 7), (7, 5, 3, 3), t, pads=[1, 1, 1, 1]) for t in (SINGLE, HALF, BF16, DOUBLE)),
    # vectors of a 1 x 1 convolution: 16, 8 and 4 bytes, and none
    *(conv((2, 40, 4, side), (20, 40, 1, 1), t) for side in (6, 5, 7) for t in (SINGLE, HALF)),
    conv((2, 24, 5, 5), (20, 24, 1, 1), HALF, bias=False),
    conv((3, 36, 7, 7), (33, 36, 1, 1), BF16, strides=[2, 2]),
    conv((1, 33, 5, 5), (9, 33, 1, 1), HALF, pads=[1, 0, 0, 2]),
    # enough channels for taps in the outer loop, with and without a rest
    *(conv((1, 28, 6, 5), (40, 28, 3, 3), t, pads=[1, 1, 1, 1]) for t in (SINGLE, HALF, BF16)),
    *(conv((1, 27, 6, 6), (17, 27, 2, 3), t, pads=[0, 1, 2, 1], strides=[2, 1]) for t in (SINGLE, HALF)),
    conv((2, 3, 19, 17), (24, 3, 7, 7), HALF, pads=[3, 3, 3, 3], strides=[2, 2]),
    conv((2, 3, 12, 10), (8, 3, 5, 5), dilations=[2, 1], pads=[4, 0, 4, 3]),
    conv((1, 12, 9, 9), (16, 3, 3, 3), group=4, pads=[1, 1, 1, 1]),
    conv((2, 12, 6, 6), (10, 6, 1, 3), HALF, group=2, pads=[0, 1, 0, 1]),
    *(
        conv((1, 6, 7, 8), (6, 6, 3, 2), auto_pad=p, strides=[2, 3])
        for p in ("SAME_UPPER", "SAME_LOWER", "VALID")
    ),
    conv((1, 4, 8, 8), (4, 4, 2, 2), auto_pad="SAME_LOWER", dilations=[3, 1]),
    conv((3, 10, 23), (14, 10, 4), pads=[2, 1]),
    conv((2, 6, 33), (10, 3, 5), HALF, group=2, strides=[3], dilations=[2]),
    conv((1, 4, 5, 6, 7), (6, 4, 2, 3, 3), pads=[1, 0, 1, 0, 1, 1], strides=[1, 2, 1]),
    conv((1, 8, 4, 5, 4), (5, 8, 3, 1, 2), HALF, dilations=[1, 1, 2]),
    # few tiles and many steps of k: split
    *(conv((1, 30, 4, 4), (24, 30, 3, 3), t, pads=[1, 1, 1, 1]) for t in (SINGLE, HALF)),
    # windows that are larger than the input, and one element
    conv((1, 3, 2, 2), (4, 3, 5, 5), pads=[4, 4, 4, 4]),
    conv((1, 1, 1, 1), (1, 1, 1, 1)),
    conv((0, 3, 5, 5), (4, 3, 3, 3)),
    # depthwise
    *(conv((2, 5, 9, 11), (5, 1, 3, 3), t, group=5, pads=[1, 1, 1, 1]) for t in (SINGLE, HALF, BF16, DOUBLE)),
    conv((2, 4, 10, 9), (12, 1, 3, 5), group=4, strides=[2, 1], dilations=[1, 2], pads=[0, 2, 1, 1]),
    conv((1, 6, 21), (6, 1, 4), HALF, group=6, strides=[2], pads=[3, 0]),
    conv((1, 3, 12, 12), (3, 1, 11, 11), group=3, pads=[5, 5, 5, 5], bias=False),
    conv((1, 3, 4, 5, 6), (3, 1, 2, 2, 2), group=3),
]
"""Odd sides, each form of padding, groups, dilation, one and three dimensions, an empty tensor."""

_STEM = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
_PARTIAL = {"kernel_shape": [3, 3], "strides": [3, 2], "pads": [1, 2, 1, 0], "ceil_mode": 1}

POOLING = [
    *(pool("MaxPool", 2, 3, 11, 10, dtype=t, **_STEM) for t in (SINGLE, HALF, BF16, DOUBLE)),
    pool("MaxPool", 2, 3, 11, 10, kernel_shape=[2, 3], strides=[2, 2], ceil_mode=1, dilations=[2, 1]),
    pool("MaxPool", 2, 3, 11, kernel_shape=[3], auto_pad="SAME_LOWER", strides=[2]),
    pool("MaxPool", 2, 3, 13, 12, kernel_shape=[5, 4], auto_pad="SAME_UPPER", strides=[3, 1]),
    Case(
        "MaxPool",
        [np.where(normal(2, 3, 9, 8) > 1.5, np.float32(np.nan), normal(2, 3, 9, 8))],
        {"kernel_shape": [2, 2]},
    ),
    Case("MaxPool", [-positive(1, 2, 6, 6)], {"kernel_shape": [3, 3], "pads": [2, 2, 2, 2]}),
    pool("AveragePool", 2, 3, 11, 10, ceil_mode=1, **_STEM),
    *(
        pool("AveragePool", 2, 3, 11, 10, dtype=t, count_include_pad=1, **_PARTIAL)
        for t in (SINGLE, HALF, BF16, DOUBLE)
    ),
    pool("AveragePool", 2, 3, 40, 30, kernel_shape=[13, 13], strides=[3, 2], pads=[1, 1, 1, 1]),
    pool("AveragePool", 2, 3, 17, kernel_shape=[4], auto_pad="SAME_LOWER"),
    pool("AveragePool", 1, 3, 5, 6, 7, kernel_shape=[2, 3, 2], pads=[0, 1, 0, 1, 1, 1], dilations=[2, 1, 1]),
    *(
        pool(op, *shape, dtype=t)
        for op in ("GlobalAveragePool", "GlobalMaxPool")
        for t in (SINGLE, HALF, BF16)
        for shape in ((3, 5, 7, 7), (1, 3, 40, 30))
    ),
    pool("GlobalAveragePool", 2, 3, 301),
    pool("GlobalAveragePool", 2, 3, 4, 5, 6, dtype=DOUBLE),
]
"""Windows that overlap or don't, every padding, rounding up, NaN, and whole images."""

NORMALIZATION = [
    *(batch_norm((2, 5, 7, 8), t) for t in (SINGLE, HALF, BF16, DOUBLE)),
    batch_norm((2, 5, 7, 7), HALF, SINGLE, epsilon=0.1),
    batch_norm((3, 4)),
    batch_norm((2, 3, 4, 5, 6)),
    batch_norm((0, 3, 4)),
]
"""Vectors of every width, parameters of another type, no and many spatial dimensions."""
