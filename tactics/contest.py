"""The contest over one call: candidates are checked, those that are right are raced, all is written down."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from tactician.config import BuilderConfig
from tactician.errors import DeviceError
from tactician.tactics.admission import (
    Admission,
    DeviceLostError,
    Examination,
    prepare_failure,
    require_alive,
)
from tactician.tactics.case import Case, seeds_of
from tactician.tactics.expected import Reference
from tactician.tactics.job import Job, reraced, scaled
from tactician.tactics.race import RacePolicy, RaceResult
from tactician.tactics.record import Outcome, Timing
from tactician.tactics.registry import Candidate
from tactician.tactics.sampling import CannotSample
from tactician.tactics.stopwatch import Clock, no_clock
from tactician.tactics.timing import Entrant, Track
from tactician.tactics.watch import Watch

if TYPE_CHECKING:
    from tactician.plugins.target import Device, Timer

FAR_BEHIND, LONG_SECONDS = 20.0, 0.05
"""A candidate whose check took this many times the fastest's, and this long, is not raced."""
CHEAP_SECONDS = 0.1
"""An only candidate is timed, for the record, if one call takes less."""


class Contest:
    """Checks and races the fresh candidates of ``job``; the results are in its records.

    Parameters
    ----------
    policy
        Of the race.
    clock
        Keeps the seconds of making up inputs, of checking and of timing.
    """

    def __init__(
        self,
        job: Job,
        device: Device,
        timer: Timer,
        reference: Reference,
        config: BuilderConfig,
        policy: RacePolicy,
        watch: Watch | None = None,
        clock: Clock = no_clock,
    ) -> None:
        self._job = job
        self._device = device
        self._timer = timer
        self._reference = reference
        self._config = config
        self._policy = policy
        self._watch = watch
        self._clock = clock
        self._seeds = seeds_of(job.signature, config)
        self._admissions: dict[str, Admission] = {}
        self.lasting: list[Candidate] = []
        """Candidates whose records are worth remembering."""
        self.conditions: Mapping[str, int | str] = {}
        """State of the machine while they were timed."""

    def run(self) -> None:
        """Check, race and write down.

        Raises
        ------
        DeviceLostError
            If a candidate left the device unusable; it alone is in ``lasting``.
        """
        job = self._job
        try:
            with self._clock("check"):
                exam = self._examination()
                for candidate in job.fresh:
                    self._admissions[candidate.id] = self._admit(exam, candidate)
        except CannotSample as error:
            for candidate in job.fresh:
                launch = job.launches.get(candidate.id)
                if isinstance(launch, BaseException):
                    job.note(candidate, admission=prepare_failure(launch))
                else:
                    job.note(candidate, Outcome.UNMEASURED, f"not checked: {error}")
            return
        for candidate in job.fresh:
            job.note(candidate, admission=self._admissions[candidate.id])
        self._leave_out_slow()
        self.lasting = [c for c in job.fresh if self._admissions[c.id].lasting]
        with self._clock("time"):
            result = self._race(exam)
        if result is not None:
            self.conditions = result.conditions
            if job.anchor is not None and job.anchor.id in result.timings:
                self.lasting.append(job.anchor)

    def _examination(self) -> Examination:
        job = self._job
        with self._clock("reference"):
            job.case = job.case or Case(job.signature, self._reference, self._seeds)
        try:
            return Examination(
                job.signature,
                self._device,
                self._reference,
                job.case.inputs,
                seed=self._config.seed,
                watch=self._watch,
                expected=job.case.expected,
            )
        except DeviceError as error:
            require_alive(self._device, job.signature, (), "check", error)
            raise CannotSample(str(error)) from error

    def _admit(self, exam: Examination, candidate: Candidate) -> Admission:
        launch = self._job.launches.get(candidate.id)
        if isinstance(launch, BaseException):
            return prepare_failure(launch)
        try:
            return exam.examine(candidate, launch)
        except DeviceLostError as error:
            self._job.note(candidate, Outcome.FAILED, f"left the device unusable: {error.__cause__}")
            self.lasting = [candidate]
            raise
        except DeviceError as error:
            require_alive(self._device, self._job.signature, (candidate.id,), "check", error)
            return Admission(False, Outcome.FAILED, f"could not be checked: {error}", lasting=False)

    def _leave_out_slow(self) -> None:
        """Record as slower what took so much longer in its check that timing it would be a waste."""
        job, admissions = self._job, self._admissions
        known = [a.seconds for a in admissions.values() if a.ok and a.seconds is not None]
        anchor = job.records[job.anchor.id].timing if job.anchor else None
        best = min([*known, *([anchor.median] if anchor else [])], default=0.0)
        for candidate in job.fresh:
            admission = admissions[candidate.id]
            seconds = admission.seconds
            if admission.ok and seconds and seconds > max(LONG_SECONDS, FAR_BEHIND * best):
                times = f"{seconds / max(best, 1e-9):.0f} times as long as the fastest"
                rough = Timing(seconds, seconds / 2, seconds * 2, 1)
                job.note(
                    candidate,
                    Outcome.SLOWER,
                    f"took {times} in its check, so it was not raced",
                    admission,
                    rough,
                )

    def _race(self, exam: Examination) -> RaceResult | None:
        job, admissions = self._job, self._admissions
        entrants = self._entrants()
        alone = len(entrants) == 1 and job.anchor is None and not job.has_more
        if not entrants or (alone and (admissions[entrants[0].id].seconds or 0.0) > CHEAP_SECONDS):
            return None
        entrants += self._anchor_entrant()
        try:
            track = Track(exam, self._timer)
            result, failures = track.race(entrants, self._policy, np.random.default_rng([*self._seeds, 3]))
        except DeviceLostError:
            self.lasting = []
            raise
        except DeviceError as error:
            require_alive(self._device, job.signature, [e.id for e in entrants], "time", error)
            for candidate in job.fresh:
                if job.records[candidate.id].outcome is Outcome.UNMEASURED:
                    job.note(candidate, None, f"not timed: {error}", admissions[candidate.id])
            self.lasting = []
            return None
        self._settle(result, failures)
        return result

    def _entrants(self) -> list[Entrant]:
        entrants = []
        for candidate in self._job.fresh:
            admission = self._admissions[candidate.id]
            untimed = self._job.records[candidate.id].outcome is Outcome.UNMEASURED
            if untimed and admission.launch is not None:
                entrants.append(Entrant(candidate.id, admission.launch, admission.workspace))
        return entrants

    def _anchor_entrant(self) -> list[Entrant]:
        job = self._job
        launch = job.launches.get(job.anchor.id) if job.anchor else None
        if job.anchor is None or launch is None or isinstance(launch, BaseException):
            return []
        return [Entrant(job.anchor.id, launch, job.anchor.tactic.workspace(job.signature, self._device))]

    def _settle(self, result: RaceResult, failures: Mapping[str, str]) -> None:
        """Write the race's outcome down, on the scale of the times that the cache holds already."""
        job, scale = self._job, 1.0
        if job.anchor is not None and job.anchor.id in result.timings:
            record, now = job.records[job.anchor.id], result.timings[job.anchor.id]
            scale = record.timing.median / now.median if record.timing else 1.0
            job.records[job.anchor.id] = reraced(record, scaled(now, scale))
        for candidate in job.fresh:
            admission, name = self._admissions[candidate.id], candidate.id
            if name in result.timings:
                outcome = Outcome.TIE if name in result.ties else Outcome.SLOWER
                job.note(candidate, outcome, "", admission, scaled(result.timings[name], scale))
            elif name in result.rejected:
                job.note(candidate, Outcome.WRONG, result.rejected[name], admission)
            elif name in failures:
                job.note(candidate, Outcome.FAILED, failures[name], admission)
