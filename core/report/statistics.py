"""What samples of times say: medians with intervals, and whether one engine is faster than another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum
from statistics import median

import msgspec

NOISE_FLOOR = 0.01
"""Differences below this fraction are called the same: clocks alone do as much between two processes."""


class Verdict(StrEnum):
    """What a comparison found."""

    SAME = "SAME"
    FASTER = "FASTER"
    SLOWER = "SLOWER"
    UNSURE = "UNSURE"


class Summary(msgspec.Struct, frozen=True):
    """Seconds of one inference; ``low`` and ``high`` enclose the median with at least 95 % confidence."""

    median: float
    low: float
    high: float
    mean: float
    minimum: float
    p99: float
    samples: int


class Comparison(msgspec.Struct, frozen=True):
    """Time of this engine over the baseline's, less one (``-0.1``: 10 % less time), with a 95 % interval."""

    change: float
    low: float
    high: float
    verdict: Verdict


def summarize(samples: Sequence[float]) -> Summary:
    """Return the summary of single times in seconds."""
    ordered = sorted(samples)
    low, high = median_interval(ordered)
    p99 = ordered[min(len(ordered) - 1, math.ceil(0.99 * len(ordered)) - 1)]
    mean = math.fsum(ordered) / len(ordered)
    return Summary(median(ordered), low, high, mean, ordered[0], p99, len(ordered))


def median_interval(ordered: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Return the interval between two order statistics that holds the median with at least ``confidence``.

    Free of any assumption on the distribution: the number of samples below the median is binomial(n, 1/2).
    Below six samples no such interval reaches 95 %; then it is the whole range.
    """
    number = len(ordered)
    tail, rank = 0.0, 0  # tail: probability of at most rank samples below the median
    while rank < number // 2:
        tail += math.exp(_log_binomial(number, rank) - number * math.log(2))
        if 2 * tail > 1 - confidence:
            break
        rank += 1
    lowest = max(rank - 1, 0)
    return ordered[lowest], ordered[number - 1 - lowest]


def compare_paired(these: Sequence[float], others: Sequence[float]) -> Comparison:
    """Compare two engines that were timed in the same rounds, by their ratio in each round."""
    ratios = sorted(a / b for a, b in zip(these, others, strict=True))
    low, high = median_interval(ratios)
    return _judge(median(ratios) - 1, low - 1, high - 1, len(ratios))


def compare_apart(this: Summary, other: Summary) -> Comparison:
    """Compare with times that were taken earlier: the interval takes both at their worst."""
    return _judge(
        this.median / other.median - 1,
        this.low / other.high - 1,
        this.high / other.low - 1,
        min(this.samples, other.samples),
    )


def _judge(change: float, low: float, high: float, samples: int) -> Comparison:
    verdict = Verdict.UNSURE
    if samples >= 6:
        if high < -NOISE_FLOOR:
            verdict = Verdict.FASTER
        elif low > NOISE_FLOOR:
            verdict = Verdict.SLOWER
        elif low >= -NOISE_FLOOR and high <= NOISE_FLOOR:
            verdict = Verdict.SAME
    return Comparison(change, low, high, verdict)


def _log_binomial(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
