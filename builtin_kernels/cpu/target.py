"""The ``cpu`` target: the machine's own processor and memory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from tactician.builtin_kernels.cpu import machine
from tactician.builtin_kernels.cpu.timer import CpuTimer
from tactician.errors import ConfigError, DeviceError
from tactician.plugins.target import Artifacts, Device, Target, Timer
from tactician.signature import TensorType

Array = np.ndarray[Any, Any]

ALIGNMENT = 256
THREADS_VARIABLE = "TACTICIAN_THREADS"
"""Environment variable with the number of threads that the ``cpu`` target uses."""


class CpuTarget(Target):
    """The processor that this process runs on; always there, and the last to fall back to."""

    name: ClassVar[str] = "cpu"
    isolated: ClassVar[bool] = False  # a second process takes longer to start than most calls to be measured
    fallback: ClassVar[str | None] = None

    def unavailable(self) -> str | None:
        """Return None: there is always a CPU."""
        return None

    def count(self) -> int:
        """Return 1."""
        return 1

    def device(self, index: int = 0, artifacts: Artifacts | None = None) -> Device:
        """Open the CPU.

        Raises
        ------
        DeviceError
            If ``index`` is not 0.
        """
        if index != 0:
            raise DeviceError(f"target 'cpu' has 1 device; there is no device {index}")
        return CpuDevice(artifacts=artifacts)


class CpuDevice(Device):
    """The CPU: buffers are byte arrays, tensors are NumPy arrays, there are no streams.

    Parameters
    ----------
    threads
        Threads of ONNX Runtime's pool, which is made once in a process; None for what ``TACTICIAN_THREADS``
        says or else the CPUs that this process may run on. Everything else computes on the calling thread.
    artifacts
        What an engine stores for its tactics.

    Raises
    ------
    ConfigError
        If ``TACTICIAN_THREADS`` is no positive number.
    """

    def __init__(self, threads: int | None = None, artifacts: Artifacts | None = None) -> None:
        self.target = "cpu"
        self.index = 0
        self.artifacts = artifacts or Artifacts()
        self.name = machine.processor_name()
        self.facts: Mapping[str, int | float | str] = {
            "threads": threads or _default_threads(),
            "cpu": self.name,
            "isa": machine.instruction_sets(),
            **machine.cache_bytes(),
        }

    @property
    def threads(self) -> int:
        """Threads that tactics use."""
        return int(self.facts["threads"])

    def fingerprint(self) -> dict[str, str]:
        """Return processor, threads, and the versions of the libraries that compute."""
        return {
            "device": self.name,
            "threads": str(self.threads),
            "isa": str(self.facts["isa"]),
        } | machine.library_versions()

    def requirements(self) -> dict[str, str]:
        """Return nothing: every CPU runs every CPU engine, only not equally fast."""
        return {}

    def allocate(self, nbytes: int) -> Array:
        """Return an uninitialized byte array that starts at a multiple of 256."""
        nbytes = max(nbytes, 1)  # an empty array has no address of its own
        try:
            raw = np.empty(nbytes + ALIGNMENT, np.uint8)
        except (MemoryError, ValueError) as error:
            raise DeviceError(
                f"cpu: can't allocate {nbytes} bytes of memory: {error}; use a smaller batch"
            ) from error
        start = -raw.ctypes.data % ALIGNMENT
        return raw[start : start + nbytes]

    def view(self, buffer: Array, offset: int, tensor: TensorType) -> Array:
        """Return the tensor at ``offset`` bytes into ``buffer``; strings get an array of their own."""
        if tensor.dtype == "string":
            return np.empty(tensor.dims, object)
        flat: Array = buffer[offset : offset + tensor.nbytes].view(tensor.numpy_dtype)
        return flat.reshape(tensor.dims)

    def upload(self, tensor: Array, array: Array, stream: Any = None) -> None:
        """Copy ``array`` into ``tensor``."""
        np.copyto(tensor, np.asarray(array).reshape(tensor.shape))

    def download(self, tensor: Array, stream: Any = None) -> Array:
        """Return a copy of ``tensor``."""
        return np.array(tensor)

    def import_tensor(self, array: Any, stream: Any = None) -> Array | None:
        """Return ``array``, or a view of a host tensor with DLPack, if it is contiguous."""
        if not isinstance(array, np.ndarray):
            if not hasattr(array, "__dlpack__"):
                return None
            try:
                array = np.from_dlpack(array)
            except (BufferError, RuntimeError, TypeError, ValueError, AttributeError):
                return None  # elsewhere, or of a type that NumPy does not know
        return array if array.flags.c_contiguous else None

    def create_stream(self) -> None:
        """Return None: work is done when a call returns."""

    def wrap_stream(self, stream: Any) -> None:
        """Return None, whatever the caller's stream is."""

    def synchronize(self, stream: Any = None) -> None:
        """Do nothing: work is done when a call returns."""

    def timer(self) -> Timer:
        """Return a timer by the machine's monotonic clock."""
        return CpuTimer()


def _default_threads() -> int:
    text = os.environ.get(THREADS_VARIABLE, "")
    if not text:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"{THREADS_VARIABLE} is '{text}'; set it to a number of threads, such as 4")
    return int(text)
