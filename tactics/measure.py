"""Measuring: every different call is asked, filtered, checked, timed and remembered, once."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from tactician.config import BuilderConfig
from tactician.errors import BuildCancelledError, CacheError, DeviceError
from tactician.signature import OpSignature
from tactician.tactics.cache import TimingCache
from tactician.tactics.cache_rows import fingerprint_digest
from tactician.tactics.contest import Contest
from tactician.tactics.discovery import TIMEOUT_CONDITION, Discovery
from tactician.tactics.expected import Reference
from tactician.tactics.job import USABLE, Job
from tactician.tactics.policies import Hook
from tactician.tactics.preparing import Preparation
from tactician.tactics.race import RacePolicy
from tactician.tactics.record import CandidateRecord, Outcome
from tactician.tactics.registry import Candidate, Registry
from tactician.tactics.stopwatch import Stopwatch
from tactician.tactics.watch import Watch

if TYPE_CHECKING:
    from tactician.plugins.target import Device, Timer

logger = logging.getLogger(__name__)


class Elsewhere(Protocol):
    """Another process that measures."""

    def begin(self, signatures: Sequence[OpSignature]) -> None:
        """Begin with calls that nothing is known of, while this process asks who could run them."""

    def measure(self, signatures: Sequence[OpSignature]) -> Mapping[str, Sequence[CandidateRecord]]:
        """Return the records of all candidates by signature key, also of the calls that were begun with."""


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
        Measures in place of this process what the cache does not know. None where this process measures.
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
        self._device = device
        self._timer = timer
        self._reference = reference
        self._cache = cache
        self._config = config or BuilderConfig()
        self._progress = progress
        self._watch = watch or Watch()
        self.elsewhere: Elsewhere | None = None
        self.stopwatch = Stopwatch()
        self._fingerprint = device.fingerprint()
        self._race_policy = RacePolicy(min_rounds=max(1, self._config.avg_timing_iterations))
        self._discovery = Discovery(
            registry, device, self._config, hooks, cache, self.policy, decided or {}, named or {}
        )
        self._preparation = Preparation(
            device, reference, self._config, self._watch, self.stopwatch, self._tell
        )
        self._phase = ("", 0.0)
        self._cache_failed = False

    @property
    def condemned(self) -> dict[tuple[str, str], str]:
        """By signature key and tactic id, what a candidate did to another process: it is not run in this one."""
        return self._discovery.condemned

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
            begun = self._begin_elsewhere(unique)
            for number, signature in enumerate(unique):
                self._tell("discover", number, len(unique), str(signature))
                with self.stopwatch("ask"):
                    jobs.append(self._discovery.job(signature))
                if self.elsewhere is None:
                    self._preparation.begin(jobs[-1])
            self._tell("discover", len(unique), len(unique))
            if self.elsewhere is not None:
                self._measure_elsewhere([job for job in jobs if job.fresh], begun=begun)
            if self._preparation.is_ahead:
                self._measure_as_compiled(jobs)
            else:
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
        job = self._discovery.job(signature)
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

    def _begin_elsewhere(self, signatures: Sequence[OpSignature]) -> bool:
        """Let another process begin with the calls that the cache knows nothing of, and return whether there are any."""
        if self.elsewhere is None or self._cache is None or self._config.error_on_timing_cache_miss:
            return False
        unknown = [
            s
            for s in signatures
            if not self._cache.get(s, self._fingerprint, self.policy) and self._discovery.is_offered(s)
        ]
        if unknown:
            self.elsewhere.begin(unknown)
        return bool(unknown)

    def _measure_elsewhere(self, jobs: Sequence[Job], *, begun: bool) -> None:
        """Let another process do the jobs, and take over what it found."""
        if self.elsewhere is None or not (jobs or begun):
            return
        found = self.elsewhere.measure([job.signature for job in jobs])
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
            self._preparation.all(turn)
            for number, job in enumerate(turn):
                self._tell("measure", number, len(turn), str(job.signature))
                self._measure(job)
                self._done += not job.fresh
            self._tell("measure", len(turn), len(turn))
            turn = [job for job in turn if job.fresh]

    def _measure_as_compiled(self, jobs: Sequence[Job]) -> None:
        """Measure one job after the other as soon as its fresh candidates are compiled, while others still are."""
        with self.stopwatch("reference"):
            self._preparation.foresee(jobs)
        waiting = deque(jobs)
        while waiting:
            # each that waited keeps its place: what was begun first is there first
            job = next(filter(self._preparation.is_there, waiting), waiting[0])
            waiting.remove(job)
            self._tell("measure", self._done, len(jobs), str(job.signature))
            self._preparation.finish(job)
            self._measure(job)
            if job.fresh:
                self._preparation.begin(job)
                waiting.append(job)
            else:
                self._done += 1
        self._tell("measure", len(jobs), len(jobs))

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
        self._discovery.advance(job)

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
            Progress(phase, done, total, detail, self._discovery.tactics, self._discovery.cached, eta)
        )


def _measured(job: Job) -> Measured:
    records = (*(job.records[c.id] for c in job.accepted), *job.refused)
    return Measured(job.signature, records, {c.id: c for c in job.accepted}, job.incumbent)
