"""One call on its way through measuring: its candidates, their launches, and what is known of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
from tactician.signature import OpSignature
from tactician.tactics.admission import Admission
from tactician.tactics.cache_rows import CacheRow
from tactician.tactics.case import Case
from tactician.tactics.record import CandidateRecord, Outcome, Timing
from tactician.tactics.registry import Candidate
from tactician.tactics.tactic import Launch

USABLE = frozenset((Outcome.CHOSEN, Outcome.TIE, Outcome.SLOWER, Outcome.UNMEASURED))
"""Outcomes of candidates that may be chosen."""


@dataclass
class Job:
    """One signature: what is to be measured, and the records so far.

    Parameters
    ----------
    accepted
        Candidates in order of preference.
    records
        By id, of the accepted ones.
    refused
        Records of those that declined.
    allowed
        Accepted, and not forbidden by any policy.
    contenders
        Of these, those that may be tried.
    incumbent
        Id of the last winner.
    fresh
        Contenders that are to be measured next.
    anchor
        Measured before, and raced again so that the fresh ones compare with all the others.
    launches
        By id, what ``Tactic.prepare`` returned or raised.
    case
        What candidates are checked on, once it is made up.
    """

    signature: OpSignature
    accepted: Sequence[Candidate]
    records: dict[str, CandidateRecord]
    refused: Sequence[CandidateRecord]
    allowed: Sequence[Candidate]
    contenders: Sequence[Candidate]
    incumbent: str | None
    fresh: Sequence[Candidate] = ()
    anchor: Candidate | None = None
    launches: dict[str, Launch | BaseException] = field(default_factory=dict)
    case: Case | None = None

    @property
    def to_prepare(self) -> list[Candidate]:
        """Candidates that will run, and that are not prepared yet."""
        runs = [*self.fresh, *([self.anchor] if self.anchor else [])]
        return [c for c in runs if c.id not in self.launches]

    @property
    def has_more(self) -> bool:
        """Whether there are contenders beside the fresh ones that nothing is known of."""
        fresh = {c.id for c in self.fresh}
        return any(c.id not in self.records and c.id not in fresh for c in self.contenders)

    def turn_to(self, fresh: Sequence[Candidate]) -> None:
        """Measure ``fresh`` next: none ends the job, and frees what it took."""
        self.fresh = fresh
        self.anchor = find_anchor(self.allowed, self.records, self.incumbent) if fresh else None
        # loaded kernels take memory of the device: that of the one that is raced again will do
        self.launches = {
            name: launch
            for name, launch in self.launches.items()
            if self.anchor is not None and name == self.anchor.id
        }
        if not fresh:
            self.case = None

    def note(
        self,
        candidate: Candidate,
        outcome: Outcome | None = None,
        reason: str | None = None,
        admission: Admission | None = None,
        timing: Timing | None = None,
    ) -> None:
        """Write down what became of ``candidate``; what is not said comes from its admission."""
        verdict = admission or Admission(True, Outcome.UNMEASURED)
        self.records[candidate.id] = CandidateRecord(
            candidate.id,
            candidate.plugin.name,
            outcome or verdict.outcome,
            verdict.reason if reason is None else reason,
            timing,
            verdict.error,
            verdict.tolerance,
            verdict.workspace,
            tuple(sorted(candidate.tactic.numerics(self.signature))),
            version=candidate.tactic.version,
        )

    def rows(
        self,
        candidates: Iterable[Candidate],
        fingerprint: str,
        policy: str,
        conditions: Mapping[str, int | str],
        now: float,
    ) -> list[CacheRow]:
        """Return the cache's entries for ``candidates``; ``now`` in seconds since 1970."""
        return [
            CacheRow(
                self.signature.key,
                c.id,
                c.tactic.version,
                c.plugin.name,
                c.plugin.digest,
                fingerprint,
                policy,
                r.outcome,
                r.reason,
                r.timing,
                r.error,
                r.tolerance,
                r.workspace,
                dict(conditions),
                now,
            )
            for c in candidates
            for r in [self.records[c.id]]
        ]


def find_anchor(
    candidates: Sequence[Candidate], records: Mapping[str, CandidateRecord], incumbent: str | None
) -> Candidate | None:
    """Return the incumbent or else the fastest of those that the cache knows to be right."""
    known = [c for c in candidates if c.id in records and records[c.id].outcome in USABLE]

    def rank(candidate: Candidate) -> tuple[bool, float, str]:
        timing = records[candidate.id].timing
        return candidate.id != incumbent, timing.median if timing else float("inf"), candidate.id

    return min(known, key=rank, default=None)


def reraced(record: CandidateRecord, again: Timing) -> CandidateRecord:
    """Return ``record``, of a candidate that was raced ``again`` against others, on the scale of its first race.

    Its interval only widens: a race against newcomers tells nothing new of those that it was tied with before.
    """
    first = record.timing
    if first is None:
        return msgspec.structs.replace(record, timing=again)
    wider = msgspec.structs.replace(first, low=min(first.low, again.low), high=max(first.high, again.high))
    return msgspec.structs.replace(record, timing=wider)


def scaled(timing: Timing, scale: float) -> Timing:
    """Return ``timing`` with all its seconds multiplied by ``scale``."""
    return msgspec.structs.replace(
        timing, median=timing.median * scale, low=timing.low * scale, high=timing.high * scale
    )
