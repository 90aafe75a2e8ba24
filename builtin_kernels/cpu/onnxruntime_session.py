"""ONNX Runtime's sessions for single nodes, kept while in use."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
from tactician.builtin_kernels.cpu import onnxruntime_c

Array = np.ndarray[Any, Any]

MAX_SESSIONS = 256
"""Sessions without packed weights that are kept for the next question about the same signature."""

_FATAL = 4

_sessions: OrderedDict[str, Any] = OrderedDict()
_lock = threading.Lock()


class Session(Protocol):
    """A session on buffers, and the names of its inputs and outputs in its own order."""

    inputs: list[str]
    outputs: list[str]

    def bind(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> Callable[[], None]:
        """Return what runs the session from and to the memory of these arrays."""
        ...


class PythonSession:
    """A session of the Python package, for what C sessions don't take and where there is no C library.

    Its threads are its own: they sleep between runs, since those of many sessions would take the cores from
    each other.
    """

    def __init__(self, model: bytes, threads: int, weights: Mapping[str, Array] | None = None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = _FATAL
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.enable_mem_pattern = False
        options.enable_cpu_mem_arena = False
        if weights:
            values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
            options.add_external_initializers(list(weights), values)
        self._session = onnxruntime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
        self.inputs = [i.name for i in self._session.get_inputs()]
        self.outputs = [o.name for o in self._session.get_outputs()]

    def bind(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> Callable[[], None]:
        """Return what runs the session from and to the memory of these arrays."""
        binding, session = self._session.io_binding(), self._session
        for name, x in zip(self.inputs, inputs, strict=True):
            binding.bind_input(name, "cpu", 0, x.dtype, x.shape, x.ctypes.data)
        for name, y in zip(self.outputs, outputs, strict=True):
            binding.bind_output(name, "cpu", 0, y.dtype, y.shape, y.ctypes.data)
        return lambda: session.run_with_iobinding(binding)

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        """Run on any values: arrays of any shape, of strings, and lists of arrays."""
        results: list[Any] = self._session.run(self.outputs, dict(zip(self.inputs, inputs, strict=True)))
        return results


@cache
def is_installed() -> bool:
    """Return whether ONNX Runtime can be imported, without doing it."""
    return find_spec("onnxruntime") is not None


def create_session(model: bytes, threads: int, weights: Mapping[str, Array] | None = None) -> Session:
    """Return a session on buffers: one of the C library, which all share their threads, if there is one."""
    kind = onnxruntime_c.CSession if onnxruntime_c.is_available() else PythonSession
    return kind(model, threads, weights)


def shared_session(key: str, create: Callable[[], Any]) -> Any:
    """Return the session kept under ``key``, created at first."""
    with _lock:
        session = _sessions.get(key)
        if session is not None:
            _sessions.move_to_end(key)
            return session
    session = create()
    with _lock:
        _sessions[key] = session
        while len(_sessions) > MAX_SESSIONS:
            _sessions.popitem(last=False)
    return session
