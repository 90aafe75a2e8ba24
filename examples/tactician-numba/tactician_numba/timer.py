"""Times calls by the wall clock, in samples that are long against what the clock can tell apart."""

from __future__ import annotations

import gc
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tactician import Timer

Call = Callable[[Any], None]

RESOLUTION_SHARE = 0.01
"""Most of a sample that the clock's step may be."""
LEAST_SECONDS = 1e-3
"""Shortest sample: an interrupt takes some microseconds, and must not look like a difference."""
MOST_SECONDS = 0.1
"""Where rotated copies of the weights would make a sample longer than this, it stops after some of them."""
TRIALS = 3


@dataclass(frozen=True)
class Sample:
    """The calls of one sample, in order."""

    calls: tuple[Call, ...]

    def seconds(self) -> float:
        """Make the calls and return the wall time of all of them."""
        start = time.perf_counter()
        for call in self.calls:
            call(None)
        return time.perf_counter() - start


class WallClockTimer(Timer):
    """A round takes one sample of each contender, right after each other, with the garbage collector off.

    A sample repeats the call until the clock's step is less than a hundredth of it. The order is the
    caller's: the race draws it anew for every round, so drift and other work on the machine hit all alike.
    """

    def __init__(self) -> None:
        self._least = max(LEAST_SECONDS, clock_step() / RESOLUTION_SHARE)

    def prepare(self, thunk: Call, rotate: Sequence[Call] = ()) -> Sample:
        """Warm ``thunk`` and its rotated copies up, and find out how many calls make a sample."""
        turn = Sample(tuple(rotate) or (thunk,))
        turn.seconds()  # touches every copy once
        seconds = max(min(turn.seconds() for _ in range(TRIALS)), clock_step())
        if seconds > MOST_SECONDS:
            calls = max(1, math.floor(len(turn.calls) * MOST_SECONDS / seconds))
            return Sample(turn.calls[:calls])
        # whole turns over the copies, so that every sample has the same mix
        return Sample(turn.calls * math.ceil(self._least / seconds))

    def round(self, contenders: Sequence[Sample]) -> list[float]:
        """Take one sample of each contender, in the order given; return the seconds of one call of each."""
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            return [sample.seconds() / len(sample.calls) for sample in contenders]
        finally:
            if was_enabled:
                gc.enable()


def clock_step() -> float:
    """Return the smallest difference in seconds that the clock shows: what two readings in a row differ by."""
    readings = [time.perf_counter() for _ in range(100)]
    steps = [b - a for a, b in itertools.pairwise(readings) if b > a]
    return max(min(steps, default=0.0), time.get_clock_info("perf_counter").resolution)
