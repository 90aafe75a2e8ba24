"""Convolutions of channels-last tensors, awkward ones and those of ResNet-50, for host and GPU tests."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from memory_bound_cases import BF16
from tactician.builtin_kernels.nhwc import CONV
from tactician.signature import OpSignature, TensorType, dtype_name

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]
HALF = np.dtype(np.float16)


@dataclass(frozen=True)
class ConvCase:
    """One call; the input is [N, H, W, C], the filters are [K, R, S, C]."""

    shape: Shape
    filters: Shape
    attributes: dict[str, Any] = field(default_factory=dict)
    bias: bool = True
    dtype: Any = HALF

    def __str__(self) -> str:
        attributes = "".join(f",{k}={v}" for k, v in self.attributes.items())
        bias = ",bias" if self.bias else ""
        return f"{self.dtype.name}{list(self.shape)},{list(self.filters)}{attributes}{bias}".replace(" ", "")

    def inputs(self) -> list[Array]:
        """Return random inputs, whose results are of about one."""
        rng = np.random.default_rng(5)
        arrays = [
            rng.standard_normal(self.shape),
            rng.standard_normal(self.filters) / np.sqrt(np.prod(self.filters[1:])),
        ]
        arrays += [rng.standard_normal(self.filters[0])] if self.bias else []
        return [a.astype(self.dtype) for a in arrays]


def conv(*sizes: int, stride: int = 1, **options: Any) -> ConvCase:
    """Return a convolution of (N, H, W, C, K, R, S), padded to keep the size if the stride is 1."""
    n, h, w, c, k, r, s = sizes
    pads = (r // 2, s // 2, r // 2, s // 2)
    return ConvCase((n, h, w, c), (k, r, s, c), {"pads": pads, "strides": (stride, stride)}, **options)


def signature_of(case: ConvCase, out: Shape) -> OpSignature:
    """Return the signature of a case whose result is of shape ``out``."""
    name = dtype_name(np.dtype(case.dtype))
    types = tuple(TensorType(name, s) for s in (case.shape, case.filters))
    types += (TensorType(name, (case.filters[0],)),) if case.bias else ()
    values = tuple(sorted(case.attributes.items()))
    return OpSignature(CONV, 1, values, types, (TensorType(name, out),), (None,) * len(types))


def resnet50(batch: int, dtype: Any = HALF) -> dict[str, ConvCase]:
    """Return the different convolutions of ResNet-50, those of one kind in one stage by one name."""
    layers = {"stem": conv(batch, 224, 224, 8, 64, 7, 7, stride=2, dtype=dtype)}
    channels, size = 64, 56
    for stage, width in enumerate((64, 128, 256, 512), 1):
        stride = 1 if stage == 1 else 2
        before = size * stride
        layers |= {
            f"{stage} reduce": conv(batch, size, size, width * 4, width, 1, 1, dtype=dtype),
            f"{stage} 3x3": conv(batch, size, size, width, width, 3, 3, dtype=dtype),
            f"{stage} expand": conv(batch, size, size, width, width * 4, 1, 1, dtype=dtype),
            f"{stage} first": conv(batch, before, before, channels, width, 1, 1, dtype=dtype),
            f"{stage} shortcut": conv(
                batch, before, before, channels, width * 4, 1, 1, stride=stride, dtype=dtype
            ),
        }
        if stride > 1:
            layers[f"{stage} 3x3 s2"] = conv(
                batch, before, before, width, width, 3, 3, stride=stride, dtype=dtype
            )
        channels, size = width * 4, size // 2
    return layers


SMALL = [
    conv(1, 8, 8, 64, 64, 1, 1),
    conv(2, 7, 9, 40, 72, 1, 1, bias=False),
    conv(3, 5, 7, 64, 64, 1, 1, stride=2, dtype=BF16),
    conv(1, 9, 11, 64, 128, 3, 3),
    conv(2, 13, 7, 72, 40, 3, 3, bias=False, dtype=BF16),
    conv(3, 12, 11, 128, 200, 3, 3, stride=2),
    conv(1, 31, 29, 8, 64, 7, 7, stride=2),
    conv(2, 10, 10, 16, 8, 5, 3, stride=3, dtype=BF16),
    ConvCase((2, 9, 12, 24), (16, 2, 4, 24), {"pads": (0, 2, 1, 0)}),
    ConvCase((1, 15, 14, 64), (64, 3, 3, 64), {"dilations": (2, 3)}, bias=False),
    ConvCase((3, 11, 17, 8), (24, 3, 2, 8), {"auto_pad": "SAME_UPPER", "strides": (2, 3)}, dtype=BF16),
    ConvCase((2, 6, 6, 32), (32, 3, 3, 32), {"pads": (2, 2, 2, 2), "dilations": (2, 2), "strides": (2, 2)}),
    ConvCase((1, 4, 4, 16), (8, 1, 1, 16), {"pads": (1, 2, 3, 1)}),
    ConvCase((2, 3, 3, 8), (8, 3, 3, 8)),
    ConvCase((0, 8, 8, 8), (8, 3, 3, 8)),
]
"""Odd sizes, each stride, dilations, uneven padding, tails of pixels, of filters and of channels, and no image."""

LARGE = [
    *(
        resnet50(1)[name]
        for name in ("stem", "1 3x3", "1 expand", "2 3x3 s2", "2 shortcut", "3 3x3", "4 reduce", "4 3x3")
    ),
    conv(2, 56, 56, 64, 64, 3, 3, dtype=BF16),
    conv(3, 28, 28, 256, 128, 3, 3, stride=2, dtype=BF16),
    conv(8, 14, 14, 256, 1024, 1, 1),
    conv(5, 14, 14, 256, 256, 3, 3),
    conv(32, 7, 7, 512, 512, 3, 3, bias=False),
    conv(2, 33, 35, 96, 320, 3, 3),
]
"""Tiles of every size."""


def depthwise(
    *sizes: int, stride: int = 1, dtype: Any = HALF, bias: bool = True, **attributes: Any
) -> ConvCase:
    """Return a depthwise convolution of (N, H, W, C, R, S), padded to keep the size if the stride is 1."""
    n, h, w, c, r, s = sizes
    given = {"pads": (r // 2, s // 2, r // 2, s // 2), "strides": (stride, stride), **attributes, "group": c}
    return ConvCase((n, h, w, c), (c, r, s, 1), given, bias, dtype)


DEPTHWISE = [
    *(depthwise(2, 9, 11, 24, 3, 3, dtype=np.dtype(t)) for t in (HALF, BF16, np.float32, np.float64)),
    depthwise(1, 14, 13, 16, 3, 3, stride=2),
    depthwise(2, 7, 7, 40, 5, 5, dtype=BF16),
    depthwise(1, 10, 9, 12, 3, 5, strides=(2, 1), dilations=(1, 2), pads=(0, 2, 1, 1), bias=False),
    depthwise(1, 6, 5, 7, 3, 3),
    depthwise(3, 1, 1, 8, 3, 3),
    depthwise(1, 4, 20, 8, 1, 4, pads=(0, 3, 0, 0), strides=(1, 2)),
    depthwise(0, 4, 4, 8, 3, 3),
]
"""Each type, strides, dilations, uneven padding, channels that make no vectors, one pixel and no image."""

MOBILENET = [
    depthwise(1, 112, 112, 32, 3, 3),
    depthwise(2, 112, 112, 96, 3, 3, stride=2),
    depthwise(3, 14, 14, 576, 3, 3, stride=2),
    depthwise(8, 7, 7, 960, 3, 3, dtype=BF16),
]
"""Layers of MobileNetV2."""
