"""Has candidates measured by a worker process, finds out who takes it down or hangs, and starts another one."""

from __future__ import annotations

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
)

BOOTSTRAP = "import sys; sys.path[:] = {path!r}; from tactician.worker import main; main()"
STRIKES = 2
"""Processes that a candidate must take down before it is blamed: the first may have been an accident."""
MOST_WORKERS = 100
PREPARE_MULTIPLE = 10
"""Times ``candidate_timeout`` that preparing may take: compilers are slow."""
POLL_SECONDS, FAREWELL_SECONDS = 0.2, 10.0

Suspect = tuple[str, str]
"""Signature key and tactic id."""


@dataclass(frozen=True)
class Death:
    """How a worker ended before it was done, and who ran then."""

    how: str
    suspects: tuple[Suspect, ...] = ()


class Supervisor:
    """Measures calls on one device by workers.

    Parameters
    ----------
    config
        Its timing cache is what workers share: each goes on where the last one ended.
    condemn
        ``condemn(signature, tactic, reason)`` writes to that cache that a tactic is not to be run again.
    progress
        Called as it goes on; may raise to cancel.
    """

    def __init__(
        self,
        config: BuilderConfig,
        target: str,
        device: int,
        decided: Mapping[str, frozenset[str]],
        condemn: Callable[[OpSignature, str, str], None],
        progress: Callable[[Progress], None] | None = None,
    ) -> None:
        self._request = Request(config, target, device, (), decided, False, 0, os.getpid())
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
        calls = {s.key: s for s in signatures}
        strikes: Counter[Suspect] = Counter()
        unexplained, careful = 0, False
        for _ in range(MOST_WORKERS):
            request = replace(self._request, signatures=tuple(signatures), careful=careful)
            with _Process(request) as process:
                end = process.follow(self._progress)
                if not isinstance(end, Death):
                    return end
                said = process.last_words()
            if len(end.suspects) == 1:
                (suspect,) = end.suspects
                strikes[suspect] += 1
                if strikes[suspect] == STRIKES:
                    self._condemn(calls[suspect[0]], suspect[1], end.how)
                careful = careful and strikes[suspect] < STRIKES
            elif end.suspects and not careful:
                careful = True
            elif end.how:
                unexplained += 1
                if unexplained == STRIKES:
                    raise DeviceError(
                        f"the process that measures candidates {end.how}, with no candidate to blame"
                        + (f": {said}" if said else "")
                        + "; build with isolate=False (--no-isolate) to measure within this process"
                    )
        raise DeviceError(
            f"candidates took down {MOST_WORKERS} processes that measured them: "
            + ", ".join(sorted({tactic for _, tactic in strikes}))
            + "; leave their plugin out (--no-plugin NAME), or tell its author"
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
    _finished: bool = False

    def __enter__(self) -> _Process:
        self._pipe, writer = os.pipe()
        os.set_blocking(self._pipe, False)
        self._output = tempfile.TemporaryFile()  # closed in __exit__
        self._child = subprocess.Popen(
            [sys.executable, "-c", BOOTSTRAP.format(path=sys.path)],
            stdin=subprocess.PIPE,
            stdout=self._output,
            stderr=self._output,
            pass_fds=(writer,),
            start_new_session=True,  # Ctrl-C is for the build, which ends its workers
        )
        os.close(writer)
        assert self._child.stdin is not None
        try:
            pickle.dump(replace(self.request, descriptor=writer), self._child.stdin)
            self._child.stdin.close()
        except BrokenPipeError:
            pass  # it is gone already: its output says why
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._child.poll() is None:
            self._child.send_signal(signal.SIGINT)  # it keeps what it has measured
            try:
                self._child.wait(FAREWELL_SECONDS if error is not None else 1.0)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
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
                case Lost():
                    return Death("")
                case Raised(name, text):
                    kind = getattr(errors, name, DeviceError)
                    raise (kind if issubclass(kind, TacticianError) else DeviceError)(text)
                case Done():
                    return self.found
                case None:
                    if late := self._late():
                        return late
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
                data += part
                while len(data) >= HEADER.size:
                    end = HEADER.size + HEADER.unpack_from(data)[0]
                    if len(data) < end:
                        break
                    yield decoder.decode(bytes(data[HEADER.size : end]))
                    del data[:end]
                yield None

    def _late(self) -> Death | None:
        """End the worker where a candidate takes too long."""
        now, limit = time.monotonic(), self.request.config.candidate_timeout
        for occasion in self.occasions.values():
            allowed = limit * (PREPARE_MULTIPLE if occasion.began.stage == "prepare" else 1)
            if now - occasion.since > allowed * len(occasion.suspects):
                self._child.kill()
                self._child.wait()
                return Death(
                    f"did not end within {allowed:g} s ({occasion.began.stage})", self._suspects([occasion])
                )
        return None

    def _how(self) -> str:
        code = self._child.wait()
        if code >= 0:
            return f"took down the process that measured it (exit code {code})"
        return f"took down the process that measured it ({signal.Signals(-code).name})"

    @staticmethod
    def _suspects(occasions: Iterable[_Occasion]) -> tuple[Suspect, ...]:
        return tuple(dict.fromkeys(s for o in occasions for s in o.suspects))
