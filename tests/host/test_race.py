"""The race finds the fastest under noise, drift and spikes, and says what it could not tell apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from fakes import Contender, FakeDevice, ScriptedTimer
from tactician.tactics.race import RacePolicy, RaceResult, race

POLICY = RacePolicy()


def run(
    times: Sequence[float] | dict[str, float], policy: RacePolicy = POLICY, seed: int = 0, **noise: float
) -> tuple[RaceResult, ScriptedTimer]:
    named = times if isinstance(times, dict) else {f"t{i}": t for i, t in enumerate(times)}
    timer = ScriptedTimer(FakeDevice(), seed=seed, **noise)
    contenders = {name: Contender(t, ()) for name, t in named.items()}
    return race(contenders, timer, policy, np.random.default_rng(seed), clock=lambda: 0.0), timer


def test_without_noise_the_fastest_wins_in_few_rounds() -> None:
    result, timer = run({"slow": 3e-5, "fast": 1e-5, "close": 1.05e-5})
    assert result.leader == "fast"
    assert result.ties == ("fast",)
    assert result.rounds == POLICY.min_rounds
    assert timer.samples == 3 + 3 + 3 + 2 + 2, "what is far behind drops out after three rounds"
    assert result.timings["fast"].median == pytest.approx(1e-5)
    assert result.timings["slow"].median == pytest.approx(3e-5)
    assert result.timings["slow"].samples == 3


def test_one_contender_is_timed_the_fewest_rounds() -> None:
    result, timer = run([1e-5])
    assert (result.leader, result.rounds, timer.samples) == ("t0", 5, 5)


def test_no_contender_no_leader() -> None:
    assert run([])[0].leader is None


def test_equal_contenders_tie_and_the_race_ends() -> None:
    result, _ = run([1e-5] * 4, noise=0.002)
    assert set(result.ties) >= {result.leader}
    assert len(result.ties) >= 3
    assert POLICY.settle_rounds <= result.rounds <= POLICY.max_rounds


def test_the_floor_of_rounds_is_kept_and_the_cap_too() -> None:
    assert run([1e-5, 1.02e-5], RacePolicy(min_rounds=30))[0].rounds == 30
    result, _ = run([1e-5, 1.0001e-5], RacePolicy(max_rounds=12), noise=0.05)
    assert result.rounds == 12


def test_no_round_is_begun_when_time_is_up() -> None:
    ticks = iter(range(1000))
    timer = ScriptedTimer(FakeDevice(), noise=0.05)
    contenders = {"a": Contender(1e-5, ()), "b": Contender(1e-5, ())}
    policy = RacePolicy(max_seconds=8)
    result = race(contenders, timer, policy, np.random.default_rng(0), clock=lambda: next(ticks))
    assert policy.min_rounds <= result.rounds < 10


TYPICAL = {"noise": 0.006, "drift": 0.025, "spikes": 0.02}


def draw(seed: int, count: int = 12) -> list[float]:
    """Return times of ``count`` contenders, a few per cent apart."""
    gaps = np.random.default_rng(seed).exponential(0.08, count)
    return [float(t) for t in 2e-5 * np.exp(gaps - gaps.min())]


def test_the_race_finds_the_fastest_under_typical_noise() -> None:
    regrets, samples = [], 0
    for seed in range(60):
        times = draw(seed)
        result, timer = run(times, seed=seed, **TYPICAL)
        assert result.leader is not None
        regrets.append(times[int(result.leader[1:])] / min(times) - 1)
        samples += timer.samples
        assert all(times[int(name[1:])] / min(times) < 1.02 for name in result.ties)
    assert np.mean(regrets) < 0.001
    assert max(regrets) < 0.01
    assert samples / 60 < 12 * 30, "most contenders drop out early"


def test_one_after_the_other_would_do_worse() -> None:
    """The control: the same number of samples, but each contender timed alone, as most tuners do."""
    sequential, interleaved = [], []
    for seed in range(60):
        times = draw(seed)
        result, timer = run(times, seed=seed, **TYPICAL)
        assert result.leader is not None
        interleaved.append(times[int(result.leader[1:])] / min(times) - 1)
        alone = ScriptedTimer(FakeDevice(), seed=seed, **TYPICAL)
        each = timer.samples // len(times)
        means = [np.mean([alone.round([Contender(t, ())])[0] for _ in range(each)]) for t in times]
        sequential.append(times[int(np.argmin(means))] / min(times) - 1)
    assert np.mean(sequential) > 3 * np.mean(interleaved)


def test_intervals_hold_the_truth() -> None:
    """The ratio to the leader is within the 95 % interval about that often."""
    inside = total = 0
    for seed in range(150):
        times = {"a": 1e-5, "b": 1.008e-5}
        result, _ = run(times, RacePolicy(min_rounds=25, max_rounds=25), seed=seed, **TYPICAL)
        if result.leader == "a":
            a, b = result.timings["a"].median, result.timings["b"]
            inside += b.low / a <= 1.008 <= b.high / a
            total += 1
    assert total > 130
    assert inside / total > 0.88


def test_the_order_of_a_round_is_drawn_anew() -> None:
    class Noting(ScriptedTimer):
        orders: list[tuple[float, ...]]

        def round(self, contenders: Sequence[Contender]) -> list[float]:
            self.orders.append(tuple(c.seconds for c in contenders))
            return super().round(contenders)

    timer = Noting(FakeDevice(), noise=0.05)
    timer.orders = []
    contenders = {str(i): Contender(1e-5 + i * 1e-9, ()) for i in range(5)}
    race(contenders, timer, POLICY, np.random.default_rng(0), clock=lambda: 0.0)
    assert len({o for o in timer.orders if len(o) == 5}) > 3


class Machine(ScriptedTimer):
    """Goes through a list of states, one for each round, and stays in the last; a low clock makes it slow."""

    states: list[dict[str, int | str]]

    def round(self, contenders: Sequence[Contender]) -> list[float]:
        self.state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        slowness = 2000 / float(self.state.get("sm_clock_mhz", 2000))
        return [slowness * t for t in super().round(contenders)]

    def conditions(self) -> dict[str, int | str]:
        return self.state


def run_on(states: list[dict[str, int | str]]) -> RaceResult:
    timer = Machine(FakeDevice())
    timer.states = states
    contenders: dict[str, Any] = {"a": Contender(1e-5, ()), "b": Contender(1.05e-5, ())}
    return race(contenders, timer, POLICY, np.random.default_rng(0), clock=lambda: 0.0)


def test_rounds_at_another_clock_are_repeated() -> None:
    fast: dict[str, int | str] = {"sm_clock_mhz": 1980, "throttle": "0x0"}
    slow: dict[str, int | str] = {"sm_clock_mhz": 1500, "throttle": "0x0"}
    hot: dict[str, int | str] = {"sm_clock_mhz": 1975, "throttle": "0x40"}
    result = run_on([fast, slow, fast, hot, fast])
    assert (result.rounds, result.discarded) == (5, 2)
    assert result.timings["a"].sm_clock_mhz == 1980
    assert result.timings["a"].high == pytest.approx(1e-5 * 2000 / 1980)
    assert result.conditions == fast


def test_a_machine_that_stays_slow_is_timed_as_it_is() -> None:
    fast: dict[str, int | str] = {"sm_clock_mhz": 1980}
    slow: dict[str, int | str] = {"sm_clock_mhz": 1500}
    result = run_on([fast, slow])
    assert result.leader == "a"
    assert result.discarded == 3
    assert result.rounds == 5


def test_discarding_is_bounded() -> None:
    states: list[dict[str, int | str]] = [{"sm_clock_mhz": 2000 - 100 * (i % 2)} for i in range(200)]
    result = run_on(states)
    assert result.discarded <= POLICY.max_discarded
    assert result.rounds >= POLICY.min_rounds


def test_faster_than_the_machine_can_be_is_no_winner() -> None:
    timer = ScriptedTimer(FakeDevice())
    contenders = {"cheat": Contender(1e-7, ()), "honest": Contender(1e-5, ())}
    floors = {"cheat": 2e-6, "honest": 2e-6}
    result = race(
        contenders, timer, POLICY, np.random.default_rng(0), floor_seconds=floors, clock=lambda: 0.0
    )
    assert result.leader == "honest"
    assert "can't have done the work" in result.rejected["cheat"]
    assert set(result.timings) == {"honest"}


def test_a_timer_without_resolution_is_survived() -> None:
    result, _ = run({"a": 0.0, "b": 1e-5})
    assert result.leader == "a"


def test_times_of_those_who_dropped_out_are_comparable() -> None:
    """Although the machine got twice as slow after the loser had left, its time is 1.2 times the winner's."""

    class Slowing(ScriptedTimer):
        def round(self, contenders: Sequence[Contender]) -> list[float]:
            factor = 1.0 if len(contenders) == 3 else 2.0
            return [factor * t for t in super().round(contenders)]

    timer = Slowing(FakeDevice(), noise=0.001)
    contenders = {"a": Contender(1e-5, ()), "b": Contender(1.0001e-5, ()), "loser": Contender(1.2e-5, ())}
    result = race(contenders, timer, POLICY, np.random.default_rng(1), clock=lambda: 0.0)
    leader = result.timings[str(result.leader)]
    assert result.timings["loser"].samples < leader.samples
    assert result.timings["loser"].median / leader.median == pytest.approx(1.2, rel=0.01)
