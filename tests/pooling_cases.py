"""Pooling calls that host and GPU tests share: operator, input shape, attributes."""

from __future__ import annotations

from typing import Any

CASES: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "resnet stem": (
        "MaxPool",
        (1, 3, 16, 16),
        {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    ),
    "max 1-D": ("MaxPool", (2, 3, 11), {"kernel_shape": [4], "strides": [3]}),
    "max dilated": ("MaxPool", (1, 2, 9, 8), {"kernel_shape": [2, 3], "dilations": [2, 2]}),
    "max ceil": ("MaxPool", (1, 2, 7, 6), {"kernel_shape": [3, 2], "strides": [2, 2], "ceil_mode": 1}),
    "max same": (
        "MaxPool",
        (1, 2, 7, 6),
        {"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "SAME_LOWER"},
    ),
    "mean": ("AveragePool", (2, 3, 7, 9), {"kernel_shape": [2, 3], "strides": [1, 2]}),
    "mean padded": ("AveragePool", (1, 2, 6, 5), {"kernel_shape": [3, 3], "pads": [1, 0, 1, 2]}),
    "mean counts padding": (
        "AveragePool",
        (1, 2, 6, 5),
        {"kernel_shape": [3, 3], "pads": [1, 0, 1, 2], "count_include_pad": 1},
    ),
    "mean 3-D": ("AveragePool", (1, 2, 4, 5, 3), {"kernel_shape": [2, 2, 2], "strides": [2, 1, 1]}),
    "global mean": ("GlobalAveragePool", (2, 5, 7, 7), {}),
    "global max": ("GlobalMaxPool", (3, 2, 5, 9), {}),
    "global 1-D": ("GlobalAveragePool", (1, 3, 70), {}),
}
