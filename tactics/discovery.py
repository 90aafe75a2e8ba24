"""Discovery: who offers to run a call, who may, what the timing cache knows of them, and who is to be tried next."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from tactician.config import BuilderConfig
from tactician.errors import TimingCacheMissError
from tactician.signature import OpSignature
from tactician.tactics.cache import TimingCache
from tactician.tactics.cache_rows import CacheRow
from tactician.tactics.job import Job
from tactician.tactics.policies import Hook, Policies
from tactician.tactics.record import CandidateRecord, Outcome
from tactician.tactics.registry import Candidate, Registry
from tactician.tactics.widening import Widening

if TYPE_CHECKING:
    from tactician.plugins.target import Device

TIMEOUT_CONDITION = "candidate_timeout"
"""Name, among the conditions of an entry of the cache, of the limit in seconds that its candidate broke."""


class Discovery:
    """Turns calls into jobs on one device.

    Parameters
    ----------
    policy
        How timings are taken, as it stands in the cache's key.
    decided, named
        As ``Measurer`` takes them.

    Attributes
    ----------
    condemned
        By signature key and tactic id, what a candidate did to another process: it is not run in this one.
    tactics, cached
        Candidates so far, and how many of them the cache knew.
    """

    def __init__(
        self,
        registry: Registry,
        device: Device,
        config: BuilderConfig,
        hooks: Sequence[tuple[str, Hook]],
        cache: TimingCache | None,
        policy: str,
        decided: Mapping[str, Iterable[str]],
        named: Mapping[str, Iterable[str]],
    ) -> None:
        self._registry = registry
        self._device = device
        self._config = config
        self._policies = Policies(config, device, hooks)
        self._widening = Widening(config)
        self._cache = cache
        self._policy = policy
        self._fingerprint = device.fingerprint()
        self._decided = {key: frozenset(ids) for key, ids in decided.items()}
        self._named = {key: frozenset(ids) for key, ids in named.items()}
        self.condemned: dict[tuple[str, str], str] = {}
        self.tactics = self.cached = 0

    def is_offered(self, signature: OpSignature) -> bool:
        """Return whether anybody offers to run a call."""
        return self._registry.accepts(signature, self._device)

    def job(self, signature: OpSignature) -> Job:
        """Return what there is to do for a call.

        Raises
        ------
        TimingCacheMissError
            If there is something, and ``error_on_timing_cache_miss`` is set.
        """
        accepted, refused = self._registry.candidates(signature, self._device)
        accepted = list({c.id: c for c in accepted}.values())
        left, out = self._policies.apply(signature, accepted)
        rows = self._rows(signature, left)
        left, skipped = self._skip_undecided(signature, left)
        kept, pruned = self._policies.prune(signature, left)
        out += skipped + [r for r in pruned if r.tactic not in rows]
        records = {r.tactic: r for r in out}
        for c in left:
            if c.id in rows:
                records[c.id] = rows[c.id].record(c.tactic.numerics(signature))
        for c in kept:
            if c.id not in rows and (signature.key, c.id) in self.condemned:
                reason = self.condemned[signature.key, c.id]
                records[c.id] = CandidateRecord(
                    c.id, c.plugin.name, Outcome.FAILED, reason, version=c.tactic.version
                )
        incumbent = self._cache.incumbent(signature, self._fingerprint) if self._cache else None
        self.tactics += len(left)
        self.cached += sum(c.id in rows for c in left)
        job = Job(signature, accepted, records, refused, left, kept, incumbent)
        self.advance(job)
        if job.fresh and self._config.error_on_timing_cache_miss:
            raise self._miss(signature, job.fresh[0])
        return job

    def advance(self, job: Job) -> None:
        """Turn to the candidates of ``job`` that are to be tried next or, where that is enough, say why not the others."""
        always = self._named.get(job.signature.key, frozenset()) | {job.incumbent or ""}
        job.turn_to(self._widening.next(job.signature, job.contenders, job.records, always))
        if not job.fresh:
            left_out = self._widening.left_out(job.signature, job.contenders, job.records)
            job.records.update({r.tactic: r for r in left_out})

    def _rows(self, signature: OpSignature, candidates: Sequence[Candidate]) -> dict[str, CacheRow]:
        """Return the cache's entries for exactly these candidates."""
        if self._cache is None:
            return {}
        wanted = {(c.id, c.tactic.version, c.plugin.digest) for c in candidates}
        rows = self._cache.get(signature, self._fingerprint, self._policy)
        limit = self._config.candidate_timeout
        return {
            r.tactic: r
            for r in rows
            if (r.tactic, r.version, r.digest) in wanted
            and limit <= float(r.conditions.get(TIMEOUT_CONDITION, limit))
        }

    def _skip_undecided(
        self, signature: OpSignature, candidates: list[Candidate]
    ) -> tuple[list[Candidate], list[CandidateRecord]]:
        decided = self._decided.get(signature.key, frozenset())
        if not decided or not decided <= {c.id for c in candidates}:
            return candidates, []
        reason = "not measured: the lock file decides"
        out = [
            CandidateRecord(c.id, c.plugin.name, Outcome.PRUNED, reason, version=c.tactic.version)
            for c in candidates
            if c.id not in decided
        ]
        return [c for c in candidates if c.id in decided], out

    def _miss(self, signature: OpSignature, candidate: Candidate) -> TimingCacheMissError:
        why = "no timing cache is in use"
        if self._cache is not None:
            where = self._cache.explain_miss(signature, candidate, self._fingerprint, self._policy)
            why = f"timing cache '{self._cache.path}': {where}"
        return TimingCacheMissError(
            f"{signature}: {candidate.id} would have to be timed, and --error-on-timing-cache-miss forbids "
            f"it; {why}"
        )
