"""The ``numba`` device: memory, tensors, threads, and what tactics may know of the machine."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from importlib.metadata import version
from typing import Any

import numpy as np
from tactician import Device, TensorType, Timer
from tactician.errors import ConfigError, DeviceError
from tactician.plugins.target import Artifacts

from tactician_numba import processor
from tactician_numba.timer import WallClockTimer

Array = np.ndarray[Any, Any]
Work = Callable[[int, int, int], None]
"""``work(begin, end, part)``: does the items from ``begin`` to ``end``; ``part`` numbers the piece, from 0."""

ALIGNMENT = 256
"""Bytes. What the contract of ``Device.allocate`` asks for."""
THREADS_VARIABLE = "NUMBA_NUM_THREADS"
"""Numba's own environment variable for the number of threads."""
CODE_VARIABLES = (
    "NUMBA_CPU_NAME",
    "NUMBA_CPU_FEATURES",
    "NUMBA_ENABLE_AVX",
    "NUMBA_LOOP_VECTORIZE",
    "NUMBA_OPT",
    "NUMBA_SLP_VECTORIZE",
)
"""Environment variables that change the machine code that Numba makes."""


class NumbaTensor:
    """A tensor of this device: ``array`` is its memory, ``flat`` the same in one dimension, for kernels.

    It is no NumPy array, on purpose: the core would take one for a host array that needs no download.
    """

    __slots__ = ("array", "flat")

    def __init__(self, array: Array) -> None:
        self.array = array
        self.flat = array.reshape(-1)

    @property
    def shape(self) -> tuple[int, ...]:
        """Extents."""
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type."""
        return self.array.dtype

    def __dlpack__(self, **options: Any) -> Any:
        """Lend the memory, so that ``numpy.from_dlpack`` and ``torch.from_dlpack`` take the tensor."""
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        """Say that the memory is the host's."""
        return self.array.__dlpack_device__()


class NumbaDevice(Device):
    """The processor as Numba's kernels use it. There are no streams: a launch is done when it returns.

    Facts: ``threads``, ``cpu`` (the processor's name), ``l1_bytes``, ``l2_bytes`` and ``l3_bytes`` as far as
    they can be read. ``l2_bytes`` makes the core rotate copies of weights while it times.

    Parameters
    ----------
    threads
        Threads that ``split`` uses; None for what ``NUMBA_NUM_THREADS`` says, or else the CPUs that this
        process may run on.
    artifacts
        What an engine stores. Nothing is asked of it: compiled kernels are code of this host, and an engine
        is data. Numba keeps them on the disk itself, see ``compiling.py``.

    Raises
    ------
    ConfigError
        If ``NUMBA_NUM_THREADS`` is no positive number.
    """

    target = "numba"

    def __init__(self, threads: int | None = None, artifacts: Artifacts | None = None) -> None:
        self.index = 0
        self.artifacts = artifacts or Artifacts()
        self.name = f"Numba on {processor.name()}"
        self.facts: Mapping[str, int | float | str] = {
            "threads": threads or _default_threads(),
            "cpu": processor.name(),
            **processor.cache_bytes(),
        }
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    @property
    def threads(self) -> int:
        """Pieces that ``split`` cuts work into."""
        return int(self.facts["threads"])

    def fingerprint(self) -> dict[str, str]:
        """Return processor, threads, versions of the compiler, and the settings that change its code."""
        return {
            "device": self.name,
            "threads": str(self.threads),
            "numba": version("numba"),
            "llvmlite": version("llvmlite"),
            "settings": " ".join(f"{v}={os.environ[v]}" for v in CODE_VARIABLES if v in os.environ),
        }

    def requirements(self) -> dict[str, str]:
        """Return nothing: kernels are compiled anew for whatever processor loads the engine."""
        return {}

    def allocate(self, nbytes: int) -> Array:
        """Return an uninitialized byte array that starts at a multiple of 256."""
        try:
            raw = np.empty(nbytes + ALIGNMENT, np.uint8)
        except (MemoryError, ValueError) as error:
            raise DeviceError(
                f"numba: can't allocate {nbytes} bytes of memory: {error}; use a smaller batch"
            ) from error
        start = -raw.ctypes.data % ALIGNMENT
        return raw[start : start + max(nbytes, 1)]

    def view(self, buffer: Array, offset: int, tensor: TensorType) -> NumbaTensor:
        """Return the tensor that starts ``offset`` bytes into ``buffer``."""
        flat = buffer[offset : offset + tensor.nbytes].view(tensor.numpy_dtype)
        return NumbaTensor(flat.reshape(tensor.dims))

    def upload(self, tensor: NumbaTensor, array: Array, stream: Any = None) -> None:
        """Copy ``array`` into ``tensor``."""
        np.copyto(tensor.array, np.asarray(array).reshape(tensor.shape))

    def download(self, tensor: NumbaTensor, stream: Any = None) -> Array:
        """Return a copy of ``tensor``."""
        return np.array(tensor.array)

    def import_tensor(self, array: Any, stream: Any = None) -> NumbaTensor | None:
        """Return a tensor over the memory of ``array`` where kernels can use it as it is, else None.

        Kernels are compiled for arrays that are contiguous, aligned and writable.
        """
        if isinstance(array, NumbaTensor):
            return array
        if not isinstance(array, np.ndarray):
            if not hasattr(array, "__dlpack__"):
                return None
            try:
                array = np.from_dlpack(array)
            except (BufferError, RuntimeError, TypeError, ValueError, AttributeError):
                return None  # it lies elsewhere, or is of a type that NumPy does not know
        return NumbaTensor(array) if array.flags.carray and array.dtype.isnative else None

    def create_stream(self) -> None:
        """Return None: work is done when a call returns."""

    def wrap_stream(self, stream: Any) -> None:
        """Return None, whatever the caller's stream is."""

    def synchronize(self, stream: Any = None) -> None:
        """Do nothing: work is done when a call returns."""

    def timer(self) -> Timer:
        """Return a timer by the wall clock."""
        return WallClockTimer()

    def close(self) -> None:
        """End the threads."""
        with self._lock:
            if self._pool is not None:
                self._pool.shutdown()
                self._pool = None

    def split(self, work: Work, count: int, *, parallel: bool) -> None:
        """Do ``count`` independent items: on the calling thread, or cut into one piece for each thread.

        Pieces are the same for the same ``count``, so a result does not depend on who was quicker. Kernels
        let go of the interpreter's lock, so plain threads compute at the same time.
        """
        parts = min(self.threads, count) if parallel else 1
        if parts < 2:
            work(0, count, 0)
            return
        bounds = [count * part // parts for part in range(parts + 1)]
        pool = self._workers()
        futures: list[Future[None]] = [
            pool.submit(work, bounds[part], bounds[part + 1], part) for part in range(1, parts)
        ]
        try:
            work(bounds[0], bounds[1], 0)
        finally:
            wait(futures)  # whatever happens, nobody writes to the outputs any more after this call
        for future in futures:
            future.result()

    def _workers(self) -> ThreadPoolExecutor:
        """Return the threads besides the calling one, started at the first call."""
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.threads - 1, "tactician-numba")
            return self._pool


def scratch(workspace: NumbaTensor | None, parts: int = 1, dtype: Any = np.float32) -> list[Array]:
    """Return the workspace of a launch as arrays of ``dtype``, one of equal size for each of ``parts``."""
    whole = np.empty(0, dtype) if workspace is None else workspace.flat.view(dtype)
    size = len(whole) // parts
    return [whole[part * size : (part + 1) * size] for part in range(parts)]


def _default_threads() -> int:
    text = os.environ.get(THREADS_VARIABLE, "")
    if not text:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"{THREADS_VARIABLE} is '{text}'; set it to a number of threads, such as 4")
    return int(text)
