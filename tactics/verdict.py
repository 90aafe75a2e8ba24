"""The default rule, and the final outcome of every candidate once one is chosen."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import msgspec
from tactician.tactics.job import USABLE
from tactician.tactics.record import CandidateRecord, Outcome

CHALLENGE = 0.01
"""A challenger replaces the incumbent only if it is proven to be faster by more than this fraction."""


def default_choice(records: Sequence[CandidateRecord], incumbent: str | None) -> tuple[CandidateRecord, str]:
    """Return the choice among usable ``records``, and who made it: ``"incumbent"`` or ``"default"``.

    The incumbent stays unless the fastest is proven faster by more than ``CHALLENGE``. Else the fastest wins;
    of those that are not told apart from it, the one with the least workspace, then the first by id. Where
    nothing was timed, the first of ``records`` wins, which come in a fixed order of preference.
    """
    timed = [r for r in records if r.timing is not None]
    held = next((r for r in records if r.tactic == incumbent), None)
    if not timed:
        return (held, "incumbent") if held else (records[0], "default")
    leader = fastest(timed)
    if held is not None and held.timing is not None and not _is_slower(held, leader, CHALLENGE):
        return held, "incumbent"
    tied = [r for r in timed if not _is_slower(r, leader)]
    return min(tied, key=lambda r: (r.workspace, r.tactic)), "default"


def fastest(records: Sequence[CandidateRecord]) -> CandidateRecord:
    """Return the record with the least median; those without timing count as slowest."""
    return min(records, key=lambda r: (r.timing.median if r.timing else math.inf, r.tactic))


def final_records(
    records: Sequence[CandidateRecord], chosen: str, who: str, allowed: Collection[str] | None
) -> tuple[CandidateRecord, ...]:
    """Return ``records`` with their final outcomes.

    Parameters
    ----------
    chosen
        Id of the choice.
    who
        Who made it, in words for a reason.
    allowed
        Ids that a rule, lock, selector or hook left; None where nobody restricted the choice.
    """
    winner = next(r for r in records if r.tactic == chosen)
    return tuple(_final(r, winner, who, allowed) for r in records)


def regret(records: Sequence[CandidateRecord], chosen: str) -> float | None:
    """Return how much slower than the best the chosen candidate may be, as a fraction, by the intervals."""
    timed = [r for r in records if r.timing is not None and r.outcome in USABLE | {Outcome.FILTERED}]
    winner = next((r for r in timed if r.tactic == chosen), None)
    if winner is None or winner.timing is None:
        return None
    leader, bound = fastest(timed), 0.0
    if leader.timing is not None and leader.tactic != chosen:
        bound = winner.timing.high / leader.timing.median - 1
    lows = [r.timing.low for r in timed if r.timing is not None and r.tactic not in (chosen, leader.tactic)]
    if lows:
        bound = max(bound, winner.timing.median / max(min(lows), 1e-30) - 1)
    return max(0.0, bound)


def _final(
    record: CandidateRecord, winner: CandidateRecord, who: str, allowed: Collection[str] | None
) -> CandidateRecord:
    if record.tactic == winner.tactic:
        return msgspec.structs.replace(record, outcome=Outcome.CHOSEN)
    if record.outcome not in USABLE:
        return record
    if record.timing is None or winner.timing is None:
        if allowed is not None and record.tactic not in allowed:
            return msgspec.structs.replace(record, outcome=Outcome.FILTERED, reason=f"left out by {who}")
        return msgspec.structs.replace(record, outcome=Outcome.UNMEASURED)
    if _is_slower(record, winner, CHALLENGE):
        return msgspec.structs.replace(record, outcome=Outcome.SLOWER)
    if allowed is not None and record.tactic not in allowed:
        return msgspec.structs.replace(record, outcome=Outcome.FILTERED, reason=f"left out by {who}")
    reason = ""
    for first, second, word in ((winner, record, "faster"), (record, winner, "slower")):
        if _is_slower(first, second):
            reason = f"{word}, but not proven so by more than {100 * CHALLENGE:.0f} %"
    return msgspec.structs.replace(record, outcome=Outcome.TIE, reason=reason)


def _is_slower(record: CandidateRecord, other: CandidateRecord, by: float = 0.0) -> bool:
    """Return whether ``record`` is proven slower: its interval lies above the other's median, ``by`` more."""
    return (
        record.timing is not None
        and other.timing is not None
        and record.tactic != other.tactic
        and record.timing.low > (1 + by) * other.timing.median
    )
