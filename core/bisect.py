"""Finds which of several changes break something, by trying parts of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

Item = TypeVar("Item")


def minimal_cause(items: Sequence[Item], is_bad: Callable[[Sequence[Item]], bool]) -> list[Item]:
    """Return a subset of ``items`` that is bad, and of which each single one is needed for that.

    Halves are tried first, then smaller and smaller parts and what remains without them: about ``2 log2(n)`` tries
    for a single cause, more where several must come together.

    Parameters
    ----------
    items
        All together they must be bad, and none of them good.
    is_bad
        Tries a subset, in the order of ``items``. The same subset is never tried twice.

    References
    ----------
    The algorithm ddmin of Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", 2002.
    """
    known: dict[tuple[int, ...], bool] = {}

    def bad(indices: Sequence[int]) -> bool:
        key = tuple(indices)
        if key not in known:
            known[key] = is_bad([items[i] for i in key])
        return known[key]

    left, parts = list(range(len(items))), 2
    while len(left) > 1:
        chunks = _split(left, parts)
        rests = [[i for i in left if i not in chunk] for chunk in chunks] if parts > 2 else []
        smaller = next((c for c in (*chunks, *rests) if bad(c)), None)
        if smaller is None:
            if parts >= len(left):
                break
            parts = min(2 * parts, len(left))
        else:
            parts = 2 if smaller in chunks else max(parts - 1, 2)
            left = smaller
    return [items[i] for i in left]


def _split(indices: list[int], parts: int) -> list[list[int]]:
    size, more = divmod(len(indices), parts)
    chunks, start = [], 0
    for number in range(parts):
        end = start + size + (number < more)
        chunks.append(indices[start:end])
        start = end
    return chunks
