"""Softmax and layer normalization of rows.

Softmax: ``y[r, i] = exp(x[r, i] - m) / s`` with m the row's maximum and s the sum of exp(x[r, j] - m).
LayerNormalization: ``y[r, i] = (x[r, i] - mean) * inverse * scale[i] + bias[i]`` with inverse =
1 / sqrt(variance + epsilon), the variance taken about the mean in a second pass.

x, y: float32[rows, columns], row-major. A thread has whole rows, so no sum is cut. Both read a row three times,
from the cache after the first, and write it once: 8 bytes for each element from and to memory.
"""

from __future__ import annotations

import numpy as np

from tactician_numba.compiling import helper, kernel

SUM = {"reassoc", "contract"}

ZERO, ONE = np.float32(0), np.float32(1)


@helper()
def largest_of(x):
    """Return the maximum, by four chains of comparisons at once; NaN is passed over."""
    a = b = c = d = x[0]
    whole = x.size // 4 * 4
    for i in range(0, whole, 4):
        a = x[i] if x[i] > a else a
        b = x[i + 1] if x[i + 1] > b else b
        c = x[i + 2] if x[i + 2] > c else c
        d = x[i + 3] if x[i + 3] > d else d
    for i in range(whole, x.size):
        a = x[i] if x[i] > a else a
    return max(max(a, b), max(c, d))


@helper(fastmath=SUM)
def sum_of(x):
    """Return the sum, in lanes."""
    total = ZERO
    for i in range(x.size):
        total += x[i]
    return total


@helper(fastmath=SUM)
def squares_about(x, mean):
    """Return the sum of (x[i] - mean)², in lanes."""
    total = ZERO
    for i in range(x.size):
        total += (x[i] - mean) * (x[i] - mean)
    return total


@kernel("void(float32[::1], float32[::1], int64, int64, int64)")
def softmax(x, y, columns, begin, end):
    for row in range(begin, end):
        source = x[row * columns : (row + 1) * columns]
        result = y[row * columns : (row + 1) * columns]
        # 1. a NaN that the maximum passes over is in the sum, and so in the whole row, as it should
        highest = largest_of(source)
        for i in range(result.size):
            result[i] = np.exp(source[i] - highest)
        # 2. at least 1, unless it is NaN
        total = sum_of(result)
        for i in range(result.size):
            result[i] /= total


@kernel(
    "void(float32[::1], float32[::1], float32[::1], float32[::1], float32[::1], float32[::1], float32, int64, "
    "int64, int64)"
)
def layer_normalization(x, scale, bias, y, means, inverses, epsilon, columns, begin, end):
    count = np.float32(columns)
    for row in range(begin, end):
        source = x[row * columns : (row + 1) * columns]
        result = y[row * columns : (row + 1) * columns]
        mean = sum_of(source) / count
        inverse = ONE / np.sqrt(squares_about(source, mean) / count + epsilon)
        means[row], inverses[row] = mean, inverse
        if bias.size == 0:
            for i in range(result.size):
                result[i] = (source[i] - mean) * inverse * scale[i]
        else:
            for i in range(result.size):
                result[i] = (source[i] - mean) * inverse * scale[i] + bias[i]
