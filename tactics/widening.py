"""Which candidates of a call are tried: the first few of every kind, and more of a kind as long as it keeps up."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from tactician.config import BuilderConfig
from tactician.signature import OpSignature
from tactician.tactics.record import CandidateRecord, Outcome
from tactician.tactics.registry import Candidate

FIRST = 3
"""Candidates of a kind that are tried first; each further time as many again as were tried before."""
NEAR = 1.3
"""A kind goes on while its best takes at most this many times what the best of all kinds takes."""
GAIN = 0.01
"""Part of the time that the last ones tried must have gained on those before them, for a kind to go on."""

_RUNS = frozenset((Outcome.CHOSEN, Outcome.TIE, Outcome.SLOWER))
Records = Mapping[str, CandidateRecord]


@dataclass(frozen=True)
class Widening:
    """Says which candidates are next, and why the others are not tried.

    A kind is a tactic class of a plugin, and what it does to the numbers. Its candidates come best guess first, so
    that a kind which is far behind with its first ones is not worth compiling the others. All is decided by the
    records alone: over a timing cache that has them, the next build decides the same without timing anything.

    Parameters
    ----------
    config
        ``exhaustive`` and ``max_candidates``, which say themselves how many are tried, let all be tried at once.
        What a rule of ``tactic_rules`` could mean is always tried.
    """

    config: BuilderConfig

    def next(
        self,
        signature: OpSignature,
        candidates: Sequence[Candidate],
        records: Records,
        always: Collection[str] = (),
    ) -> list[Candidate]:
        """Return those of ``candidates`` that are to be tried next, in their order; none where that is enough.

        Parameters
        ----------
        records
            Of those that were tried, by id.
        always
            Ids of candidates that are tried whatever their kind does.
        """
        wanted = {c.id for c in candidates if self._is_named(c) or c.id in always}
        for kind in self._kinds(signature, candidates):
            if self._reason(kind, candidates, records) is None:
                wanted |= {c.id for c in kind[: _tried(kind, records) * 2 or FIRST]}
        if self.config.exhaustive or self.config.max_candidates is not None:
            wanted = {c.id for c in candidates}
        return [c for c in candidates if c.id in wanted and c.id not in records]

    def left_out(
        self, signature: OpSignature, candidates: Sequence[Candidate], records: Records
    ) -> list[CandidateRecord]:
        """Return the records of the candidates that are not tried, each with the reason."""
        return [
            CandidateRecord(
                c.id, c.plugin.name, Outcome.PRUNED, f"not tried: {reason}", version=c.tactic.version
            )
            for kind in self._kinds(signature, candidates)
            for reason in [self._reason(kind, candidates, records)]
            for c in kind
            if c.id not in records
        ]

    def _is_named(self, candidate: Candidate) -> bool:
        return any(fnmatchcase(candidate.id, glob) for _, glob in self.config.tactic_rules)

    @staticmethod
    def _kinds(signature: OpSignature, candidates: Sequence[Candidate]) -> Iterator[list[Candidate]]:
        """Yield the candidates of each kind, best guess first."""
        kinds: dict[tuple[str, type, frozenset[str]], list[Candidate]] = {}
        for c in candidates:
            key = (c.plugin.name, type(c.tactic), frozenset(c.tactic.numerics(signature)))
            kinds.setdefault(key, []).append(c)
        yield from kinds.values()

    @staticmethod
    def _reason(kind: Sequence[Candidate], candidates: Sequence[Candidate], records: Records) -> str | None:
        """Return why no more of a kind are tried, or None where more are, or all were."""
        tried = _tried(kind, records)
        seconds = _seconds(kind[:tried], records)
        if not seconds:
            untimed = any(records[c.id].outcome is Outcome.UNMEASURED for c in kind[:tried])
            return "the first of its kind could not be timed" if untimed else None
        own, best = (
            min(seconds.values()),
            min(_seconds(candidates, records).items(), key=lambda pair: pair[::-1]),
        )
        if own > NEAR * best[1]:
            return f"the best of the first {tried} of its kind takes {own / best[1]:.1f} times as long as {best[0]}"
        before = _seconds(kind[: tried // 2], records) if tried > FIRST else {}
        if before and own > (1 - GAIN) * min(before.values()):
            return f"of the first {tried} of its kind, the second half brought nothing faster than the first"
        return None


def _tried(kind: Sequence[Candidate], records: Records) -> int:
    """Return how many of a kind were tried in full turns: 0, ``FIRST``, twice that ... or all."""
    turn = FIRST
    while turn < len(kind) and all(c.id in records for c in kind[: 2 * turn]):
        turn *= 2
    whole = kind[:turn]
    return len(whole) if all(c.id in records for c in whole) else 0


def _seconds(candidates: Sequence[Candidate], records: Records) -> dict[str, float]:
    """Return by id what those of ``candidates`` take that were timed and found right."""
    found = {}
    for c in candidates:
        record = records.get(c.id)
        if record is not None and record.outcome in _RUNS and record.timing is not None:
            found[c.id] = record.timing.median
    return found
