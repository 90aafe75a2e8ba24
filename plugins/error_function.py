"""The error function over arrays, which NumPy has not: rational approximations, exact to double precision.

W. J. Cody, "Rational Chebyshev approximations for the error function", Mathematics of Computation 23 (1969), 631-637.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

BLOCK = 1 << 14
"""Elements at a time: few enough to stay in the processor's cache."""
SMALL = 0.46875
"""Up to here erf(x) is x times a ratio of polynomials of x squared; beyond it is 1 minus one times exp(-x^2)."""
LARGEST = 6.0
"""From here on the result is 1."""

_SMALL_ABOVE = (
    1.85777706184603153e-1,
    3.16112374387056560,
    1.13864154151050156e2,
    3.77485237685302021e2,
    3.20937758913846947e3,
)
_SMALL_BELOW = (
    1.0,
    2.36012909523441209e1,
    2.44024637934444173e2,
    1.28261652607737228e3,
    2.84423683343917062e3,
)
_LARGE_ABOVE = (
    2.15311535474403846e-8, 5.64188496988670089e-1, 8.88314979438837594, 6.61191906371416295e1, 2.98635138197400131e2,
    8.81952221241769090e2, 1.71204761263407058e3, 2.05107837782607147e3, 1.23033935479799725e3,
)  # fmt: skip
_LARGE_BELOW = (
    1.0, 1.57449261107098347e1, 1.17693950891312499e2, 5.37181101862009858e2, 1.62138957456669019e3,
    3.29079923573345963e3, 4.36261909014324716e3, 3.43936767414372164e3, 1.23033935480374942e3,
)  # fmt: skip


def erf(x: Array) -> Array:
    """Return erf of every element, computed in double precision, in the type of ``x``."""
    flat = np.ascontiguousarray(x).reshape(-1)
    result = np.empty(flat.shape, x.dtype)
    with np.errstate(all="ignore"):
        for at in range(0, flat.size, BLOCK):
            result[at : at + BLOCK] = _erf(flat[at : at + BLOCK].astype(np.float64)).astype(x.dtype)
    return result.reshape(x.shape)


def _erf(x: Array) -> Array:
    size, square = np.abs(x), x * x
    small = x * _polynomial(_SMALL_ABOVE, square) / _polynomial(_SMALL_BELOW, square)
    z = np.minimum(size, LARGEST)
    ratio = _polynomial(_LARGE_ABOVE, z) / _polynomial(_LARGE_BELOW, z)
    # exp(-z^2) in two steps, since the rounding of z^2 would be as large as the result
    rough = np.trunc(z * 16) / 16
    tail = np.exp(-rough * rough) * np.exp(-(z - rough) * (z + rough)) * ratio
    return np.where(size <= SMALL, small, np.where(np.isnan(x), x, np.copysign(1 - tail, x)))


def _polynomial(coefficients: tuple[float, ...], x: Array) -> Array:
    """Return the polynomial whose highest coefficient comes first."""
    total = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        total *= x
        total += coefficient
    return total
