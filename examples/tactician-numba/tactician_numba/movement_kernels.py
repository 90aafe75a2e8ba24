"""Copies: as it lies, and with axes in another order.

``y[r, i] = x[start of r + i * step]``, float32: 4 bytes read and 4 written for each element. Rows of the output are
contiguous; those of the input have any stride, and then each element read is on a cache line of its own, which the
next rows use again.
"""

from __future__ import annotations

from tactician_numba.compiling import helper, kernel


@helper()
def start_of(row, extents, strides):
    """Return where row ``row`` begins: its number in the system of ``extents``, each digit times its stride."""
    at = 0
    for d in range(extents.size - 1, -1, -1):
        at += row % extents[d] * strides[d]
        row //= extents[d]
    return at


@kernel("void(float32[::1], float32[::1])")
def copy(x, y):
    for i in range(y.size):
        y[i] = x[i]


@kernel("void(float32[::1], float32[::1], int64[::1], int64[::1], int64, int64)")
def strided_copy(x, y, extents, strides, begin, end):
    """Write rows ``begin`` to ``end``; the last of ``extents`` and ``strides`` is that within a row."""
    inner, step = extents[-1], strides[-1]
    for row in range(begin, end):
        source = x[start_of(row, extents[:-1], strides[:-1]) :]
        result = y[row * inner : (row + 1) * inner]
        if step == 1:
            for i in range(result.size):
                result[i] = source[i]
        else:
            for i in range(result.size):
                result[i] = source[i * step]
