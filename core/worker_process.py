"""One worker process of a build: started, asked, listened to, and ended."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import pickle
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import msgspec
from tactician import errors
from tactician.errors import DeviceError, TacticianError
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
    Opening,
    Raised,
    Request,
    Told,
    Turned,
    Warned,
)

logger = logging.getLogger(__name__)

BOOTSTRAP = "import sys; sys.path[:] = {path!r}; from tactician.worker import main; main()"
PREPARE_MULTIPLE = 10
"""Times ``candidate_timeout`` that preparing may take: compilers are slow."""
PIPE_BYTES = 1 << 20
"""What a worker can tell while the build does something else."""
POLL_SECONDS, FAREWELL_SECONDS, START_SECONDS = 0.2, 10.0, 300.0

Suspect = tuple[str, str]
"""Signature key and tactic id."""


@dataclass(frozen=True)
class Answer:
    """What a worker found: records by signature key, and seconds by phase."""

    records: dict[str, tuple[CandidateRecord, ...]]
    seconds: dict[str, float]


@dataclass(frozen=True)
class Death:
    """How a worker ended before it was done, and who ran then."""

    how: str
    suspects: tuple[Suspect, ...] = ()
    limit: float | None = None
    """Seconds, where it took longer."""
    ambiguous: bool = False
    """Whether others ran beside the suspect, and one of them may have been it."""
    said: str = ""
    """The last line that it wrote."""


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


class WorkerProcess:
    """One worker, from its start to its end; it does one request after the other.

    It begins to load plugins and to open its device at once, while the build does something else.
    """

    def __init__(self, opening: Opening) -> None:
        self._opening = opening
        self._careful = False
        self._occasions: dict[int, _Occasion] = {}
        self._found: dict[str, tuple[CandidateRecord, ...]] = {}
        self._asked, self._heard = time.monotonic(), True
        self._data = bytearray()
        self._writer: threading.Thread | None = None
        self._pipe, writer = os.pipe()
        with contextlib.suppress(
            OSError, AttributeError
        ):  # then a worker may have to wait until it is listened to
            fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  # closed in `close`
        self._child: subprocess.Popen[bytes] | None = None
        try:
            os.set_blocking(self._pipe, False)
            self._start(writer)
        except BaseException:
            self.close(0.0)
            raise
        finally:
            os.close(writer)

    def _start(self, writer: int) -> None:
        path = [entry for entry in sys.path if isinstance(entry, str)]
        try:
            self._child = subprocess.Popen(
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
        self._send(replace(self._opening, descriptor=writer))

    def _send(self, value: Opening | Request) -> None:
        """Write to the worker, which may take its time to read."""
        assert self._child is not None
        assert self._child.stdin is not None
        stdin, data, before = self._child.stdin, pickle.dumps(value), self._writer

        def write() -> None:
            if before is not None:
                before.join()
            with contextlib.suppress(OSError, ValueError):  # it is gone, or was ended: its output says why
                stdin.write(data)
                stdin.flush()

        self._writer = threading.Thread(target=write, daemon=True)
        self._writer.start()
        self._writer.join(POLL_SECONDS)

    def close(self, patience: float = 0.0) -> None:
        """End the worker and what it has started; ``patience`` in seconds is for what it wants to keep."""
        try:
            if patience and self._child is not None and self._child.poll() is None:
                self._child.send_signal(signal.SIGINT)  # it keeps what it has measured
                self._child.wait(patience)
        except subprocess.TimeoutExpired:
            pass
        finally:
            if self._child is not None:
                _kill_group(self._child)
                if self._child.stdin is not None:
                    with contextlib.suppress(OSError):  # what it did not read any more
                        self._child.stdin.close()
            os.close(self._pipe)
            self._output.close()

    def begin(self, request: Request) -> None:
        """Let the worker begin with a request."""
        self._careful = request.careful
        self._occasions, self._found = {}, {}
        self._asked, self._heard = time.monotonic(), False
        self._send(request)

    def follow(self, progress: Callable[[Progress], None] | None) -> Answer | Death:
        """Return what the worker found of the request that it has begun with, or how it ended.

        Raises
        ------
        TacticianError
            What the worker raised.
        """
        for message in self._messages():
            match message:
                case Began():
                    self._occasions[message.token] = _Occasion(message, time.monotonic())
                case Turned():
                    self._occasions[message.token].take_turn(message.index)
                case Ended():
                    self._occasions.pop(message.token, None)
                case Told("discover"):
                    pass  # the build has told it itself
                case Told(phase, done, total, detail, tactics, cached, eta):
                    if progress is not None:
                        progress(Progress(phase, done, total, detail, tactics, cached, eta))
                case Found(key, records):
                    self._found[key] = records
                case Lost(key, candidates, stage, text):
                    at_once = (stage == "prepare" or bool(self._occasions)) and not self._careful
                    suspects = tuple((key, name) for name in candidates)
                    return Death(text, suspects, ambiguous=at_once)
                case Warned(text):
                    logger.warning("%s", text)
                case Raised(name, text):
                    kind = getattr(errors, name, DeviceError)
                    raise (kind if issubclass(kind, TacticianError) else DeviceError)(text)
                case Done(seconds):
                    return Answer(self._found, seconds)
                case None:
                    if late := self._late():
                        return late
                    if self._ended():
                        break
        return Death(self._how(), self._suspects(self._occasions.values()))

    def last_words(self) -> str:
        """Return the last line that the worker wrote to its standard streams."""
        self._output.seek(0)
        lines = self._output.read()[-4000:].decode("utf-8", "replace").strip().splitlines()
        return lines[-1][:300] if lines else ""

    def _messages(self) -> Iterator[Message | None]:
        """Yield messages, and None when for a while there is none."""
        decoder = msgspec.msgpack.Decoder(Message)
        data = self._data
        with selectors.DefaultSelector() as selector:
            selector.register(self._pipe, selectors.EVENT_READ)
            while True:
                if not selector.select(POLL_SECONDS):
                    yield None
                    continue
                part = os.read(self._pipe, 1 << 16)
                if not part:
                    return
                self._heard = True
                data += part
                while len(data) >= HEADER.size:
                    end = HEADER.size + HEADER.unpack_from(data)[0]
                    if len(data) < end:
                        break
                    message = decoder.decode(bytes(data[HEADER.size : end]))
                    del data[:end]  # before it is handed on: whoever takes the last one never comes back
                    yield message

    def _ended(self) -> bool:
        """Return whether the worker is gone although somebody that it started holds its pipe open."""
        return self._child is None or self._child.poll() is not None

    def _late(self) -> Death | None:
        """End the worker where a candidate takes too long, or it does not begin."""
        now, limit = time.monotonic(), self._opening.config.candidate_timeout
        if not self._heard and now - self._asked > START_SECONDS:
            self._kill()
            return Death(f"did not begin within {START_SECONDS:g} s")
        for occasion in self._occasions.values():
            stage = occasion.began.stage
            allowed = limit * (PREPARE_MULTIPLE if stage == "prepare" else 1)
            if now - occasion.since > allowed * len(occasion.suspects):
                self._kill()
                # what hangs with Python's lock held keeps those beside it from telling that they have ended
                suspects = self._suspects(self._occasions.values())
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
