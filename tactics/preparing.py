"""Preparing: what will run is compiled, several at a time, and what it is checked on is made up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from tactician.config import BuilderConfig
from tactician.signature import OpSignature
from tactician.tactics.admission import DeviceLostError, require_alive
from tactician.tactics.case import Case, host_bytes, seeds_of
from tactician.tactics.expected import Reference
from tactician.tactics.job import Job
from tactician.tactics.registry import Candidate
from tactician.tactics.sampling import CannotSample
from tactician.tactics.stopwatch import Stopwatch
from tactician.tactics.tactic import Launch
from tactician.tactics.watch import Watch

if TYPE_CHECKING:
    from tactician.plugins.target import Device

MAX_FORESEEN_BYTES = 8 << 30
"""Host memory that inputs and references take which are made up before their call is measured."""

PATIENCE = 10
"""Times ``candidate_timeout`` that compilers elsewhere are waited for."""


class Preparation:
    """Prepares the candidates of jobs on one device.

    Parameters
    ----------
    tell
        ``tell(phase, done, total, detail)`` is called as it goes on.
    """

    def __init__(
        self,
        device: Device,
        reference: Reference,
        config: BuilderConfig,
        watch: Watch,
        stopwatch: Stopwatch,
        tell: Callable[[str, int, int, str], None],
    ) -> None:
        self._device = device
        self._reference = reference
        self._config = config
        self._watch = watch
        self._stopwatch = stopwatch
        self._tell = tell
        threads = max(1, config.threads)
        self._threads = 1 if watch.careful else threads
        self._precompiler = None if watch.careful else device.precompiler(max(1, threads - 1))
        self._coming: dict[str, list[Future[None]]] = {}

    @property
    def is_ahead(self) -> bool:
        """Whether candidates can be compiled in other processes while others are measured in this one."""
        return self._precompiler is not None

    def begin(self, job: Job) -> None:
        """Begin to compile the fresh candidates of ``job``, where that goes on in other processes."""
        if self._precompiler is None:
            return
        coming = self._coming[job.signature.key] = []
        for candidate in job.to_prepare:
            with self._watch.running(job.signature.key, (candidate.id,), "prepare"):
                coming += self._precompiler.submit(partial(candidate.tactic.prepare, job.signature))

    def is_there(self, job: Job) -> bool:
        """Return whether all that was begun for ``job`` is compiled."""
        return all(future.done() for future in self._coming.get(job.signature.key, ()))

    def finish(self, job: Job) -> None:
        """Wait for what was begun for ``job``, and prepare its candidates."""
        with self._stopwatch("compile"):
            # what never comes hangs once more when it is prepared, and there somebody watches
            wait(self._coming.pop(job.signature.key, ()), PATIENCE * self._config.candidate_timeout)
        with self._stopwatch("load"):
            for candidate in job.to_prepare:
                try:
                    job.launches[candidate.id] = self._prepare(job.signature, candidate)
                except DeviceLostError:
                    raise
                except Exception as error:
                    job.launches[candidate.id] = error

    def foresee(self, jobs: Sequence[Job]) -> None:
        """Make up inputs and references of jobs, as many as there is memory for."""
        with ThreadPoolExecutor(self._threads, "tactician-reference") as pool:
            for job in self._foreseeable(jobs):
                pool.submit(self._foresee, job)

    def all(self, jobs: Sequence[Job]) -> None:
        """Prepare all that will run, several at a time, and between them what it is to be checked on."""
        tasks = [(job, c) for job in jobs for c in job.to_prepare]
        if not tasks:
            return
        with self._stopwatch("compile"), ThreadPoolExecutor(self._threads, "tactician-compile") as pool:
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
        self._tell("compile", len(tasks), len(tasks), "")

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
