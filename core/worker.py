"""The process that checks and times candidates for a build, so that one that crashes or hangs takes no build with it."""

from __future__ import annotations

import ctypes
import logging
import os
import pickle
import signal
import struct
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, BinaryIO, ClassVar

import msgspec
from tactician.config import BuilderConfig
from tactician.errors import BuildCancelledError, DeviceError, TacticianError
from tactician.plugins.manager import load_plugins
from tactician.plugins.reference import reference_for
from tactician.plugins.target import Artifacts, Thunk, Timer
from tactician.signature import OpSignature
from tactician.tactics.admission import DeviceLostError
from tactician.tactics.cache import TimingCache
from tactician.tactics.measure import Measurer, Progress
from tactician.tactics.record import CandidateRecord
from tactician.tactics.watch import Watch

HEADER = struct.Struct("<I")
"""Length of a message in bytes; the message follows, as MessagePack."""


@dataclass(frozen=True)
class Opening:
    """What a worker begins with.

    Parameters
    ----------
    config
        Of the build; its timing cache is where verdicts are kept, also for the next worker.
    target, device
        Name and index.
    descriptor
        Of the pipe to write messages to.
    parent
        Process id of the build: the worker does not outlive it.
    """

    config: BuilderConfig
    target: str
    device: int
    descriptor: int
    parent: int


@dataclass(frozen=True)
class Request:
    """What a worker is to do next.

    Parameters
    ----------
    decided, named
        As ``Measurer`` takes them.
    condemned
        As ``Measurer`` has it.
    careful
        Whether to do one thing at a time, so that it is known who takes the process down.
    """

    signatures: Sequence[OpSignature]
    decided: Mapping[str, frozenset[str]]
    named: Mapping[str, frozenset[str]]
    condemned: Mapping[tuple[str, str], str]
    careful: bool


class Began(msgspec.Struct, tag=True, frozen=True):
    """Candidates began to run; ``token`` names this occasion."""

    token: int
    key: str
    candidates: tuple[str, ...]
    stage: str


class Turned(msgspec.Struct, tag=True, frozen=True):
    """Of the candidates of an occasion, it is this one's turn."""

    token: int
    index: int


class Ended(msgspec.Struct, tag=True, frozen=True):
    """An occasion is over."""

    token: int


class Told(msgspec.Struct, tag=True, frozen=True):
    """Progress."""

    phase: str
    done: int
    total: int
    detail: str
    tactics: int
    cached: int
    eta_seconds: float | None


class Found(msgspec.Struct, tag=True, frozen=True):
    """All records of one signature."""

    key: str
    records: tuple[CandidateRecord, ...]


class Lost(msgspec.Struct, tag=True, frozen=True):
    """One of these candidates left the device unusable."""

    key: str
    candidates: tuple[str, ...]
    stage: str
    text: str


class Warned(msgspec.Struct, tag=True, frozen=True):
    """Something that the build's user should read."""

    text: str


class Raised(msgspec.Struct, tag=True, frozen=True):
    """An error that ends the build."""

    error: str
    text: str


class Done(msgspec.Struct, tag=True, frozen=True):
    """Everything of a request was found, in so many seconds by phase."""

    seconds: dict[str, float]


Message = Began | Turned | Ended | Told | Found | Lost | Warned | Raised | Done


class Reporter(Watch):
    """Writes messages to the pipe, from any thread."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._encoder = msgspec.msgpack.Encoder()
        self._lock = threading.Lock()
        self._tokens = count()
        self.latest = 0
        """Token of the occasion that began last."""
        self.names: tuple[str, ...] = ()
        """Candidates of that occasion."""

    def send(self, message: Message) -> None:
        """Write one message."""
        data = self._encoder.encode(message)
        data = HEADER.pack(len(data)) + data
        with self._lock:
            while data:
                data = data[os.write(self._descriptor, data) :]

    @contextmanager
    def running(self, key: str, candidates: Sequence[str], stage: str) -> Iterator[None]:
        """Tell the build who may be to blame from now on."""
        token = self.latest = next(self._tokens)
        self.names = tuple(candidates)
        self.send(Began(token, key, tuple(candidates), stage))
        try:
            yield
        finally:
            self.send(Ended(token))

    def progress(self, progress: Progress) -> None:
        """Pass progress on."""
        p = progress
        self.send(Told(p.phase, p.done, p.total, p.detail, p.tactics, p.cached, p.eta_seconds))


class OneByOne(Timer):
    """Runs the contenders of a round one after the other, and says whose turn it is."""

    def __init__(self, timer: Timer, reporter: Reporter) -> None:
        self._timer, self._reporter = timer, reporter

    def prepare(self, thunk: Thunk, rotate: Sequence[Thunk] = ()) -> Any:
        """Prepare as the timer does."""
        return self._timer.prepare(thunk, rotate)

    def round(self, contenders: Sequence[Any]) -> list[float]:
        """Return the seconds of each."""
        seconds = []
        for index, contender in enumerate(contenders):
            self._reporter.send(Turned(self._reporter.latest, index))
            try:
                seconds += self._timer.round([contender])
            except DeviceError as error:
                error.candidates = (self._reporter.names[index],)  # type: ignore[attr-defined]  # for who asks
                raise
        return seconds

    def release(self, contender: Any) -> None:
        """Release as the timer does."""
        self._timer.release(contender)

    def conditions(self) -> dict[str, int | str]:
        """Return the timer's conditions."""
        return self._timer.conditions()


class Worker:
    """Does requests on one device, one after the other."""

    PR_SET_PDEATHSIG: ClassVar[int] = 1

    def __init__(self, opening: Opening) -> None:
        self._opening = opening
        self._reporter = Reporter(opening.descriptor)

    def run(self, requests: BinaryIO) -> None:
        """Do what is asked for until nothing more is, and send what comes of it."""
        self._die_with_parent()
        logging.getLogger("tactician.tactics").addHandler(_Forward(self._reporter))
        try:
            self._open()
            while (request := _read(requests)) is not None:
                self._do(request)
        except DeviceLostError as error:
            self._reporter.send(Lost(error.key, error.candidates, error.stage, str(error)))
        except (BuildCancelledError, KeyboardInterrupt):
            return
        except TacticianError as error:
            self._reporter.send(Raised(type(error).__name__, str(error)))

    def _open(self) -> None:
        config = self._opening.config
        self._plugins = load_plugins(config)
        self._device = self._plugins.target(self._opening.target).device(self._opening.device, Artifacts())
        self._timer = self._device.timer()
        self._cache = TimingCache(config.timing_cache)

    def _do(self, request: Request) -> None:
        plugins = self._plugins
        self._reporter.careful = request.careful
        measurer = Measurer(
            plugins.registry,
            self._device,
            OneByOne(self._timer, self._reporter) if request.careful else self._timer,
            lambda signature: reference_for(signature, plugins.ops),
            cache=self._cache,
            config=self._opening.config,
            hooks=plugins.hooks.filter_tactics,
            progress=self._reporter.progress,
            decided=request.decided,
            named=request.named,
            watch=self._reporter,
        )
        measurer.condemned.update(request.condemned)
        for key, measured in measurer.measure_all(request.signatures).items():
            self._reporter.send(Found(key, measured.records))
        self._reporter.send(Done(measurer.stopwatch.seconds))

    def _die_with_parent(self) -> None:
        os.set_inheritable(
            self._opening.descriptor, False
        )  # what this process starts must not hold the pipe open
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(self.PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != self._opening.parent:
            os._exit(1)


def _read(requests: BinaryIO) -> Request | None:
    """Return the next request; None where the build wants nothing more."""
    try:
        request: Request = pickle.load(requests)  # from the build that started this process
    except EOFError:
        return None
    return request


def main() -> None:
    """Read from standard input how to begin, then requests, and do them; does not return."""
    code = 0
    try:
        opening: Opening = pickle.load(sys.stdin.buffer)  # from the build that started this process
        Worker(opening).run(sys.stdin.buffer)
    except BaseException:
        traceback.print_exc()
        code = 1
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os._exit(code)  # nothing of a library or a driver gets the chance to fail or hang while it is torn down


class _Forward(logging.Handler):
    """Sends warnings to the build."""

    def __init__(self, reporter: Reporter) -> None:
        super().__init__(logging.WARNING)
        self._reporter = reporter

    def emit(self, record: logging.LogRecord) -> None:
        self._reporter.send(Warned(record.getMessage().encode("utf-8", "backslashreplace").decode()))
