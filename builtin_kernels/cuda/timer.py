"""Times launches on a GPU: CUDA events around replays of a graph that holds many copies of the launch."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tactician.plugins.target import Thunk, Timer

if TYPE_CHECKING:
    from tactician.builtin_kernels.cuda.device import CudaDevice

SAMPLE_SECONDS = 300e-6
"""Length of one sample: far above the resolution of events (about 0.5 us)."""
MAX_COPIES = 64
CONDITIONS_SECONDS = 5e-3
"""How long what was read of clocks holds: to read them takes longer than a round of few contenders."""


@dataclass(frozen=True)
class _Contender:
    replay: Thunk
    copies: int
    start: Any
    end: Any


class CudaTimer(Timer):
    """One sample is one replay of a graph of ``copies`` launches, so that it lasts hundreds of microseconds."""

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        self._stream = device.create_stream()
        self._conditions: dict[str, int | str] = {}
        self._read_at = -math.inf

    def prepare(self, thunk: Thunk, rotate: Sequence[Thunk] = ()) -> _Contender:
        """Warm ``thunk`` up, estimate its time, and capture enough copies, over the rotated weights in turn."""
        thunks = list(rotate) or [thunk]
        stream = self._stream
        thunk(stream)
        self._device.synchronize(stream)
        start, end = self._event(), self._event()
        single = self._device.capture(thunk)
        single(stream)
        estimate = min(self._once(single, start, end) for _ in range(3))
        copies = max(1, min(MAX_COPIES, round(SAMPLE_SECONDS / max(estimate, 1e-7))))
        # whole turns over the rotated copies, so that each sample sees the same mix
        copies = math.ceil(copies / len(thunks)) * len(thunks) if copies > 1 else 1

        def batch(stream: Any) -> None:
            for i in range(copies):
                thunks[i % len(thunks)](stream)

        replay = self._device.capture(batch)
        replay(stream)
        self._device.synchronize(stream)
        return _Contender(replay, copies, start, end)

    def round(self, contenders: Sequence[_Contender]) -> list[float]:
        """Enqueue one sample of each contender, wait once, and return the seconds of one launch of each."""
        for contender in contenders:
            self._stream.record(contender.start)
            contender.replay(self._stream)
            self._stream.record(contender.end)
        self._device.synchronize(self._stream)
        return [(c.end - c.start) * 1e-3 / c.copies for c in contenders]

    def conditions(self) -> dict[str, int | str]:
        """Return SM clock and throttle reasons as NVML reads them."""
        from tactician.builtin_kernels.cuda.nvml import conditions

        if time.monotonic() - self._read_at > CONDITIONS_SECONDS:
            self._conditions, self._read_at = conditions(self._device.index), time.monotonic()
        return dict(self._conditions)

    def _event(self) -> Any:
        from cuda.core import EventOptions

        return self._device.core.create_event(EventOptions(timing_enabled=True))

    def _once(self, replay: Thunk, start: Any, end: Any) -> float:
        self._stream.record(start)
        replay(self._stream)
        self._stream.record(end)
        self._device.synchronize(self._stream)
        return float(end - start) * 1e-3
