"""Times calls on the CPU by the machine's monotonic clock."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tactician.plugins.target import Thunk, Timer

SAMPLE_SECONDS = 1e-3
"""Shortest sample that calls are batched to: far above the clock's resolution and an interrupt's length."""
MAX_SAMPLE_SECONDS = 0.1
MAX_ROTATION = 4
"""Copies of the weights that are cycled through: a launch may prepare each, which takes memory and time."""


@dataclass(frozen=True)
class _Contender:
    thunks: tuple[Thunk, ...]
    """The calls of one sample, in order."""


class CpuTimer(Timer):
    """One sample is a batch of calls that lasts a millisecond or more, with the garbage collector off.

    Contenders run one right after the other, as nodes of a network do: what the threads of one library
    still do when the next one starts (spinning for more work) is part of what a node costs.
    """

    def prepare(self, thunk: Thunk, rotate: Sequence[Thunk] = ()) -> _Contender:
        """Warm ``thunk`` and its rotated copies up, and find out how many calls make a sample."""
        thunks = tuple(rotate[:MAX_ROTATION]) or (thunk,)
        for call in thunks:
            call(None)  # the first call may bind buffers and prepare constants
        estimate = min(_seconds(thunks) for _ in range(3)) / len(thunks)
        count = max(1, math.ceil(SAMPLE_SECONDS / max(estimate, 1e-7)))
        if count > 1:
            # whole turns over the rotated copies, so that each sample sees the same mix
            count = math.ceil(count / len(thunks)) * len(thunks)
        limit = max(1, int(MAX_SAMPLE_SECONDS / max(estimate, 1e-7)))
        return _Contender(tuple(thunks[i % len(thunks)] for i in range(min(count, limit))))

    def round(self, contenders: Sequence[_Contender]) -> list[float]:
        """Take one sample of each contender, and return the seconds of one call of each."""
        enabled = gc.isenabled()
        gc.disable()
        try:
            return [_seconds(c.thunks) / len(c.thunks) for c in contenders]
        finally:
            if enabled:
                gc.enable()

    def conditions(self) -> dict[str, int | str]:
        """Return nothing: clocks of a CPU are not read."""
        return {}


def _seconds(thunks: Sequence[Thunk]) -> float:
    nothing: Any = None
    start = time.perf_counter()
    for thunk in thunks:
        thunk(nothing)
    return time.perf_counter() - start
