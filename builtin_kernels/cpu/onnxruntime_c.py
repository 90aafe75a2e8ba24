"""ONNX Runtime through its C interface: sessions on buffers, in an environment of their own.

A network run node by node needs one pool of threads for all its sessions. From Python a pool can only be
shared by the whole process: ``set_global_thread_pool_sizes`` makes every session fail that the application
creates with a pool of its own. The package's C library is another copy, with an environment that nobody else
sees.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Mapping, Sequence
from ctypes import POINTER, byref, c_char_p, c_int, c_int64, c_size_t, c_uint32, c_void_p
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from tactician.errors import TacticError
from tactician.signature import dtype_name

Array = np.ndarray[Any, Any]

_API_VERSION = 12
"""The oldest version of the interface that has all functions of ``_FUNCTIONS``; later ones only append."""
_FATAL = 4
_ARENA_ALLOCATOR, _DEFAULT_MEMORY = 1, 0
_P, _PP = c_void_p, POINTER(c_void_p)

_FUNCTIONS: dict[str, tuple[int, Any, tuple[Any, ...]]] = {
    "GetErrorMessage": (2, c_char_p, (_P,)),
    "CreateSessionFromArray": (8, _P, (_P, c_char_p, c_size_t, _P, _PP)),
    "Run": (9, _P, (_P, _P, POINTER(c_char_p), _PP, c_size_t, POINTER(c_char_p), c_size_t, _PP)),
    "CreateSessionOptions": (10, _P, (_PP,)),
    "DisableMemPattern": (17, _P, (_P,)),
    "DisableCpuMemArena": (19, _P, (_P,)),
    "SetSessionLogSeverityLevel": (22, _P, (_P, c_int)),
    "SessionGetInputCount": (30, _P, (_P, POINTER(c_size_t))),
    "SessionGetOutputCount": (31, _P, (_P, POINTER(c_size_t))),
    "SessionGetInputName": (36, _P, (_P, c_size_t, _P, POINTER(c_void_p))),
    "SessionGetOutputName": (37, _P, (_P, c_size_t, _P, POINTER(c_void_p))),
    "CreateTensorWithDataAsOrtValue": (49, _P, (_P, _P, c_size_t, POINTER(c_int64), c_size_t, c_int, _PP)),
    "CreateCpuMemoryInfo": (69, _P, (c_int, c_int, _PP)),
    "AllocatorFree": (76, _P, (_P, _P)),
    "GetAllocatorWithDefaultOptions": (78, _P, (_PP,)),
    "ReleaseStatus": (93, None, (_P,)),
    "ReleaseSession": (95, None, (_P,)),
    "ReleaseValue": (96, None, (_P,)),
    "ReleaseSessionOptions": (100, None, (_P,)),
    "CreateEnvWithGlobalThreadPools": (119, _P, (c_int, c_char_p, _P, _PP)),
    "DisablePerSessionThreads": (120, _P, (_P,)),
    "CreateThreadingOptions": (121, _P, (_PP,)),
    "ReleaseThreadingOptions": (122, None, (_P,)),
    "SetGlobalIntraOpNumThreads": (147, _P, (_P, c_int)),
    "SetGlobalInterOpNumThreads": (148, _P, (_P, c_int)),
    "AddExternalInitializers": (210, _P, (_P, POINTER(c_char_p), _PP, c_size_t)),
}
"""Place in the interface's table, result and parameters of each function; a null status is success."""

ELEMENT_TYPES = {
    "float32": 1,
    "uint8": 2,
    "int8": 3,
    "uint16": 4,
    "int16": 5,
    "int32": 6,
    "int64": 7,
    "bool": 9,
    "float16": 10,
    "float64": 11,
    "uint32": 12,
    "uint64": 13,
    "bfloat16": 16,
    "float8e4m3fn": 17,
    "float8e4m3fnuz": 18,
    "float8e5m2": 19,
    "float8e5m2fnuz": 20,
}
"""Numbers of the element types that lie in memory as NumPy has them; 4-bit types are packed in pairs."""


class CSession:
    """A session of the C library whose inputs and outputs are buffers.

    Parameters
    ----------
    model
        Serialized ModelProto.
    threads
        Threads of the pool that all these sessions share. The first session of the process decides.
    weights
        Values of the model's external initializers; their memory must stay.

    Raises
    ------
    TacticError
        With ONNX Runtime's own message, if it refuses the model.
    """

    def __init__(self, model: bytes, threads: int, weights: Mapping[str, Array] | None = None) -> None:
        self._api = api = _Api.of(_library_path() or "")
        environment = api.environment(threads)
        options = api.new("CreateSessionOptions")
        try:
            api.call("SetSessionLogSeverityLevel", options, _FATAL)
            api.call("DisablePerSessionThreads", options)
            api.call("DisableMemPattern", options)
            # an arena for each session would keep its scratch memory; malloc reuses the same, warm, pages
            api.call("DisableCpuMemArena", options)
            self._weights = api.tensors(list((weights or {}).values()))
            if weights:
                names, values = _names(weights), _values(self._weights)
                api.call("AddExternalInitializers", options, names, values, len(weights))
            self._handle = api.new("CreateSessionFromArray", environment, model, len(model), options)
        finally:
            api.functions["ReleaseSessionOptions"](options)
        weakref.finalize(self, api.functions["ReleaseSession"], self._handle).atexit = False
        self.inputs = api.session_names(self._handle, "Input")
        self.outputs = api.session_names(self._handle, "Output")

    def bind(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> Callable[[], None]:
        """Return what runs the session from and to the memory of these arrays, in the session's order."""
        values = self._api.tensors(inputs), self._api.tensors(outputs)
        run, check = self._api.functions["Run"], self._api.check
        arguments = (
            *(self._handle, None, _names(self.inputs), _values(values[0]), len(inputs)),
            *(_names(self.outputs), len(outputs), _values(values[1])),
        )

        def call(keep: Any = (self, values)) -> None:
            if status := run(*arguments):
                check(status)

        return call


class _Tensor:
    """ONNX Runtime's handle of an array's memory, released with this object."""

    def __init__(self, api: _Api, array: Array) -> None:
        shape = (c_int64 * array.ndim)(*array.shape)
        element_type = ELEMENT_TYPES[dtype_name(array.dtype)]
        self.handle = api.new(
            "CreateTensorWithDataAsOrtValue",
            api.memory_info,
            array.__array_interface__["data"][0],
            array.nbytes,
            shape,
            array.ndim,
            element_type,
        )
        self._array = array
        weakref.finalize(self, api.functions["ReleaseValue"], self.handle).atexit = False


class _Api:
    """The function table of a library."""

    def __init__(self, path: str) -> None:
        entry = ctypes.CDLL(path).OrtGetApiBase
        entry.restype = c_void_p
        base = ctypes.cast(entry(), _PP)
        table = ctypes.cast(ctypes.CFUNCTYPE(c_void_p, c_uint32)(base[0] or 0)(_API_VERSION), _PP)
        self.functions: dict[str, Any] = {
            name: ctypes.CFUNCTYPE(result, *parameters)(table[index] or 0)
            for name, (index, result, parameters) in _FUNCTIONS.items()
        }
        self.memory_info = self.new("CreateCpuMemoryInfo", _ARENA_ALLOCATOR, _DEFAULT_MEMORY)
        self._environment: int | None = None

    @staticmethod
    @cache
    def of(path: str) -> _Api:
        """Return the table of the library at ``path``."""
        return _Api(path)

    def environment(self, threads: int) -> int:
        """Return the environment with the shared pool, made at first and kept while the process lives."""
        if self._environment is None:
            options = self.new("CreateThreadingOptions")
            self.call("SetGlobalIntraOpNumThreads", options, threads)
            self.call("SetGlobalInterOpNumThreads", options, 1)
            self._environment = self.new("CreateEnvWithGlobalThreadPools", _FATAL, b"tactician", options)
            self.functions["ReleaseThreadingOptions"](options)
        return self._environment

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function and raise what its status says."""
        self.check(self.functions[name](*arguments))

    def new(self, name: str, *arguments: Any) -> int:
        """Call a function whose last parameter is where it puts a new object, and return that."""
        result = c_void_p()
        self.call(name, *arguments, byref(result))
        return result.value or 0

    def check(self, status: int | None) -> None:
        """Raise the message of a status that is not null."""
        if status:
            message = self.functions["GetErrorMessage"](status).decode(errors="replace")
            self.functions["ReleaseStatus"](status)
            raise TacticError(message)

    def tensors(self, arrays: Sequence[Array]) -> list[_Tensor]:
        """Return handles of the memory of ``arrays``."""
        return [_Tensor(self, array) for array in arrays]

    def session_names(self, session: int, kind: str) -> list[str]:
        """Return the names of a session's inputs or outputs."""
        count = c_size_t()
        self.call(f"SessionGet{kind}Count", session, byref(count))
        allocator = self.new("GetAllocatorWithDefaultOptions")
        names = []
        for i in range(count.value):
            text = self.new(f"SessionGet{kind}Name", session, i, allocator)
            names.append(ctypes.string_at(text).decode())
            self.call("AllocatorFree", allocator, text)
        return names


def is_available() -> bool:
    """Return whether the installed package comes with the C library."""
    return _library_path() is not None


@cache
def _library_path() -> str | None:
    spec = find_spec("onnxruntime")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "capi"
    found = [p for pattern in ("libonnxruntime.*", "onnxruntime.dll") for p in sorted(folder.glob(pattern))]
    return str(found[0]) if found else None


def _names(names: Sequence[str] | Mapping[str, Any]) -> Any:
    return (c_char_p * len(names))(*(name.encode() for name in names))


def _values(tensors: Sequence[_Tensor]) -> Any:
    return (c_void_p * len(tensors))(*(tensor.handle for tensor in tensors))
