"""Has candidates measured by a worker process, finds out who takes it down or hangs, and starts another one."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tactician.config import BuilderConfig
from tactician.errors import DeviceError
from tactician.signature import OpSignature
from tactician.tactics.measure import Progress
from tactician.tactics.record import CandidateRecord
from tactician.tactics.stopwatch import Stopwatch
from tactician.worker import Opening, Request
from tactician.worker_process import FAREWELL_SECONDS, Answer, Death, Suspect, WorkerProcess

STRIKES = 2
"""Processes that a candidate must take down before it is blamed: the first may have been an accident."""
MOST_WORKERS = 100


class Workers:
    """The worker processes of one build, one for each device: started once, and asked stage after stage.

    Parameters
    ----------
    config
        Of the build. Where it uses no timing cache, workers share one that is gone afterwards.
    """

    def __init__(self, config: BuilderConfig) -> None:
        self._config = config
        self._open: dict[tuple[str, int], WorkerProcess] = {}
        self.stopwatch = Stopwatch()
        """Seconds of all that was measured in this build, by phase."""
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            for process in self._open.values():
                process.close()
        finally:
            self._open.clear()
            if self._folder is not None:
                self._folder.cleanup()

    @property
    def cache_path(self) -> Path | None:
        """Where verdicts are kept, also for the next worker; None for the user's own timing cache."""
        if self._config.use_timing_cache:
            return self._config.timing_cache
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="tactician-")
        return Path(self._folder.name, "timing.sqlite")

    def start(self, target: str, device: int) -> WorkerProcess:
        """Return the worker of a device; one that is not there yet begins to open it."""
        if (target, device) not in self._open:
            config = replace(self._config, timing_cache=self.cache_path, use_timing_cache=True)
            self._open[target, device] = WorkerProcess(Opening(config, target, device, 0, os.getpid()))
        return self._open[target, device]

    def follow(self, target: str, device: int, progress: Callable[[Progress], None] | None) -> Answer | Death:
        """Return what the worker of a device found, or how it ended; then the next one is a new one.

        Raises
        ------
        TacticianError
            What the worker raised.
        """
        process = self.start(target, device)
        try:
            end = process.follow(progress)
        except BaseException:
            del self._open[target, device]
            process.close(FAREWELL_SECONDS)
            raise
        if isinstance(end, Death):
            del self._open[target, device]
            end = replace(end, said=process.last_words())
            process.close()
        return end


class Supervisor:
    """Measures calls on one device by workers.

    Parameters
    ----------
    workers
        Of the build. What they share is a timing cache: each goes on where the last one ended.
    decided, named
        As ``Measurer`` takes them.
    condemn
        ``condemn(signature, tactic, reason, limit)`` writes to that cache that a tactic is not to be run again; the
        limit in seconds is None unless it was broken.
    progress
        Called as it goes on; may raise to cancel.
    """

    def __init__(
        self,
        workers: Workers,
        target: str,
        device: int,
        decided: Mapping[str, frozenset[str]],
        named: Mapping[str, frozenset[str]],
        condemn: Callable[[OpSignature, str, str, float | None], None],
        progress: Callable[[Progress], None] | None = None,
    ) -> None:
        self._workers, self._target, self._device = workers, target, device
        self._request = Request((), decided, named, {}, careful=False)
        self._condemn = condemn
        self._progress = progress
        self._begun: tuple[OpSignature, ...] = ()
        self.stopwatch = Stopwatch()
        """Seconds by phase that the workers told of."""

    def begin(self, signatures: Sequence[OpSignature]) -> None:
        """Let a worker begin with ``signatures``, which the build is going to want measured, it is not yet known how."""
        self._begun = tuple(signatures)
        self._ask(self._begun, _Jury({}, self._condemn))

    def measure(self, signatures: Sequence[OpSignature]) -> dict[str, tuple[CandidateRecord, ...]]:
        """Return the records of all candidates, by signature key, also of those that were begun with.

        Raises
        ------
        DeviceError
            If workers end without a candidate to blame for it, or again and again.
        TacticianError
            What a worker raised.
        """
        begun, self._begun = self._begun, ()
        found = self._measure(begun, is_begun=True) if begun else {}
        left = [s for s in signatures if s.key not in found]
        return found | (self._measure(left) if left else {})

    def _measure(
        self, signatures: Sequence[OpSignature], *, is_begun: bool = False
    ) -> dict[str, tuple[CandidateRecord, ...]]:
        jury = _Jury({s.key: s for s in signatures}, self._condemn)
        for number in range(MOST_WORKERS):
            if number or not is_begun:
                self._ask(signatures, jury)
            end = self._workers.follow(self._target, self._device, self._progress)
            if not isinstance(end, Death):
                self.stopwatch.add(end.seconds)
                return end.records
            jury.judge(end)
        raise DeviceError(
            f"candidates took down {MOST_WORKERS} processes that measured them: "
            + ", ".join(sorted({tactic for _, tactic in jury.strikes}))
            + "; leave their plugin out (--no-plugin NAME), or tell its author"
        )

    def _ask(self, signatures: Sequence[OpSignature], jury: _Jury) -> None:
        request = replace(
            self._request,
            signatures=tuple(signatures),
            condemned=dict(jury.condemned),
            careful=jury.careful,
        )
        self._workers.start(self._target, self._device).begin(request)


class _Jury:
    """Decides who is to blame for the ends of workers, and how the next one is to go about it."""

    def __init__(
        self,
        calls: Mapping[str, OpSignature],
        condemn: Callable[[OpSignature, str, str, float | None], None],
    ) -> None:
        self._calls = calls
        self._condemn = condemn
        self._unexplained = 0
        self.strikes: Counter[Suspect] = Counter()
        self.condemned: dict[Suspect, str] = {}
        self.careful = False
        """Whether the next worker does one thing at a time."""

    def judge(self, death: Death) -> None:
        """Take one more end into account.

        Raises
        ------
        DeviceError
            If there is nobody to blame, or somebody takes workers down although it is not to be run.
        """
        if (death.ambiguous or len(death.suspects) > 1) and not self.careful:
            self.careful = True
            return
        if len(death.suspects) != 1:
            self._nobody(death)
            return
        (suspect,) = death.suspects
        self.strikes[suspect] += 1
        if self.strikes[suspect] == STRIKES:
            self.condemned[suspect] = death.how
            self.careful = False
            self._condemn(self._calls[suspect[0]], suspect[1], death.how, death.limit)
        elif self.strikes[suspect] > STRIKES:
            raise DeviceError(
                f"{suspect[1]} {death.how}, again and again, although it is not to be run any more; leave its "
                "plugin out (--no-plugin NAME), or tell its author"
            )

    def _nobody(self, death: Death) -> None:
        self._unexplained += 1
        if self._unexplained == STRIKES:
            raise DeviceError(
                f"the process that measures candidates {death.how}, with no candidate to blame"
                + (f": {death.said}" if death.said else "")
                + "; build with isolate=False (--no-isolate) to measure within this process"
            )
