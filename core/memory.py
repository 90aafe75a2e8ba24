"""Lifetimes to offsets: where each tensor lies in one arena. A pure function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ALIGNMENT = 256
"""Every tensor starts at a multiple of this many bytes."""


@dataclass(frozen=True)
class Lifetime:
    """A tensor of ``nbytes`` bytes that must hold its contents from step ``first`` to step ``last``, both included."""

    nbytes: int
    first: int
    last: int


@dataclass(frozen=True)
class MemoryPlan:
    """Offsets in bytes, parallel to the lifetimes, and what the plan takes.

    ``peak`` is the arena's size, ``naive`` the sum of all tensors, ``lower_bound`` the largest sum of tensors that are
    alive at one step: no plan can take less.
    """

    offsets: tuple[int, ...]
    peak: int
    naive: int
    lower_bound: int


def plan_memory(lifetimes: Sequence[Lifetime]) -> MemoryPlan:
    """Place tensors so that no two that are alive at once overlap.

    Greedy by size: the largest tensor first, each into the smallest gap that fits between those already placed that
    live at the same time (Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net Inference", 2020).
    """
    sizes = [-(-t.nbytes // ALIGNMENT) * ALIGNMENT for t in lifetimes]
    order = sorted(range(len(sizes)), key=lambda i: (-sizes[i], lifetimes[i].first, i))
    offsets = [0] * len(sizes)
    placed: list[int] = []
    for i in order:
        if sizes[i]:
            neighbours = [j for j in placed if _overlap(lifetimes[i], lifetimes[j])]
            offsets[i] = _best_gap(sizes[i], sorted((offsets[j], offsets[j] + sizes[j]) for j in neighbours))
            placed.append(i)
    peak = max((offsets[i] + sizes[i] for i in placed), default=0)
    return MemoryPlan(tuple(offsets), peak, sum(sizes), _lower_bound(lifetimes, sizes))


def _overlap(a: Lifetime, b: Lifetime) -> bool:
    return a.first <= b.last and b.first <= a.last


def _best_gap(size: int, taken: list[tuple[int, int]]) -> int:
    """Return the start of the tightest gap of at least ``size`` bytes, or the end of all that is taken."""
    best, best_slack, end = -1, 0, 0
    for start, stop in taken:
        slack = start - end - size
        if slack >= 0 and (best < 0 or slack < best_slack):
            best, best_slack = end, slack
        end = max(end, stop)
    return best if best >= 0 else end


def _lower_bound(lifetimes: Sequence[Lifetime], sizes: Sequence[int]) -> int:
    changes: dict[int, int] = {}
    for lifetime, size in zip(lifetimes, sizes, strict=True):
        changes[lifetime.first] = changes.get(lifetime.first, 0) + size
        changes[lifetime.last + 1] = changes.get(lifetime.last + 1, 0) - size
    live = bound = 0
    for step in sorted(changes):
        live += changes[step]
        bound = max(bound, live)
    return bound
