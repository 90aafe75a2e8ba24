"""Admission: a candidate proves that it is right before it may be timed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from tactician.errors import DeviceError
from tactician.signature import OpSignature
from tactician.tactics.call_buffers import CallBuffers, CallInputs
from tactician.tactics.device_judge import DeviceJudge
from tactician.tactics.expected import Expected, Inputs, Reference
from tactician.tactics.guarded import raw_bytes
from tactician.tactics.record import Outcome
from tactician.tactics.registry import Candidate
from tactician.tactics.sampling import CannotSample
from tactician.tactics.tactic import Launch
from tactician.tactics.watch import Watch

if TYPE_CHECKING:
    from tactician.plugins.target import Device

Array = np.ndarray[Any, Any]

POISONS = (0xFF, 0x5A)
"""Bytes that outputs and workspace hold before the first run (NaN in every float type) and the second."""


@dataclass(frozen=True)
class Admission:
    """Verdict on one candidate.

    Parameters
    ----------
    ok
        Whether it may be timed and chosen.
    outcome
        ``UNMEASURED`` where it is right so far, ``WRONG``, or ``FAILED`` where it raised.
    reason
        In words; empty where all is right.
    error, tolerance
        Relative error of the worst output over all input sets, and what it had to stay under.
    launch
        What ``Tactic.prepare`` returned.
    workspace
        Bytes.
    seconds
        Wall time of its last run, with the wait for its end: rough, but enough to see what is far behind.
    lasting
        Whether the verdict is worth remembering: not where memory ran out while it was prepared.
    """

    ok: bool
    outcome: Outcome
    reason: str = ""
    error: float | None = None
    tolerance: float | None = None
    launch: Launch | None = None
    workspace: int = 0
    seconds: float | None = None
    lasting: bool = True


class DeviceLostError(DeviceError):
    """A candidate left the device unusable, so that nothing more can run in this process.

    Parameters
    ----------
    key
        Of the signature.
    candidates
        Ids of those that may be to blame.
    stage
        As ``Watch.running`` has it.
    """

    def __init__(self, message: str, key: str, candidates: Sequence[str], stage: str) -> None:
        super().__init__(message)
        self.key, self.candidates, self.stage = key, tuple(candidates), stage


def require_alive(
    device: Device, signature: OpSignature, candidates: Sequence[str], stage: str, cause: BaseException
) -> None:
    """Make sure, after the failure ``cause``, that the device still works.

    Raises
    ------
    DeviceLostError
        If it does not.
    """
    try:
        device.synchronize()
    except Exception as error:
        raise DeviceLostError(
            f"{' or '.join(candidates) or 'a candidate'} on {signature} left {device.target}:{device.index} "
            f"unusable ({stage}): {cause}",
            signature.key,
            candidates,
            stage,
        ) from error


def admit(
    candidate: Candidate,
    signature: OpSignature,
    device: Device,
    reference: Reference,
    inputs_sets: Sequence[Inputs],
    *,
    seed: int = 0,
) -> Admission:
    """Prepare ``candidate``, run it on every set of inputs, and say whether it is right.

    Parameters
    ----------
    reference
        ``reference(signature)`` returns the function that computes the outputs from the inputs, also from
        wider ones.
    inputs_sets
        Host arrays in the order of the signature, None where absent.
    seed
        Of the guard bytes' pattern.

    Raises
    ------
    CannotSample
        If the reference itself can't be computed.
    DeviceLostError
        If the device can't be used any more.
    """
    return Examination(signature, device, reference, inputs_sets, seed=seed).examine(candidate)


class Examination:
    """Checks all candidates of one signature on the same inputs; references are computed once.

    Outputs and workspace are poisoned and lie between guard bytes. After each run they, the inputs and the
    guards are looked at. The first set is run twice, over different poison: an output that depends on what
    was there before, or on the order of threads, differs.
    """

    def __init__(
        self,
        signature: OpSignature,
        device: Device,
        reference: Reference,
        inputs_sets: Sequence[Inputs],
        *,
        seed: int = 0,
        watch: Watch | None = None,
        expected: Expected | None = None,
    ) -> None:
        self.watch = watch or Watch()
        self.signature = signature
        self.device = device
        self.stream = device.create_stream()
        self._random = np.random.default_rng(seed)
        self._expected = expected or Expected(signature, reference, inputs_sets)
        self.host_inputs = list(inputs_sets)
        self._sets = [CallInputs(device, signature, inputs, self._random) for inputs in inputs_sets]
        examiner = device.examiner()
        self.judge = DeviceJudge(examiner, signature, self._expected) if examiner is not None else None

    def inputs(self, number: int = 0) -> list[Any]:
        """Return the device tensors of a set of inputs."""
        return self._sets[number].tensors

    def examine(self, candidate: Candidate, launch: Launch | None = None) -> Admission:
        """Return the verdict on ``candidate``; ``launch`` is its prepared launch, if there is one already."""
        try:
            with self.watch.running(self.signature.key, (candidate.id,), "prepare"):
                nbytes = candidate.tactic.workspace(self.signature, self.device)
                numerics = candidate.tactic.numerics(self.signature)
                launch = launch or candidate.tactic.prepare(self.signature, self.device)
        except (Exception, SystemExit) as error:
            return prepare_failure(error)
        buffers = CallBuffers(self.device, self.signature, nbytes, self._random)
        trial = _Trial(self, candidate.id, buffers, launch, numerics)
        try:
            problem = trial.run_all()
        except _RaisedError as error:
            self._restore(candidate)
            return Admission(False, Outcome.FAILED, str(error), launch=launch, workspace=nbytes)
        if problem:
            self._restore(candidate)
        outcome = Outcome.WRONG if problem else Outcome.UNMEASURED
        return Admission(
            not problem, outcome, problem or "", trial.error, trial.limit, launch, nbytes, trial.seconds
        )

    def _restore(self, candidate: Candidate) -> None:
        """Put the inputs back, so that a bad candidate does no harm to the next."""
        with self.watch.running(self.signature.key, (candidate.id,), "check"):
            try:
                self.device.synchronize()
                for one in self._sets:
                    one.restore()
            except Exception as error:
                raise DeviceLostError(
                    f"{candidate.id} on {self.signature} left {self.device.target}:{self.device.index} unusable: "
                    f"{error}; build again: the timing cache remembers this, and the tactic is left out (or use "
                    f"--sources -{candidate.source})",
                    self.signature.key,
                    (candidate.id,),
                    "check",
                ) from error


class _RaisedError(Exception):
    """A candidate, or the device on its account, raised."""


class _Trial:
    """The runs of one candidate."""

    def __init__(
        self,
        exam: Examination,
        candidate: str,
        buffers: CallBuffers,
        launch: Launch,
        numerics: frozenset[str],
    ) -> None:
        self._exam = exam
        self._candidate = candidate
        self._buffers = buffers
        self._launch = launch
        self._numerics = numerics
        self.error: float | None = None
        self.limit: float | None = None
        self.seconds: float | None = None

    def run_all(self) -> str | None:
        """Run on every set of inputs, the first twice, and return the first problem."""
        return self._run_twice() or next(
            filter(None, map(self._run_once, range(1, len(self._exam._sets)))), None
        )

    def _run_twice(self) -> str | None:
        exam = self._exam
        exam._expected.require(0)
        if self._is_right_there(0, POISONS):
            return None
        first = self._run(0, POISONS[0])
        problem = self._judge(0, first)
        if problem:
            return problem
        second = self._run(0, POISONS[1])
        # what is equal bit for bit was judged the first time
        problem = self._buffers.damage()
        if not problem and not _are_same(first, second):
            problem = self._judge(0, second) or self._differ(first, second)
        return exam._sets[0].damage() or (f"in its second run: {problem}" if problem else None)

    def _run_once(self, number: int) -> str | None:
        try:
            self._exam._expected.require(number)
        except CannotSample:
            return None  # hard values that the reference itself can't take say nothing of the candidate
        if self._is_right_there(number, POISONS[:1]):
            return None
        results = self._run(number, POISONS[0])
        return self._judge(number, results) or self._exam._sets[number].damage()

    def _is_right_there(self, number: int, poisons: Sequence[int]) -> bool:
        """Run over each poison, and return whether the device finds all as it must be; if not, it is all to be done again."""
        exam, judge, buffers = self._exam, self._exam.judge, self._buffers
        if judge is None or any(o is None for o in buffers.outputs) or not judge.can_judge(number):
            return False
        whole = exam._sets[number]
        is_right = whole.is_whole(judge.examiner, exam.stream) and self._runs_right_there(
            number, poisons, judge
        )
        if not is_right or not whole.is_whole(judge.examiner, exam.stream):
            whole.restore()
            buffers.restore_guards()
            return False
        return True

    def _runs_right_there(self, number: int, poisons: Sequence[int], judge: DeviceJudge) -> bool:
        """Return whether the results are right, and over a second poison equal bit for bit to those over the first."""
        stream, outputs, sizes = self._exam.stream, self._buffers.outputs, self._buffers.sizes()
        kept: list[Any] = []
        for poison in poisons:
            self._start(number, poison)
            if self._buffers.damage() is not None:
                return False
            if kept:
                same = judge.examiner.same
                return all(same(o, k, n, stream) for o, k, n in zip(outputs, kept, sizes, strict=True))
            found = judge.error(number, outputs, self._numerics, stream)
            if found is None:
                return False
            self.error, self.limit = max(self.error or 0.0, found[0]), found[1]
            if len(poisons) > 1:
                kept = [judge.examiner.copy(o, n, stream) for o, n in zip(outputs, sizes, strict=True)]
        return True

    def _start(self, number: int, poison: int) -> None:
        """Run once, and wait; the results stay where they are."""
        with self._exam.watch.running(self._exam.signature.key, (self._candidate,), "check"):
            self._run_watched(number, poison, fetch=False)

    def _run(self, number: int, poison: int) -> list[Any]:
        with self._exam.watch.running(self._exam.signature.key, (self._candidate,), "check"):
            return self._run_watched(number, poison)

    def _run_watched(self, number: int, poison: int, *, fetch: bool = True) -> list[Any]:
        exam, buffers = self._exam, self._buffers
        device, stream = exam.device, exam.stream
        buffers.fill(poison)
        device.synchronize()
        start = time.perf_counter()
        try:
            returned = self._launch(list(exam.inputs(number)), buffers.outputs, buffers.workspace, stream)
            # its own stream only: what it left running on another one must not look finished
            device.synchronize(stream)
            self.seconds = time.perf_counter() - start
            results = buffers.results(returned, stream) if fetch else []
            device.synchronize()
        except (Exception, SystemExit) as error:
            raise _RaisedError(failure("run", error)) from error
        return results

    def _judge(self, number: int, results: Sequence[Any]) -> str | None:
        """Return what is wrong with the results, or with the inputs where these have been changed."""
        if damage := self._buffers.damage():
            return damage
        found, self.limit = self._exam._expected.judge(number, results, self._numerics)
        self.error = max(self.error or 0.0, *(c.error for c in found), 0.0)
        wrong = [(i, c.reason) for i, c in enumerate(found) if c.reason is not None]
        if not wrong:
            return None
        return self._exam._sets[number].damage() or f"output {wrong[0][0]} {wrong[0][1]}"

    def _differ(self, first: Sequence[Any], second: Sequence[Any]) -> str | None:
        if "nondeterministic" in self._numerics:
            return None
        for i, (a, b) in enumerate(zip(first, second, strict=True)):
            if isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and not _same_bits(a, b):
                return f"output {i} differs from the first, and 'nondeterministic' is not declared"
        return None


def prepare_failure(error: BaseException) -> Admission:
    """Return the verdict on a candidate that did not get as far as a launch."""
    lasting = not isinstance(error, DeviceError | MemoryError)
    return Admission(False, Outcome.FAILED, failure("prepare", error), lasting=lasting)


def failure(stage: str, error: BaseException) -> str:
    """Return what went wrong in one line: the first that the error's text has."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    text = f"{stage} raised {type(error).__name__}" + (f": {lines[0].strip()[:300]}" if lines else "")
    return text.encode("utf-8", "backslashreplace").decode()  # an error's text may hold what is none


def _are_same(first: Sequence[Any], second: Sequence[Any]) -> bool:
    """Return whether all outputs of two runs are arrays that are equal bit for bit."""
    arrays = all(isinstance(x, np.ndarray) for x in (*first, *second))
    return arrays and len(first) == len(second) and all(map(_same_bits, first, second))


def _same_bits(a: Array, b: Array) -> bool:
    if a.dtype.kind in "OUST" or b.dtype.kind in "OUST":
        return bool(np.array_equal(a, b))
    return a.shape == b.shape and a.dtype == b.dtype and np.array_equal(raw_bytes(a), raw_bytes(b))
