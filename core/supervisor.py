"""Has candidates measured by a worker process, finds out who takes it down or hangs, and starts another one."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec
from tactician import errors
from tactician.config import BuilderConfig
from tactician.errors import DeviceError, TacticianError
from tactician.signature import OpSignature
from tactician.tactics.measure import Progress
from tactician.tactics.record import CandidateRecord
from tactician.worker import (
    HEADER,
    Began,
    Done,
    Ended,
    Found,
    Lost,
    Message,
    Raised,
    Request,
    Told,
    Turned,
    Warned,
)

logger = logging.getLogger(__name__)

BOOTSTRAP = "import sys; sys.path[:] = {path!r}; from tactician.worker import main; main()"
STRIKES = 2
"""Processes that a candidate must take down before it is blamed: the first may have been an accident."""
MOST_WORKERS = 100
PREPARE_MULTIPLE = 10
"""Times ``candidate_timeout`` that preparing may take: compilers are slow."""
POLL_SECONDS, FAREWELL_SECONDS, START_SECONDS = 0.2, 10.0, 300.0

Suspect = tuple[str, str]
"""Signature key and tactic id."""


@dataclass(frozen=True)
class Death:
    """How a worker ended before it was done, and who ran then."""

    how: str
    suspects: tuple[Suspect, ...] = ()
    limit: float | None = None
    """Seconds, where it took longer."""
    ambiguous: bool = False
    """Whether others ran beside the suspect, and one of them may have been it."""


class Supervisor:
    """Measures calls on one device by workers.

    Parameters
    ----------
    config
        Its timing cache is what workers share: each goes on where the last one ended.
    condemn
        ``condemn(signature, tactic, reason, limit)`` writes to that cache that a tactic is not to be run again; the
        limit in seconds is None unless it was broken.
    progress
        Called as it goes on; may raise to cancel.
    """

    def __init__(
        self,
        config: BuilderConfig,
        target: str,
        device: int,
        decided: Mapping[str, frozenset[str]],
        condemn: Callable[[OpSignature, str, str, float | None], None],
        progress: Callable[[Progress], None] | None = None,
    ) -> None:
        self._request = Request(config, target, device, (), decided, {}, False, 0, os.getpid())
        self._condemn = condemn
        self._progress = progress

    def measure(self, signatures: Sequence[OpSignature]) -> dict[str, tuple[CandidateRecord, ...]]:
        """Return the records of all candidates, by signature key.

        Raises
        ------
        DeviceError
            If workers end without a candidate to blame for it, or again and again.
        TacticianError
            What a worker raised.
        """
        jury = _Jury({s.key: s for s in signatures}, self._condemn)
        for _ in range(MOST_WORKERS):
            request = replace(
                self._request,
                signatures=tuple(signatures),
                condemned=dict(jury.condemned),
                careful=jury.careful,
            )
            with _Process(request) as process:
                end = process.follow(self._progress)
                if not isinstance(end, Death):
                    return end
                said = process.last_words()
            jury.judge(end, said)
        raise DeviceError(
            f"candidates took down {MOST_WORKERS} processes that measured them: "
            + ", ".join(sorted({tactic for _, tactic in jury.strikes}))
            + "; leave their plugin out (--no-plugin NAME), or tell its author"
        )


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

    def judge(self, death: Death, said: str) -> None:
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
            self._nobody(death, said)
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

    def _nobody(self, death: Death, said: str) -> None:
        self._unexplained += 1
        if self._unexplained == STRIKES:
            raise DeviceError(
                f"the process that measures candidates {death.how}, with no candidate to blame"
                + (f": {said}" if said else "")
                + "; build with isolate=False (--no-isolate) to measure within this process"
            )


@dataclass
class _Occasion:
    """Candidates that run now."""

    began: Began
    since: float
    turn: int | None = None

    def take_turn(self, index: int) -> None:
        """One of the candidates runs alone from now on."""
        self.turn, self.since = index, time.monotonic()

    @property
    def suspects(self) -> list[Suspect]:
        names = self.began.candidates if self.turn is None else (self.began.candidates[self.turn],)
        return [(self.began.key, name) for name in names]


@dataclass
class _Process:
    """One worker, from its start to its end."""

    request: Request
    occasions: dict[int, _Occasion] = field(default_factory=dict)
    found: dict[str, tuple[CandidateRecord, ...]] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
    heard: bool = False

    def __enter__(self) -> _Process:
        self._pipe, writer = os.pipe()
        self._output = tempfile.TemporaryFile()  # closed in __exit__
        self._child: subprocess.Popen[bytes] | None = None
        try:
            os.set_blocking(self._pipe, False)
            self._child = self._start(writer)
        except BaseException:
            self._clean_up(0.0)
            raise
        finally:
            os.close(writer)
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._clean_up(FAREWELL_SECONDS if error is not None else 1.0)

    def _start(self, writer: int) -> subprocess.Popen[bytes]:
        path = [entry for entry in sys.path if isinstance(entry, str)]
        try:
            child = subprocess.Popen(
                [sys.executable, "-c", BOOTSTRAP.format(path=path)],
                stdin=subprocess.PIPE,
                stdout=self._output,
                stderr=self._output,
                pass_fds=(writer,),
                start_new_session=True,  # Ctrl-C is for the build, which ends its workers
            )
        except OSError as error:
            raise DeviceError(
                f"the process that measures candidates can't be started ({error}); build with isolate=False "
                "(--no-isolate) to measure within this process"
            ) from error
        self._child = child  # from here on it is cleaned up
        assert child.stdin is not None
        try:
            pickle.dump(replace(self.request, descriptor=writer), child.stdin)
            child.stdin.close()
        except BrokenPipeError:
            pass  # it is gone already: its output says why
        return child

    def _clean_up(self, patience: float) -> None:
        """End the worker and what it has started; ``patience`` in seconds is for what it wants to keep."""
        try:
            if self._child is not None and self._child.poll() is None:
                self._child.send_signal(signal.SIGINT)  # it keeps what it has measured
                self._child.wait(patience)
        except subprocess.TimeoutExpired:
            pass
        finally:
            if self._child is not None:
                _kill_group(self._child)
            os.close(self._pipe)
            self._output.close()

    def follow(
        self, progress: Callable[[Progress], None] | None
    ) -> dict[str, tuple[CandidateRecord, ...]] | Death:
        """Return what the worker found, or how it ended."""
        for message in self._messages():
            match message:
                case Began():
                    self.occasions[message.token] = _Occasion(message, time.monotonic())
                case Turned():
                    self.occasions[message.token].take_turn(message.index)
                case Ended():
                    self.occasions.pop(message.token, None)
                case Told("discover"):
                    pass  # the build has told it itself
                case Told(phase, done, total, detail, tactics, cached, eta):
                    if progress is not None:
                        progress(Progress(phase, done, total, detail, tactics, cached, eta))
                case Found(key, records):
                    self.found[key] = records
                case Lost(key, candidates, stage, text):
                    at_once = stage == "prepare" and not self.request.careful
                    suspects = tuple((key, name) for name in candidates)
                    return Death(text, suspects, ambiguous=at_once)
                case Warned(text):
                    logger.warning("%s", text)
                case Raised(name, text):
                    kind = getattr(errors, name, DeviceError)
                    raise (kind if issubclass(kind, TacticianError) else DeviceError)(text)
                case Done():
                    return self.found
                case None:
                    if late := self._late():
                        return late
                    if self._ended():
                        break
        return Death(self._how(), self._suspects(self.occasions.values()))

    def last_words(self) -> str:
        """Return the last line that the worker wrote to its standard streams."""
        self._output.seek(0)
        lines = self._output.read()[-4000:].decode("utf-8", "replace").strip().splitlines()
        return lines[-1][:300] if lines else ""

    def _messages(self) -> Iterator[Message | None]:
        """Yield messages, and None when for a while there is none."""
        decoder = msgspec.msgpack.Decoder(Message)
        data = bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(self._pipe, selectors.EVENT_READ)
            while True:
                if not selector.select(POLL_SECONDS):
                    yield None
                    continue
                part = os.read(self._pipe, 1 << 16)
                if not part:
                    return
                self.heard = True
                data += part
                while len(data) >= HEADER.size:
                    end = HEADER.size + HEADER.unpack_from(data)[0]
                    if len(data) < end:
                        break
                    yield decoder.decode(bytes(data[HEADER.size : end]))
                    del data[:end]

    def _ended(self) -> bool:
        """Return whether the worker is gone although somebody that it started holds its pipe open."""
        return self._child is None or self._child.poll() is not None

    def _late(self) -> Death | None:
        """End the worker where a candidate takes too long, or it does not begin."""
        now, limit = time.monotonic(), self.request.config.candidate_timeout
        if not self.heard and now - self.started > START_SECONDS:
            self._kill()
            return Death(f"did not begin within {START_SECONDS:g} s")
        for occasion in self.occasions.values():
            stage = occasion.began.stage
            allowed = limit * (PREPARE_MULTIPLE if stage == "prepare" else 1)
            if now - occasion.since > allowed * len(occasion.suspects):
                self._kill()
                # what hangs with Python's lock held keeps those beside it from telling that they have ended
                suspects = self._suspects(self.occasions.values())
                return Death(f"did not end within {allowed:g} s ({stage})", suspects, limit)
        return None

    def _kill(self) -> None:
        if self._child is not None:
            _kill_group(self._child)

    def _how(self) -> str:
        assert self._child is not None
        try:
            code = self._child.wait(FAREWELL_SECONDS)
        except subprocess.TimeoutExpired:
            _kill_group(self._child)
            return "closed its pipe and did not end"
        if code >= 0:
            return f"took down the process that measured it (exit code {code})"
        return f"took down the process that measured it ({signal.Signals(-code).name})"

    @staticmethod
    def _suspects(occasions: Iterable[_Occasion]) -> tuple[Suspect, ...]:
        return tuple(dict.fromkeys(s for o in occasions for s in o.suspects))


def _kill_group(child: subprocess.Popen[bytes]) -> None:
    """End a worker and all that it has started (compilers), which are in its session."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
