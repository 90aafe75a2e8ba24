"""The decision record: for each operator call every candidate, what became of it, and who chose."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Outcome(StrEnum):
    """What became of a candidate."""

    CHOSEN = "chosen"
    TIE = "tie"  # not told apart from the winner by the measurement; a stable rule decided
    SLOWER = "slower"
    WRONG = "wrong"  # ran, but its output failed a check
    FAILED = "failed"  # accepted, then did not compile or run
    DECLINED = "declined"
    FILTERED = "filtered"  # taken out by a policy: sources, numerics, workspace limit, a hook or a selector
    PRUNED = "pruned"  # not timed: the limit on candidates was reached
    UNMEASURED = "unmeasured"  # accepted, and nothing had to be or could be timed


class Timing(msgspec.Struct, frozen=True):
    """Seconds that one call takes: median with a 95 % interval, over ``samples`` rounds."""

    median: float
    low: float
    high: float
    samples: int
    sm_clock_mhz: int | None = None


class CandidateRecord(msgspec.Struct, frozen=True):
    """One candidate of one signature.

    ``error`` is the relative error ‖out − ref‖ / ‖ref‖ of the worst output against the reference in higher
    precision, ``tolerance`` what it had to stay under; ``workspace`` in bytes; ``version`` is that of the tactic.
    """

    tactic: str
    plugin: str
    outcome: Outcome
    reason: str = ""
    timing: Timing | None = None
    error: float | None = None
    tolerance: float | None = None
    workspace: int = 0
    numerics: tuple[str, ...] = ()
    cached: bool = False
    version: int = 1


class Decision(msgspec.Struct, frozen=True):
    """How the tactic of one operator call was chosen.

    ``nodes`` are all nodes that share the signature. ``chosen_by`` is ``"default"``, ``"incumbent"``, ``"lock"``,
    ``"selector"``, ``"hook:<plugin>"`` or ``"cli"``. ``note`` says what a reader should know (fallback to another
    target, a selector that was ignored). ``operators`` has, for each of ``nodes`` that are fused, the names of the
    operators in it; it is empty for others. ``regret`` bounds, as a fraction, how much slower than the best candidate
    the chosen one may be, by the intervals.
    """

    signature: str
    key: str
    nodes: tuple[str, ...]
    target: str
    chosen: str
    chosen_by: str
    candidates: tuple[CandidateRecord, ...]
    note: str = ""
    regret: float | None = None
    operators: tuple[tuple[str, ...], ...] = ()

    @property
    def winner(self) -> CandidateRecord:
        """The record of the chosen candidate."""
        return next(c for c in self.candidates if c.tactic == self.chosen)


class Fusion(msgspec.Struct, frozen=True):
    """A subgraph that could be one node: what it takes so, what its nodes take one by one, and what came of it.

    ``name`` is that of the node where it is ``kept``; seconds are None where something was not timed; ``tactic`` is
    the fastest for the whole. ``reason`` says who or what decided; ``tie`` that the measurement did not tell the whole
    and its parts apart; ``set_aside`` which tactics for the whole failed or were wrong, with the reason.
    """

    name: str
    nodes: tuple[str, ...]
    signature: str
    kept: bool
    reason: str
    tactic: str = ""
    seconds: float | None = None
    seconds_apart: float | None = None
    tie: bool = False
    set_aside: tuple[str, ...] = ()
