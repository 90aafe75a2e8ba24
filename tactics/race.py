"""The race: which of several contenders is fastest, by interleaved rounds and paired log-ratios.

Each round times every contender that is still in the race once, in an order drawn anew, so that a drifting
clock and the machine's other work hit all alike. What is compared is log(t_contender / t_leader) within
rounds: its median, with an interval of order statistics that assumes nothing about the noise.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
from tactician.tactics.record import Timing

if TYPE_CHECKING:
    from tactician.plugins.target import Timer

Clock = Callable[[], float]
Around = Callable[[Sequence[str]], AbstractContextManager[Any]]

BAIL_OUT_ROUNDS = 3
"""Rounds after which what is far behind in every one of them may drop out."""
FEW_ROUNDS, CLEAR_LEAD = 8, math.log(1.02)
"""Before so many rounds no interval has 99 % confidence: all of them must show a lead as clear as that."""
_WIDEST, _DROPPED = math.log(10), 1e-6


@dataclass(frozen=True)
class RacePolicy:
    """How long a race goes on.

    Parameters
    ----------
    min_rounds, max_rounds
        Fewest and most rounds; what falls far behind may drop out before.
    max_seconds
        Wall time after which no round beyond ``min_rounds`` is begun.
    bail_out
        A contender that is this many times slower than the leader in each of the first rounds drops out.
    confidence
        Of the interval that must exclude the leader before a contender drops out.
    indifference
        The race ends where, after ``settle_rounds``, all intervals lie within this fraction of the leader.
    clock_tolerance
        A round in which the SM clock differs by more than this fraction is discarded and repeated.
    max_discarded
        Rounds that are discarded at most.
    """

    min_rounds: int = 5
    max_rounds: int = 60
    max_seconds: float = 3.0
    bail_out: float = 1.5
    confidence: float = 0.99
    indifference: float = 0.005
    settle_rounds: int = 15
    clock_tolerance: float = 0.02
    max_discarded: int = 20


@dataclass(frozen=True)
class RaceResult:
    """What a race found.

    Parameters
    ----------
    timings
        By contender. The leader's interval is that of its own median; the others' is that of their ratio to
        the leader, times its median, so that all are comparable although some dropped out early.
    leader
        The fastest; None where all were rejected.
    ties
        The leader and those that were not told apart from it.
    rejected
        Reason by contender: too fast to be true.
    rounds, discarded
        Rounds that count, and that do not.
    conditions
        State of the machine in the last round that counts.
    """

    timings: Mapping[str, Timing]
    leader: str | None
    ties: tuple[str, ...]
    rejected: Mapping[str, str]
    rounds: int
    discarded: int
    conditions: Mapping[str, int | str]


def race(
    contenders: Mapping[str, Any],
    timer: Timer,
    policy: RacePolicy,
    rng: np.random.Generator,
    *,
    floor_seconds: Mapping[str, float] | None = None,
    clock: Clock = time.perf_counter,
    around: Around = nullcontext,
) -> RaceResult:
    """Race ``contenders``, as ``timer.prepare`` returned them, by name.

    Parameters
    ----------
    floor_seconds
        By name: a contender whose median is less is rejected, since no machine of this kind can be that fast.
    clock
        Wall time in seconds, for ``policy.max_seconds``.
    around
        Returns a context for each round, given the names that run in it, in order.
    """
    state = _Race(contenders, timer, policy, rng, floor_seconds or {}, around)
    end = clock() + policy.max_seconds
    while not state.is_settled(late=clock() > end):
        state.run_round()
    return state.result()


@dataclass
class _Race:
    contenders: Mapping[str, Any]
    timer: Timer
    policy: RacePolicy
    rng: np.random.Generator
    floors: Mapping[str, float]
    around: Around
    rounds: int = 0
    discarded: int = 0
    conditions: Mapping[str, int | str] = field(default_factory=dict)
    rejected: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.alive = list(self.contenders)
        self.samples: dict[str, list[float]] = {name: [] for name in self.contenders}
        self.clocks: list[int] = []
        self._streak = 0

    def run_round(self) -> None:
        """Time each contender that is left once, and drop those that are behind."""
        order = [self.alive[i] for i in self.rng.permutation(len(self.alive))]
        with self.around(order):
            seconds = self.timer.round([self.contenders[name] for name in order])
        conditions = self.timer.conditions()
        if self._is_disturbed(conditions):
            self.discarded += 1
            self._streak += 1
            return
        self._streak = 0
        self.conditions = conditions
        if isinstance(mhz := conditions.get("sm_clock_mhz"), int):
            self.clocks.append(mhz)
        for name, value in zip(order, seconds, strict=True):
            # a timer's resolution may be coarser than the work; the logarithm needs something
            self.samples[name].append(max(value, 1e-12))
        self.rounds += 1
        self._drop()

    def is_settled(self, *, late: bool) -> bool:
        """Return whether more rounds would change nothing, or must not be begun."""
        policy = self.policy
        if not self.alive or self.rounds >= policy.max_rounds:
            return True
        if self.rounds < policy.min_rounds:
            return False
        if len(self.alive) == 1 or late:
            return True
        if self.rounds < policy.settle_rounds:
            return False
        leader = self._leader()
        bounds = [self._ratio(name, leader, policy.confidence)[1:] for name in self.alive if name != leader]
        limit = math.log1p(policy.indifference)
        return all(-limit < low and high < limit for low, high in bounds)

    def result(self) -> RaceResult:
        """Return timings relative to the leader, and who is tied with it."""
        leader = self._leader() if self.alive else None
        raced = [name for name in self.contenders if name not in self.rejected]
        timings = {name: self._timing(name, leader) for name in raced} if leader is not None else {}
        ties = tuple(name for name in self.alive if name == leader or self._is_tied(timings, name, leader))
        return RaceResult(
            timings, leader, ties, self.rejected, self.rounds, self.discarded, dict(self.conditions)
        )

    def _is_tied(self, timings: Mapping[str, Timing], name: str, leader: str | None) -> bool:
        return leader is not None and timings[name].low <= timings[leader].median

    def _is_disturbed(self, conditions: Mapping[str, int | str]) -> bool:
        """Return whether the clock moved or a throttle appeared; three in a row are its new state."""
        if not self.conditions or self.discarded >= self.policy.max_discarded or self._streak >= 3:
            return False
        before, now = self.conditions.get("sm_clock_mhz"), conditions.get("sm_clock_mhz")
        moved = (
            isinstance(before, int)
            and isinstance(now, int)
            and abs(now - before) > self.policy.clock_tolerance * before
        )
        return moved or conditions.get("throttle") != self.conditions.get("throttle")

    def _drop(self) -> None:
        self._reject_impossible()
        if not self.alive:
            return
        leader = self._leader()
        self.alive = [name for name in self.alive if name == leader or not self._is_behind(name, leader)]

    def _is_behind(self, name: str, leader: str) -> bool:
        if self.rounds < BAIL_OUT_ROUNDS:
            return False
        if min(self._log_ratios(name, leader)) > math.log(self.policy.bail_out):
            return True
        if self.rounds < self.policy.min_rounds:
            return False
        margin = CLEAR_LEAD if self.rounds < FEW_ROUNDS else 0.0
        return self._ratio(name, leader, self.policy.confidence)[1] > margin

    def _reject_impossible(self) -> None:
        if self.rounds < min(3, self.policy.min_rounds):
            return
        for name in list(self.alive):
            floor, found = self.floors.get(name, 0.0), median(self.samples[name])
            if found < floor:
                self.rejected[name] = (
                    f"{found:.2e} s is faster than this device can be ({floor:.2e} s): it can't have done "
                    "the work"
                )
                self.alive.remove(name)

    def _leader(self) -> str:
        """Return the fastest that is left: by pairs with the one whose own median is least."""
        first = min(self.alive, key=lambda name: (median(self.samples[name]), name))
        return min(self.alive, key=lambda name: (median(self._log_ratios(name, first)), name))

    def _log_ratios(self, name: str, leader: str) -> list[float]:
        """Return log(t / t_leader) of the rounds in which both took part."""
        pairs = zip(self.samples[name], self.samples[leader], strict=False)
        return [math.log(mine / theirs) for mine, theirs in pairs]

    def _ratio(self, name: str, leader: str, confidence: float) -> tuple[float, float, float]:
        """Return the median log-ratio to the leader and its interval."""
        return _median_interval(self._log_ratios(name, leader), confidence)

    def _timing(self, name: str, leader: str) -> Timing:
        own, _, _ = _median_interval([math.log(t) for t in self.samples[leader]], 0.95)
        if name == leader:
            middle, low, high = _median_interval([math.log(t) for t in self.samples[name]], 0.95)
        else:
            middle, low, high = (own + x for x in self._ratio(name, leader, 0.95))
            if name not in self.alive:
                # it was told apart from who led then, and who leads now is no slower
                middle, low = max(middle, own + _DROPPED), max(low, own + _DROPPED)
        # a single sample says nothing of its spread; files want a number
        low, high = max(low, middle - _WIDEST), min(high, middle + _WIDEST)
        mhz = round(median(self.clocks)) if self.clocks else None
        return Timing(math.exp(middle), math.exp(low), math.exp(high), len(self.samples[name]), mhz)


def _median_interval(values: Sequence[float], confidence: float) -> tuple[float, float, float]:
    """Return the median and its confidence interval.

    The interval's ends are order statistics, exact for any distribution; it is the range where there are too
    few values for that confidence, and unbounded for a single one.
    """
    if len(values) < 2:
        return values[0], -math.inf, math.inf
    ordered = sorted(values)
    outside = _outside(len(values), confidence)
    return median(ordered), ordered[outside], ordered[-1 - outside]


@cache
def _outside(count: int, confidence: float) -> int:
    """Return how many of the smallest of ``count`` values lie outside of the median's interval."""
    tail, outside = 0.5**count, 0
    # the median is below the k+1 smallest values with probability P(Binomial(count, 1/2) <= k)
    while True:
        tail += math.comb(count, outside + 1) * 0.5**count
        if tail > (1 - confidence) / 2:
            return outside
        outside += 1
