"""Measuring: every different call is asked, filtered, checked, timed and remembered, once."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tactician.config import BuilderConfig
from tactician.errors import BuildCancelledError, CacheError, DeviceError, TimingCacheMissError
from tactician.signature import OpSignature
from tactician.tactics.admission import DeviceLostError, require_alive
from tactician.tactics.cache import TimingCache
from tactician.tactics.cache_rows import CacheRow, fingerprint_digest
from tactician.tactics.case import Case, host_bytes, seeds_of
from tactician.tactics.contest import Contest
from tactician.tactics.expected import Reference
from tactician.tactics.job import USABLE, Job
from tactician.tactics.policies import Hook, Policies
from tactician.tactics.race import RacePolicy
from tactician.tactics.record import CandidateRecord, Outcome
from tactician.tactics.registry import Candidate, Registry
from tactician.tactics.sampling import CannotSample
from tactician.tactics.stopwatch import Stopwatch
from tactician.tactics.tactic import Launch
from tactician.tactics.watch import Watch
from tactician.tactics.widening import Widening

if TYPE_CHECKING:
    from tactician.plugins.target import Device, Timer

logger = logging.getLogger(__name__)

TIMEOUT_CONDITION = "candidate_timeout"
"""Name, among the conditions of an entry of the cache, of the limit in seconds that its candidate broke."""

MAX_FORESEEN_BYTES = 8 << 30
"""Host memory that inputs and references take which are made up before their call is measured."""

Elsewhere = Callable[[Sequence[OpSignature]], Mapping[str, Sequence[CandidateRecord]]]


@dataclass(frozen=True)
class Progress:
    """Where measuring stands.

    Parameters
    ----------
    phase
        ``"discover"``, ``"compile"`` or ``"measure"``.
    done, total
        Calls or, while compiling, candidates.
    detail
        What is being worked on.
    tactics, cached
        Candidates so far, and how many of them the timing cache knew.
    eta_seconds
        Time left in this phase, None where it can't be told yet.
    """

    phase: str
    done: int
    total: int
    detail: str = ""
    tactics: int = 0
    cached: int = 0
    eta_seconds: float | None = None


@dataclass(frozen=True)
class Measured:
    """What is known of one call on one device.

    Parameters
    ----------
    records
        Of every candidate, those that were accepted first, in the order of preference.
    candidates
        All that accepted, by id.
    incumbent
        Id of the tactic that won last, as the timing cache remembers it.
    """

    signature: OpSignature
    records: tuple[CandidateRecord, ...]
    candidates: Mapping[str, Candidate]
    incumbent: str | None = None

    @property
    def usable(self) -> tuple[CandidateRecord, ...]:
        """Records of the candidates that may be chosen."""
        return tuple(r for r in self.records if r.outcome in USABLE)


class Measurer:
    """Measures calls on one device.

    Parameters
    ----------
    registry
        Where candidates come from.
    timer
        Measures; tests pass a scripted one.
    reference
        ``reference(signature)`` returns the function that computes the outputs.
    cache
        Timings and verdicts to use and to add to; None for none.
    hooks
        ``filter_tactics`` hooks with the names of their plugins.
    progress
        Called as it goes on; may raise ``KeyboardInterrupt`` to cancel.
    decided
        By signature key, ids of tactics that are chosen already (by a lock file): nothing else is measured
        there, if all of them are offered.
    named
        By signature key, ids of tactics that somebody may want: they are tried however slow others of their kind are.
    watch
        Told of every candidate that runs.

    Attributes
    ----------
    elsewhere
        Measures in place of this process what the cache does not know: given the signatures, it returns the
        records of all their candidates by signature key. None where this process measures.
    condemned
        By signature key and tactic id, what a candidate did to another process: it is not run in this one.
    stopwatch
        Seconds of asking, compiling, checking and timing.
    """

    def __init__(
        self,
        registry: Registry,
        device: Device,
        timer: Timer,
        reference: Reference,
        *,
        cache: TimingCache | None = None,
        config: BuilderConfig | None = None,
        hooks: Sequence[tuple[str, Hook]] = (),
        progress: Callable[[Progress], None] | None = None,
        decided: Mapping[str, Iterable[str]] | None = None,
        named: Mapping[str, Iterable[str]] | None = None,
        watch: Watch | None = None,
    ) -> None:
        self._registry = registry
        self._device = device
        self._timer = timer
        self._reference = reference
        self._cache = cache
        self._config = config or BuilderConfig()
        self._policies = Policies(self._config, device, hooks)
        self._widening = Widening(self._config)
        self._progress = progress
        self._watch = watch or Watch()
        self.elsewhere: Elsewhere | None = None
        self.condemned: dict[tuple[str, str], str] = {}
        self.stopwatch = Stopwatch()
        self._decided = {key: frozenset(ids) for key, ids in (decided or {}).items()}
        self._named = {key: frozenset(ids) for key, ids in (named or {}).items()}
        self._fingerprint = device.fingerprint()
        self._race_policy = RacePolicy(min_rounds=max(1, self._config.avg_timing_iterations))
        self._counts = {"tactics": 0, "cached": 0}
        self._phase = ("", 0.0)
        self._cache_failed = False

    @property
    def policy(self) -> str:
        """How timings are taken, as it stands in the timing cache's key."""
        return f"interleaved 1, rounds >= {self._race_policy.min_rounds}"

    def measure_all(self, signatures: Sequence[OpSignature]) -> dict[str, Measured]:
        """Measure every different signature once, and return the results by signature key.

        Raises
        ------
        TimingCacheMissError
            If ``error_on_timing_cache_miss`` is set and a candidate has no entry.
        BuildCancelledError
            On ``KeyboardInterrupt``; what was measured is in the cache.
        DeviceLostError
            If a candidate left the device unusable; the cache remembers it.
        """
        unique = list({s.key: s for s in signatures}.values())
        jobs: list[Job] = []
        self._done = 0
        try:
            for number, signature in enumerate(unique):
                self._tell("discover", number, len(unique), str(signature))
                with self.stopwatch("ask"):
                    jobs.append(self._discover(signature))
            self._tell("discover", len(unique), len(unique))
            if self.elsewhere is not None:
                self._measure_elsewhere([job for job in jobs if job.fresh])
            self._measure_in_turns(jobs)
        except KeyboardInterrupt as error:
            kept = ""
            if self._cache is not None and self._config.use_timing_cache:
                kept = f"; what was timed is in '{self._cache.path}', and the next build goes on from there"
            # another process knows how far it came
            done = "" if self.elsewhere else f" with {self._done} of {len(unique)} calls measured"
            raise BuildCancelledError(f"cancelled{done}{kept}") from error
        return {job.signature.key: _measured(job) for job in jobs}

    def condemn(self, signature: OpSignature, tactic: str, reason: str, limit: float | None = None) -> None:
        """Write down that a candidate took down the process that measured it, so that it is not run again.

        Parameters
        ----------
        limit
            Seconds that it may take, where it took longer: the verdict holds for limits up to this one.

        Raises
        ------
        DeviceError
            If this process has no such candidate.
        """
        job = self._discover(signature)
        candidate = next((c for c in job.accepted if c.id == tactic), None)
        if candidate is None:
            raise DeviceError(
                f"{tactic} on {signature} {reason}, and is not offered within the build: its plugin answers differently "
                "in different processes"
            )
        self.condemned[signature.key, tactic] = reason
        job.note(candidate, Outcome.FAILED, reason)
        if self._cache is not None:
            digest = fingerprint_digest(self._fingerprint)
            conditions = {} if limit is None else {TIMEOUT_CONDITION: str(limit)}
            rows = job.rows([candidate], digest, self.policy, conditions, time.time())
            self._cache.put(signature, self._fingerprint, rows)

    def _measure_elsewhere(self, jobs: Sequence[Job]) -> None:
        """Let another process do the jobs, and take over what it found."""
        if not jobs or self.elsewhere is None:
            return
        found = self.elsewhere([job.signature for job in jobs])
        for job in jobs:
            known = {r.tactic: r for r in found.get(job.signature.key, ())}
            for candidate in job.fresh:
                if candidate.id not in known:
                    job.note(candidate, Outcome.FAILED, "the process that measures has no such tactic")
            job.records.update({c.id: known[c.id] for c in job.accepted if c.id in known})
            job.turn_to(())

    def _measure_in_turns(self, jobs: Sequence[Job]) -> None:
        """Measure the fresh candidates of all jobs, then those that their times ask for, as long as there are any."""
        turn = list(jobs)
        while turn:
            self._compile(turn)
            for number, job in enumerate(turn):
                self._tell("measure", number, len(turn), str(job.signature))
                self._measure(job)
                self._done += not job.fresh
            self._tell("measure", len(turn), len(turn))
            turn = [job for job in turn if job.fresh]

    def _discover(self, signature: OpSignature) -> Job:
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
        self._counts["tactics"] += len(left)
        self._counts["cached"] += sum(c.id in rows for c in left)
        job = Job(signature, accepted, records, refused, left, kept, incumbent)
        self._advance(job)
        if job.fresh and self._config.error_on_timing_cache_miss:
            raise self._miss(signature, job.fresh[0])
        return job

    def _advance(self, job: Job) -> None:
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
        rows = self._cache.get(signature, self._fingerprint, self.policy)
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
            where = self._cache.explain_miss(signature, candidate, self._fingerprint, self.policy)
            why = f"timing cache '{self._cache.path}': {where}"
        return TimingCacheMissError(
            f"{signature}: {candidate.id} would have to be timed, and --error-on-timing-cache-miss forbids "
            f"it; {why}"
        )

    def _compile(self, jobs: Sequence[Job]) -> None:
        """Prepare all that will run, several at a time, and between them what it is to be checked on."""
        tasks = [(job, c) for job in jobs for c in job.to_prepare]
        if not tasks:
            return
        threads = 1 if self._watch.careful else max(1, self._config.threads)
        with self.stopwatch("compile"), ThreadPoolExecutor(threads, "tactician-compile") as pool:
            futures: dict[Future[Launch], tuple[Job, Candidate]] = {
                pool.submit(self._prepare, job.signature, c): (job, c) for job, c in tasks
            }
            for job in self._foreseeable(jobs):
                pool.submit(self._foresee, job)
            try:
                for number, future in enumerate(as_completed(futures)):
                    job, candidate = futures[future]
                    self._tell("compile", number, len(tasks), candidate.id)
                    error = future.exception()
                    if isinstance(error, DeviceLostError):
                        raise error
                    job.launches[candidate.id] = error or future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        self._tell("compile", len(tasks), len(tasks))

    @staticmethod
    def _foreseeable(jobs: Sequence[Job]) -> Iterator[Job]:
        """Yield the jobs whose inputs and references are made up ahead: as many as there is memory for."""
        left = MAX_FORESEEN_BYTES - sum(host_bytes(job.signature) for job in jobs if job.case)
        for job in jobs:
            if job.fresh and job.case is None:
                left -= host_bytes(job.signature)
                if left < 0:
                    return
                yield job

    def _foresee(self, job: Job) -> None:
        with suppress(CannotSample):  # the contest finds the same, and writes it down
            job.case = Case(job.signature, self._reference, seeds_of(job.signature, self._config))
            job.case.foresee()

    def _prepare(self, signature: OpSignature, candidate: Candidate) -> Launch:
        with self._watch.running(signature.key, (candidate.id,), "prepare"):
            try:
                return candidate.tactic.prepare(signature, self._device)
            except Exception as error:
                require_alive(self._device, signature, (candidate.id,), "prepare", error)
                raise

    def _measure(self, job: Job) -> None:
        """Check and race the fresh candidates of one call, and remember what came of it."""
        if not job.fresh:
            return
        contest = Contest(
            job,
            self._device,
            self._timer,
            self._reference,
            self._config,
            self._race_policy,
            self._watch,
            self.stopwatch,
        )
        try:
            contest.run()
        finally:
            self._remember(job, contest)
        self._advance(job)

    def _remember(self, job: Job, contest: Contest) -> None:
        """Write to the cache. If that fails, the next build takes longer, but this one need not end."""
        if self._cache is None or not contest.lasting or self._cache_failed:
            return
        digest = fingerprint_digest(self._fingerprint)
        rows = job.rows(contest.lasting, digest, self.policy, contest.conditions, time.time())
        try:
            self._cache.put(job.signature, self._fingerprint, rows)
        except CacheError as error:
            if self._config.strict:
                raise
            self._cache_failed = True
            logger.warning("%s; nothing more is written to it in this build", error)

    def _tell(self, phase: str, done: int, total: int, detail: str = "") -> None:
        if phase != self._phase[0]:
            self._phase = (phase, time.perf_counter())
        if self._progress is None:
            return
        eta = (time.perf_counter() - self._phase[1]) / done * (total - done) if done else None
        self._progress(
            Progress(phase, done, total, detail, self._counts["tactics"], self._counts["cached"], eta)
        )


def _measured(job: Job) -> Measured:
    records = (*(job.records[c.id] for c in job.accepted), *job.refused)
    return Measured(job.signature, records, {c.id: c for c in job.accepted}, job.incumbent)
