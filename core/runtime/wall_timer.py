"""Times thunks by the wall clock, each waited for: for work that no device timer can batch."""

from __future__ import annotations

import time
from collections.abc import Sequence

from tactician.plugins.target import Device, Thunk, Timer


class WallTimer(Timer):
    """One sample is one call and the wait for its end."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._stream = device.create_stream()

    def prepare(self, thunk: Thunk, rotate: Sequence[Thunk] = ()) -> Thunk:
        """Run ``thunk`` once."""
        self._once(thunk)
        return thunk

    def round(self, contenders: Sequence[Thunk]) -> list[float]:
        """Return the seconds of one call of each."""
        return [self._once(thunk) for thunk in contenders]

    def _once(self, thunk: Thunk) -> float:
        start = time.perf_counter()
        thunk(self._stream)
        self._device.synchronize(self._stream)
        return time.perf_counter() - start
