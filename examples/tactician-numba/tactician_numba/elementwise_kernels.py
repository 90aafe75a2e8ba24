"""Functions of one element, and arithmetic of two with broadcasting.

``y[i] = f(x[i])`` and ``y[i] = f(a[i], b[i])``, float32. A function reads 4 and writes 4 bytes for each element;
arithmetic reads up to 8. Loops run from 0 over arrays that were cut to size before: of an index that starts
elsewhere the compiler does not see that it is never negative, and then does not vectorize. Comparisons are
written so that NaN comes through.
"""

from __future__ import annotations

import math

import numpy as np

from tactician_numba.compiling import helper, kernel

UNARY = "void(float32[::1], float32[::1], float32, float32)"
"""x, y, and two parameters that a function may have."""
BINARY = "void(float32[::1], float32[::1], float32[::1], int64[::1], int64[::1], int64[::1], int64, int64)"
"""a, b, y; extents of the outer loops, strides of a and of b; first and last row."""

ZERO, HALF, ONE, TWO = np.float32(0), np.float32(0.5), np.float32(1), np.float32(2)
ROOT_HALF = np.float32(math.sqrt(0.5))
GELU_SCALE, GELU_CUBE = np.float32(math.sqrt(2 / math.pi)), np.float32(0.044715)
SERIES_BELOW = np.float32(0.25)
"""Up to here tanh is its series, x (1 + c1 x² + … + c5 x¹⁰); the next term is below 1e-9 of it."""
C1, C2, C3, C4, C5 = (np.float32(c) for c in (-1 / 3, 2 / 15, -17 / 315, 62 / 2835, -1382 / 155925))


@helper()
def tanh_of(x):
    """Return tanh x: 1 - 2 / (exp(2x) + 1) loses digits near 0, where the series has them."""
    s = x * x
    series = x + x * s * (C1 + s * (C2 + s * (C3 + s * (C4 + s * C5))))
    far = ONE - TWO / (np.exp(TWO * x) + ONE)
    return series if abs(x) < SERIES_BELOW else far


@helper()
def erf_of(x):
    """Return erf x, by the C library in float64."""
    return np.float32(math.erf(np.float64(x)))


@helper()
def unit_of(x):
    """Return x, no less than 0 and no more than 1."""
    low = ZERO if x < ZERO else x
    return ONE if low > ONE else low


@kernel(UNARY)
def relu(x, y, p, q):
    for i in range(y.size):
        y[i] = ZERO if x[i] < ZERO else x[i]


@kernel(UNARY)
def leaky_relu(x, y, alpha, q):
    for i in range(y.size):
        y[i] = alpha * x[i] if x[i] < ZERO else x[i]


@kernel(UNARY)
def clip(x, y, low, high):
    if low != low or high != high:  # a limit that is NaN makes everything NaN
        y[:] = np.float32(np.nan)
        return
    for i in range(y.size):
        v = low if x[i] < low else x[i]
        y[i] = high if v > high else v


@kernel(UNARY)
def sigmoid(x, y, p, q):
    for i in range(y.size):
        y[i] = ONE / (ONE + np.exp(-x[i]))


@kernel(UNARY)
def hard_sigmoid(x, y, alpha, beta):
    for i in range(y.size):
        y[i] = unit_of(alpha * x[i] + beta)


@kernel(UNARY)
def hard_swish(x, y, alpha, beta):
    for i in range(y.size):
        y[i] = x[i] * unit_of(alpha * x[i] + beta)


@kernel(UNARY)
def tanh(x, y, p, q):
    for i in range(y.size):
        y[i] = tanh_of(x[i])


@kernel(UNARY)
def erf(x, y, p, q):
    for i in range(y.size):
        y[i] = erf_of(x[i])


@kernel(UNARY)
def gelu(x, y, p, q):
    for i in range(y.size):
        y[i] = HALF * x[i] * (ONE + erf_of(x[i] * ROOT_HALF))


@kernel(UNARY)
def gelu_tanh(x, y, p, q):
    for i in range(y.size):
        v = x[i]
        y[i] = HALF * v * (ONE + tanh_of(GELU_SCALE * (v + GELU_CUBE * v * v * v)))


@kernel(UNARY)
def exp(x, y, p, q):
    for i in range(y.size):
        y[i] = np.exp(x[i])


@kernel(UNARY)
def sqrt(x, y, p, q):
    for i in range(y.size):
        y[i] = np.sqrt(x[i])


@helper()
def start_of(row, extents, strides):
    """Return where row ``row`` begins: its number in the system of ``extents``, each digit times its stride."""
    at = 0
    for d in range(extents.size - 1, -1, -1):
        at += row % extents[d] * strides[d]
        row //= extents[d]
    return at


@helper()
def operand_row(x, row, extents, strides, inner):
    """Return the elements that row ``row`` reads: one where the innermost loop does not move, else ``inner``."""
    at = start_of(row, extents[:-1], strides[:-1])
    return x[at : at + (inner if strides[-1] == 1 else 1)]


# Arithmetic: a row of the output at a time. An operand's row has one element where it is broadcast along it.


@kernel(BINARY)
def add(a, b, y, extents, a_strides, b_strides, begin, end):
    inner = extents[-1]
    for row in range(begin, end):
        u = operand_row(a, row, extents, a_strides, inner)
        v = operand_row(b, row, extents, b_strides, inner)
        z = y[row * inner : (row + 1) * inner]
        if u.size == v.size:
            for i in range(z.size):
                z[i] = u[i] + v[i]
        elif v.size == 1:
            for i in range(z.size):
                z[i] = u[i] + v[0]
        else:
            for i in range(z.size):
                z[i] = u[0] + v[i]


@kernel(BINARY)
def subtract(a, b, y, extents, a_strides, b_strides, begin, end):
    inner = extents[-1]
    for row in range(begin, end):
        u = operand_row(a, row, extents, a_strides, inner)
        v = operand_row(b, row, extents, b_strides, inner)
        z = y[row * inner : (row + 1) * inner]
        if u.size == v.size:
            for i in range(z.size):
                z[i] = u[i] - v[i]
        elif v.size == 1:
            for i in range(z.size):
                z[i] = u[i] - v[0]
        else:
            for i in range(z.size):
                z[i] = u[0] - v[i]


@kernel(BINARY)
def multiply(a, b, y, extents, a_strides, b_strides, begin, end):
    inner = extents[-1]
    for row in range(begin, end):
        u = operand_row(a, row, extents, a_strides, inner)
        v = operand_row(b, row, extents, b_strides, inner)
        z = y[row * inner : (row + 1) * inner]
        if u.size == v.size:
            for i in range(z.size):
                z[i] = u[i] * v[i]
        elif v.size == 1:
            for i in range(z.size):
                z[i] = u[i] * v[0]
        else:
            for i in range(z.size):
                z[i] = u[0] * v[i]


@kernel(BINARY)
def divide(a, b, y, extents, a_strides, b_strides, begin, end):
    inner = extents[-1]
    for row in range(begin, end):
        u = operand_row(a, row, extents, a_strides, inner)
        v = operand_row(b, row, extents, b_strides, inner)
        z = y[row * inner : (row + 1) * inner]
        if u.size == v.size:
            for i in range(z.size):
                z[i] = u[i] / v[i]
        elif v.size == 1:
            for i in range(z.size):
                z[i] = u[i] / v[0]
        else:
            for i in range(z.size):
                z[i] = u[0] / v[i]
