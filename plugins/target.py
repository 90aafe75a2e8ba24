"""A target: a kind of device that tactics run on. Targets come through the same hooks as tactics."""

from __future__ import annotations

import hashlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, ClassVar

import numpy as np
from tactician.errors import DeviceError
from tactician.plugins.examiner import Examiner
from tactician.signature import TensorType

Thunk = Callable[[Any], None]
"""Enqueues work on the stream that it is given."""


class Artifacts:
    """Compiled things by content key: filled while an engine is built, stored in it, and read when it is loaded.

    A tactic asks for ``get(key, make)``; ``make`` (a compiler, a serializer) runs only where the key is not there yet.
    """

    def __init__(self, stored: Mapping[str, bytes] | None = None) -> None:
        self._stored: dict[str, bytes] = dict(stored or {})
        self._used: set[str] = set()
        self._lock = threading.Lock()
        self._making: dict[str, threading.Lock] = {}

    def get(self, key: str, make: Callable[[], bytes]) -> bytes:
        """Return the bytes stored under ``key``, made by ``make`` on first use."""
        with self._lock:
            making = self._making.setdefault(key, threading.Lock())
        with making:  # tactics of one call share kernels, and are prepared at the same time
            if key not in self._stored:
                self._stored[key] = make()
        self._used.add(key)
        return self._stored[key]

    def put(self, key: str, data: bytes) -> None:
        """Store what was made elsewhere."""
        self._stored[key] = data

    def __contains__(self, key: str) -> bool:
        return key in self._stored

    def forget_use(self) -> None:
        """Begin to count anew what is used."""
        self._used.clear()

    def used(self) -> dict[str, bytes]:
        """Return what was asked for since ``forget_use``."""
        return {key: self._stored[key] for key in sorted(self._used)}

    @staticmethod
    def key(*parts: str | bytes) -> str:
        """Return the content key of ``parts``: all that the result depends on."""
        digest = hashlib.sha256()
        for part in parts:
            data = part.encode() if isinstance(part, str) else part
            digest.update(len(data).to_bytes(8, "little") + data)
        return digest.hexdigest()


class Timer(ABC):
    """Measures how long thunks take on one device. An argument of the builder, so that tests can script it."""

    @abstractmethod
    def prepare(self, thunk: Thunk, rotate: Sequence[Thunk] = ()) -> Any:
        """Return a contender: ``thunk`` made ready for repeated timing (warmed up, batched, captured).

        ``rotate`` holds the same call over other copies of its weights, cycled through so that they come from
        memory and not from the cache.
        """

    @abstractmethod
    def round(self, contenders: Sequence[Any]) -> list[float]:
        """Run each contender once, in the order given, and return the seconds of one call of each."""

    def release(self, contender: Any) -> None:
        """Free what ``prepare`` took for a contender."""

    def conditions(self) -> dict[str, int | str]:
        """Return what the machine's state was in the last round (``sm_clock_mhz``, ``throttle`` …), as far as it can be read."""
        return {}


class Precompiler(ABC):
    """Compiles in other processes what tactics are going to ask their device for, so that this process can measure."""

    @abstractmethod
    def submit(self, prepare: Callable[[Device], Any]) -> Sequence[Future[None]]:
        """Begin to compile what ``prepare``, a tactic's, asks the device for that it is given.

        That device has the facts of the real one and runs nothing. What fails here fails again, and is told,
        when the tactic is prepared in earnest.

        Returns
        -------
        sequence of Future
            They end when it is compiled, or can't be.
        """


class Device(ABC):
    """One device: what tactics may know of it, its memory, its streams and its timer.

    Buffers and tensors are opaque to the core: only this device and its tactics look inside.
    """

    target: str
    index: int
    name: str
    facts: Mapping[str, int | float | str]
    """What a tactic may decide on: ``compute_capability`` (``"9.0"``), ``multiprocessors``, ``l2_bytes``, ``threads`` …"""
    artifacts: Artifacts

    @abstractmethod
    def fingerprint(self) -> dict[str, str]:
        """Return, field by field, all that measured times depend on: names, counts, clocks, driver and library versions."""

    def requirements(self) -> dict[str, str]:
        """Return what another device must have in common with this one to run an engine built on it."""
        return {}

    @abstractmethod
    def allocate(self, nbytes: int) -> Any:
        """Return a buffer of at least ``nbytes`` bytes, aligned to 256.

        Raises
        ------
        DeviceError
            If the device is out of memory.
        """

    @abstractmethod
    def view(self, buffer: Any, offset: int, tensor: TensorType) -> Any:
        """Return the static tensor that starts ``offset`` bytes into ``buffer``."""

    @abstractmethod
    def upload(self, tensor: Any, array: np.ndarray[Any, Any], stream: Any = None) -> None:
        """Copy ``array`` from the host into ``tensor``; on return ``array`` may be reused."""

    @abstractmethod
    def download(self, tensor: Any, stream: Any = None) -> np.ndarray[Any, Any]:
        """Return a host copy of ``tensor``, after all work enqueued on ``stream``."""

    def fill(self, tensor: Any, nbytes: int, byte: int) -> None:
        """Set all ``nbytes`` bytes of ``tensor``, whose elements are bytes, to ``byte``, and wait.

        A device that can do that without a copy from the host should.
        """
        self.upload(tensor, np.full(nbytes, byte, np.uint8))

    def examiner(self) -> Examiner | None:
        """Return what compares large results on the device; None where they come to the host for that."""
        return None

    @abstractmethod
    def import_tensor(self, array: Any, stream: Any = None) -> Any:
        """Return a tensor that shares the memory of ``array`` (DLPack), or None where it lies elsewhere or is not contiguous."""

    @abstractmethod
    def create_stream(self) -> Any:
        """Return a new stream; on a device without streams, None."""

    @abstractmethod
    def wrap_stream(self, stream: Any) -> Any:
        """Return a caller's stream (an object with ``__cuda_stream__``, a handle) in this device's form."""

    @abstractmethod
    def synchronize(self, stream: Any = None) -> None:
        """Wait for all work on ``stream``, or on the whole device.

        Raises
        ------
        DeviceError
            If the device reports a failure of that work.
        """

    def mark(self, stream: Any) -> Any:
        """Return a mark of all that is enqueued on ``stream`` so far, for ``wait``; None where nothing is ever pending."""
        return None

    def wait(self, stream: Any, mark: Any) -> None:
        """Let what is enqueued on ``stream`` from now on wait for ``mark``; None is nothing to wait for."""

    def capture(self, thunk: Thunk) -> Thunk | None:
        """Record ``thunk`` as a graph that can be replayed on any stream, or return None where there are no graphs."""
        return None

    def precompiler(self, processes: int) -> Precompiler | None:
        """Return what compiles ahead, in ``processes`` processes; None where tactics are prepared here, before any is timed.

        A device should have one if work on the host does not disturb times that are taken on it.
        """
        return None

    @abstractmethod
    def timer(self) -> Timer:
        """Return a timer of this device."""

    def close(self) -> None:
        """Free what the device holds."""


class Target(ABC):
    """A kind of device, such as ``cpu`` or ``cuda``."""

    name: ClassVar[str]
    fallback: ClassVar[str | None] = "cpu"
    """The target that runs what this one has no tactic for."""
    isolated: ClassVar[bool] = True
    """Whether candidates are measured in a process of their own: where a bad launch ends the process or its device."""

    @abstractmethod
    def unavailable(self) -> str | None:
        """Return why no device of this target can be used here, in words, or None. Must be cheap."""

    @abstractmethod
    def count(self) -> int:
        """Return the number of devices."""

    @abstractmethod
    def device(self, index: int = 0, artifacts: Artifacts | None = None) -> Device:
        """Open device ``index``."""

    def offline_device(self, architecture: str) -> Device:
        """Return a device of an architecture that is not there: tactics can be asked and compiled for it, not run.

        Raises
        ------
        DeviceError
            If this target has no such devices, or does not know the architecture.
        """
        raise DeviceError(f"target '{self.name}' can't compile for a device that is not there")
