"""Convolutions that host and GPU tests share: input shape, filter shape, attributes, and whether there is a bias."""

from __future__ import annotations

from typing import Any

Case = tuple[tuple[int, ...], tuple[int, ...], dict[str, Any], bool]

SMALL: dict[str, Case] = {
    "3x3": ((1, 3, 6, 7), (5, 3, 3, 3), {"pads": [1, 1, 1, 1]}, True),
    "1x1": ((2, 4, 5, 3), (6, 4, 1, 1), {}, False),
    "strided": ((1, 2, 9, 8), (3, 2, 3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1]}, True),
    "asymmetric": ((1, 2, 5, 6), (2, 2, 2, 3), {"pads": [0, 2, 1, 0]}, False),
    "dilated": ((1, 2, 9, 9), (2, 2, 3, 3), {"dilations": [2, 3]}, False),
    "grouped": ((1, 6, 5, 5), (4, 3, 3, 3), {"group": 2, "pads": [1, 1, 1, 1]}, True),
    "depthwise": ((2, 5, 6, 6), (5, 1, 3, 3), {"group": 5, "pads": [1, 1, 1, 1]}, True),
    "1-D": ((2, 3, 11), (4, 3, 3), {"strides": [2]}, True),
    "same": ((1, 2, 6, 5), (3, 2, 3, 2), {"auto_pad": "SAME_UPPER", "strides": [2, 1]}, False),
}

LARGE: dict[str, Case] = {
    "stem": ((1, 3, 224, 224), (64, 3, 7, 7), {"strides": [2, 2], "pads": [3, 3, 3, 3]}, True),
    "layer1 3x3": ((1, 64, 56, 56), (64, 64, 3, 3), {"pads": [1, 1, 1, 1]}, True),
    "layer1 1x1": ((1, 64, 56, 56), (256, 64, 1, 1), {}, True),
    "layer2 down": ((1, 256, 56, 56), (512, 256, 1, 1), {"strides": [2, 2]}, True),
    "layer3 3x3 s2": ((1, 256, 28, 28), (256, 256, 3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1]}, True),
    "layer4 3x3": ((2, 512, 7, 7), (512, 512, 3, 3), {"pads": [1, 1, 1, 1]}, True),
    "mobilenet depthwise": ((1, 96, 28, 28), (96, 1, 3, 3), {"group": 96, "pads": [1, 1, 1, 1]}, False),
}
