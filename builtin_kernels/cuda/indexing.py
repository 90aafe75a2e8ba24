"""Index arithmetic of kernels whose shapes are baked in: strides, collapsing, and offsets as C text."""

from __future__ import annotations

import math
from collections.abc import Sequence

Shape = tuple[int, ...]

MAX_INDEX_32 = 2**31 - 1
"""Tensors of at most this many elements are indexed with 32 bits."""


def contiguous_strides(shape: Sequence[int]) -> Shape:
    """Return the row-major strides, in elements, of ``shape``."""
    strides = [1] * len(shape)
    for d in reversed(range(len(shape) - 1)):
        strides[d] = strides[d + 1] * shape[d + 1]
    return tuple(strides)


def broadcast_strides(shape: Sequence[int], target: Sequence[int]) -> Shape:
    """Return the strides that read a contiguous tensor of ``shape`` as one of ``target``: 0 where repeated.

    Raises
    ------
    ValueError
        If ``shape`` doesn't broadcast to ``target``.
    """
    missing = len(target) - len(shape)
    if missing < 0 or any(s not in (1, t) for s, t in zip(shape, target[missing:], strict=True)):
        raise ValueError(f"shape {tuple(shape)} doesn't broadcast to {tuple(target)}")
    own = contiguous_strides(shape)
    return (0,) * missing + tuple(0 if s == 1 else stride for s, stride in zip(shape, own, strict=True))


def collapse(shape: Sequence[int], *strides: Sequence[int]) -> tuple[Shape, list[Shape]]:
    """Drop dimensions of extent 1 and merge neighbours that every one of ``strides`` walks as one.

    Returns
    -------
    shape, strides
        At least one dimension; the same elements in the same order.
    """
    extents: list[int] = []
    walks: list[list[int]] = [[] for _ in strides]
    for d, extent in enumerate(shape):
        if extent == 1:
            continue
        if extents and all(w[-1] == s[d] * extent for w, s in zip(walks, strides, strict=True)):
            extents[-1] *= extent
            for w, s in zip(walks, strides, strict=True):
                w[-1] = s[d]
            continue
        extents.append(extent)
        for w, s in zip(walks, strides, strict=True):
            w.append(s[d])
    if not extents:
        return (1,), [(1,) for _ in strides]
    return tuple(extents), [tuple(w) for w in walks]


def offset_expression(
    index: str, shape: Sequence[int], strides: Sequence[int], index_type: str = "u32"
) -> str:
    """Return C text for the offset of the element whose row-major number within ``shape`` is ``index``.

    Arithmetic is unsigned and wraps, so that negative strides give the right sum. The text is a constant
    expression in ``index``: divisions are by constants.
    """
    extents, (walk,) = collapse(shape, strides)
    terms = []
    inner = math.prod(extents)
    for d, (extent, stride) in enumerate(zip(extents, walk, strict=True)):
        inner //= extent
        if stride == 0 or extent == 1:
            continue
        term = index if inner == 1 else f"{index} / {inner}u"
        if d > 0:
            term = f"{term} % {extent}u"
        factor = "" if stride == 1 else f" * ({index_type})({stride})"
        terms.append(f"({term}){factor}")
    return " + ".join(terms) or "0u"


def index_type(*sizes: int) -> str:
    """Return the C type of indices of tensors of these ``sizes``: ``"u32"`` or, if need be, ``"u64"``."""
    return "u32" if max(sizes, default=0) <= MAX_INDEX_32 else "u64"


def ceil_div(a: int, b: int) -> int:
    """Return ``a / b``, rounded up."""
    return -(-a // b)


def power_of_two_below(n: int, limit: int) -> int:
    """Return the largest power of two up to ``limit`` that divides ``n`` (all of them divide 0)."""
    power = 1
    while power * 2 <= limit and n % (power * 2) == 0:
        power *= 2
    return power
