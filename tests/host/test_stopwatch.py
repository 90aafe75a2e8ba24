"""Seconds by phase."""

from __future__ import annotations

import pytest
from tactician.tactics import stopwatch
from tactician.tactics.stopwatch import Stopwatch


def test_a_phase_within_another_is_not_counted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(100))
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: float(next(now)))
    clock = Stopwatch()
    with clock("check"):  # 0
        with clock("reference"):  # 1 to 2
            pass
        with clock("reference"):  # 3 to 4
            pass
    assert clock.seconds == {"reference": 2.0, "check": 3.0}
    with pytest.raises(RuntimeError), clock("check"):
        raise RuntimeError
    assert clock.seconds == {"reference": 2.0, "check": 4.0}


def test_those_of_another_process_are_added() -> None:
    clock = Stopwatch()
    clock.add({"time": 1.5})
    clock.add({"time": 0.5, "check": 1.0})
    assert clock.seconds == {"time": 2.0, "check": 1.0}
