"""Where the time of measuring goes: seconds by phase."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

Clock = Callable[[str], AbstractContextManager[None]]
"""``with clock(phase):`` keeps the seconds that a phase takes."""


def no_clock(phase: str) -> AbstractContextManager[None]:
    """Keep nothing."""
    return nullcontext()


class Stopwatch:
    """A clock. A phase within another one is not counted in that one too."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inner = 0.0

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Keep what ``phase`` takes, and add it to what it took before."""
        start, outer, self._inner = time.perf_counter(), self._inner, 0.0
        try:
            yield
        finally:
            whole = time.perf_counter() - start
            self.add({phase: whole - self._inner})
            self._inner = outer + whole

    def add(self, seconds: dict[str, float]) -> None:
        """Add what another one has kept."""
        for phase, value in seconds.items():
            self.seconds[phase] = self.seconds.get(phase, 0.0) + value
