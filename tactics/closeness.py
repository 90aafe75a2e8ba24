"""How close a large result is to its reference: one pass in blocks that stay in the processor's cache, on several threads.

It tells results that are right at once. Whoever needs words for what is wrong looks again, and takes longer.
"""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

BLOCK = 1 << 13
"""Elements that are compared at a time: few enough that the BLAS starts no threads of its own for them."""
SHARE = 1 << 19
"""Elements from which on one more thread helps."""
SAFE_EXPONENT = 400
"""Numbers up to two to this power, and root mean squares down to its inverse, have squares in range."""


@dataclass(frozen=True)
class Yardstick:
    """A reference in double precision, flat, with what comparing needs of it.

    Parameters
    ----------
    norm
        Its Euclidean norm.
    largest
        Its largest magnitude; infinite where an element is not finite.
    """

    values: Array
    norm: float
    largest: float

    @staticmethod
    def of(reference: Array) -> Yardstick | None:
        """Return the yardstick of a real ``reference``; None of one that the quick way is not for."""
        if reference.dtype.kind in "cOUSTb" or reference.size == 0:
            return None
        with np.errstate(all="ignore"):
            values = np.ascontiguousarray(reference.astype(np.float64, copy=False)).reshape(-1)
            largest = float(max(values.max(), -values.min()))
            norm = math.sqrt(float(np.dot(values, values))) if largest < 2.0**SAFE_EXPONENT else math.inf
        if not math.isfinite(norm) or norm < 2.0**-SAFE_EXPONENT:
            return None
        return Yardstick(values, norm, largest)

    def error(self, result: Array, limit: float, factor: float) -> float | None:
        """Return the relative error ‖result − values‖ / ‖values‖ of a result that is right, else None.

        Parameters
        ----------
        limit
            That the relative error stays under.
        factor
            No element may be off by more than ``factor * limit`` times its own size plus the root mean square.
        """
        flat = np.ascontiguousarray(result).reshape(-1)
        threads = min(_most_threads(), max(1, flat.size // SHARE))
        step = -(-flat.size // threads // BLOCK) * BLOCK or BLOCK
        parts = range(0, flat.size, step)
        allowed = factor * limit
        if threads == 1:
            sums = [self._square(flat, 0, flat.size, allowed)]
        else:
            sums = list(
                _pool().map(lambda at: self._square(flat, at, min(flat.size, at + step), allowed), parts)
            )
        total = math.fsum(sums)
        error = math.sqrt(total) / self.norm if math.isfinite(total) else math.inf
        return error if error <= limit else None

    def _square(self, flat: Array, start: int, stop: int, allowed: float) -> float:
        """Return the sum of squared differences of some elements; infinite where one is too far off."""
        total, root = 0.0, self.norm / math.sqrt(flat.size)
        with np.errstate(all="ignore"):
            for at in range(start, stop, BLOCK):
                theirs = self.values[at : min(stop, at + BLOCK)]
                difference = _as_double(flat[at : min(stop, at + BLOCK)])
                difference -= theirs
                worst = max(float(difference.max()), -float(difference.min()))
                # most are close even to the smallest bound there is
                if (
                    not worst <= allowed * root
                    and not (np.abs(difference) <= allowed * (np.abs(theirs) + root)).all()
                ):
                    return math.inf
                total += float(np.dot(difference, difference))
        return total


def _as_double(block: Array) -> Array:
    """Return a copy in double precision; a bfloat16 is the upper half of a float32."""
    if block.dtype.name == "bfloat16":
        return (block.view(np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return block.astype(np.float64)


def _most_threads() -> int:
    return min(8, len(os.sched_getaffinity(0)))


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_most_threads(), "tactician-compare")
