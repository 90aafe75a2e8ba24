"""The ``cuda`` device: memory, streams, kernels and graphs through cuda.core."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from tactician.builtin_kernels.cuda.compiler import KernelSource, loadable_code
from tactician.builtin_kernels.cuda.tensor import DeviceTensor
from tactician.errors import DeviceError, TacticError
from tactician.plugins.examiner import Examiner
from tactician.plugins.kernel_binary import KernelBinary
from tactician.plugins.kernel_source import KernelLanguage
from tactician.plugins.target import Artifacts, Device, Precompiler, Thunk, Timer
from tactician.signature import TensorType, dtype_name

DEFAULT_SHARED_BYTES = 48 * 1024
"""Dynamic shared memory, in bytes, that a block may have without asking for more."""
MAX_STREAMS = 64
"""Streams of others for which a device keeps its own object."""


class CudaDevice(Device):
    """One NVIDIA GPU.

    Facts: ``compute_capability``, ``sm``, ``arch``, ``multiprocessors``, ``l2_bytes``, ``shared_bytes_per_block``,
    ``memory_bytes``, ``driver``.
    """

    target = "cuda"

    def __init__(self, index: int = 0, artifacts: Artifacts | None = None) -> None:
        from cuda.core import Device as CoreDevice

        self.index = index
        self.artifacts = artifacts or Artifacts()
        try:
            self.core = CoreDevice(index)
            self.core.set_current()
        except Exception as error:
            raise DeviceError(f"cuda device {index} can't be opened: {error}") from error
        self.name = self.core.name
        self.facts = _facts(self.core, index)
        self._stream = self.core.create_stream()
        self._kernels: dict[str, Kernel] = {}
        self._lock = threading.Lock()
        self._streams: dict[int, tuple[Any, Any]] = {}  # by handle: the stream, and whose it is
        self._precompiler: Precompiler | None = None

    def fingerprint(self) -> dict[str, str]:
        """Return GPU, clocks, power cap, MIG mode, driver and library versions."""
        from tactician.builtin_kernels.cuda.nvml import device_state

        fields = {
            "device": self.name,
            "multiprocessors": str(self.facts["multiprocessors"]),
            "driver": str(self.facts["driver"]),
        }
        return fields | device_state(self.index) | _library_versions()

    def requirements(self) -> dict[str, str]:
        """Return the GPU's name and compute capability: cubins and choices hold on that GPU only."""
        return {"device": self.name, "compute_capability": str(self.facts["compute_capability"])}

    def allocate(self, nbytes: int) -> Any:
        """Return a device buffer of at least ``nbytes`` bytes."""
        self.core.set_current()
        try:
            buffer = self.core.allocate(max(nbytes, 256), stream=self._stream)
            self._stream.sync()
        except Exception as error:
            raise DeviceError(
                f"cuda device {self.index} ({self.name}): can't allocate {nbytes} bytes: {error}; "
                "use a smaller batch, or free memory that other processes hold"
            ) from error
        return buffer

    def view(self, buffer: Any, offset: int, tensor: TensorType) -> DeviceTensor:
        """Return the tensor of type ``tensor`` at ``offset`` bytes into ``buffer``."""
        return DeviceTensor(int(buffer.handle) + offset, tensor.dims, tensor.dtype, self.index, buffer)

    def upload(self, tensor: DeviceTensor, array: np.ndarray[Any, Any], stream: Any = None) -> None:
        """Copy a host array into ``tensor`` and wait."""
        from cuda.bindings import driver

        array = np.ascontiguousarray(array, dtype=tensor.numpy_dtype)
        if array.nbytes != tensor.nbytes:
            raise DeviceError(
                f"can't copy {array.nbytes} bytes of a host array into a tensor of {tensor.nbytes} bytes"
            )
        if array.nbytes:
            stream = stream or self._stream
            self.core.set_current()
            _check(
                driver.cuMemcpyHtoDAsync(tensor.pointer, array.ctypes.data, array.nbytes, int(stream.handle))
            )
            stream.sync()

    def fill(self, tensor: DeviceTensor, nbytes: int, byte: int) -> None:
        """Set all bytes of ``tensor`` on the GPU, and wait."""
        from cuda.bindings import driver

        if nbytes:
            self.core.set_current()
            _check(driver.cuMemsetD8Async(tensor.pointer, byte, nbytes, int(self._stream.handle)))
            self.synchronize(self._stream)

    def copy_bytes(self, to: DeviceTensor, tensor: DeviceTensor, nbytes: int, stream: Any) -> None:
        """Copy bytes from one tensor to another on the GPU, and wait."""
        from cuda.bindings import driver

        if nbytes:
            self.core.set_current()
            _check(driver.cuMemcpyDtoDAsync(to.pointer, tensor.pointer, nbytes, int(stream.handle)))
        self.synchronize(stream)

    def examiner(self) -> Examiner:
        """Return what compares results on the GPU."""
        from tactician.builtin_kernels.cuda.examiner import CudaExaminer

        return CudaExaminer(self)

    def download(self, tensor: DeviceTensor, stream: Any = None) -> np.ndarray[Any, Any]:
        """Return a host copy of ``tensor``."""
        from cuda.bindings import driver

        array = np.empty(tensor.shape, tensor.numpy_dtype)
        stream = stream or self._stream
        self.core.set_current()
        if array.nbytes:
            _check(
                driver.cuMemcpyDtoHAsync(array.ctypes.data, tensor.pointer, array.nbytes, int(stream.handle))
            )
        self.synchronize(stream)
        return array

    def import_tensor(self, array: Any, stream: Any = None) -> DeviceTensor | None:
        """Return a view of ``array`` (DLPack or ``__cuda_array_interface__``) if it lies on this GPU and is contiguous."""
        if isinstance(array, DeviceTensor):
            return array if array.device_index == self.index else None
        if isinstance(array, np.ndarray) or not (
            hasattr(array, "__dlpack__") or hasattr(array, "__cuda_array_interface__")
        ):
            return None
        from cuda.core.utils import StridedMemoryView

        handle = int((stream or self._stream).handle)
        view = StridedMemoryView.from_any_interface(array, stream_ptr=handle)
        if not view.is_device_accessible or view.device_id != self.index or not _contiguous(view):
            return None
        return DeviceTensor(
            view.ptr, tuple(view.shape), dtype_name(np.dtype(view.dtype)), self.index, (array, view)
        )

    def create_stream(self) -> Any:
        """Return a new non-blocking stream."""
        self.core.set_current()
        return self.core.create_stream()

    def wrap_stream(self, stream: Any) -> Any:
        """Return a cuda.core stream of a stream object, of an object with ``cuda_stream`` (torch), or of a raw handle."""
        from cuda.core import Stream

        if isinstance(stream, Stream):
            return stream
        handle = stream if isinstance(stream, int) else getattr(stream, "cuda_stream", None)
        if handle is None and hasattr(stream, "__cuda_stream__"):
            handle = stream.__cuda_stream__()[1]
        if handle is None:
            raise DeviceError(
                f"{type(stream).__name__} is no CUDA stream; pass an object with __cuda_stream__, a torch stream or a handle"
            )
        known = self._streams.get(int(handle))
        if known is not None:
            return known[0]
        has_protocol = hasattr(stream, "__cuda_stream__")
        wrapped = self.core.create_stream(stream) if has_protocol else Stream.from_handle(int(handle))
        # a bare number keeps no stream alive: next time it may be another's
        if not isinstance(stream, int):
            if len(self._streams) >= MAX_STREAMS:
                self._streams.clear()
            self._streams[int(handle)] = wrapped, stream
        return wrapped

    def synchronize(self, stream: Any = None) -> None:
        """Wait for ``stream``, or for the whole device."""
        self.core.set_current()
        try:
            if stream is None:
                self.core.sync()
            else:
                stream.sync()
        except Exception as error:
            raise DeviceError(
                f"cuda device {self.index} ({self.name}) reported a failure: {error}"
            ) from error

    def mark(self, stream: Any) -> Any:
        """Return an event; None while a caller captures ``stream``, whose graph can't be waited for."""
        return None if _is_capturing(stream) else stream.record()

    def wait(self, stream: Any, mark: Any) -> None:
        """Wait for the event on the GPU; a caller's graph orders itself."""
        if mark is not None and not _is_capturing(stream):
            stream.wait(mark)

    def capture(self, thunk: Thunk) -> Thunk:
        """Record what ``thunk`` enqueues as a CUDA graph; the result replays it, and keeps ``thunk``."""
        self.core.set_current()
        builder = self.core.create_graph_builder()
        builder.begin_building("thread_local")
        try:
            thunk(builder.stream)
        finally:
            builder.end_building()
        return _Replay(builder.complete(), thunk)

    def precompiler(self, processes: int) -> Precompiler | None:
        """Return what compiles kernels ahead of the time that they are loaded; the same every time."""
        from tactician.builtin_kernels.cuda.precompiler import CudaPrecompiler

        if self._precompiler is None:
            self._precompiler = CudaPrecompiler(self, processes)
        return self._precompiler

    def timer(self) -> Timer:
        """Return a timer by CUDA events around graph replays."""
        from tactician.builtin_kernels.cuda.timer import CudaTimer

        return CudaTimer(self)

    def compile(self, source: KernelSource | KernelBinary | KernelLanguage) -> Any:
        """Return the loaded kernel of ``source``, compiled at most once and kept in ``artifacts``.

        Raises
        ------
        TacticError
            If it does not compile, or this device can't load it.
        """
        if not isinstance(source, KernelSource | KernelBinary):
            return source.load(self)
        arch = str(self.facts["arch"])
        key, code = source.key(arch), loadable_code(source, arch, self.artifacts)
        with self._lock:
            if key not in self._kernels:
                self.core.set_current()
                self._kernels[key] = Kernel(code, source.name, self, early=self._launches_early(source))
            return self._kernels[key]

    def _launches_early(self, source: KernelSource | KernelBinary) -> bool:
        """Return whether a kernel may be launched before those ahead of it have ended."""
        return isinstance(source, KernelSource) and source.waits and int(self.facts["sm"]) >= 90


@dataclass(frozen=True)
class _Replay:
    """A CUDA graph with the thunk that it was captured from: the graph doesn't keep the modules and plans that it runs."""

    graph: Any
    thunk: Thunk

    def __call__(self, stream: Any) -> None:
        self.graph.launch(stream)


class Kernel:
    """A loaded kernel; ``early`` where it waits itself for those ahead of it, and may be launched before they have ended."""

    def __init__(self, code: bytes, name: str, device: CudaDevice, *, early: bool = False) -> None:
        from cuda.core import ObjectCode

        self.name = name
        self._device, self._early = device, early
        self._code = ObjectCode.from_cubin(code)
        try:
            self._kernel = self._code.get_kernel(name)
        except Exception as error:
            raise TacticError(
                f"kernel '{name}' can't be loaded on {device.name} ({device.facts['arch']}): {error}"
            ) from error
        self._configs: dict[Any, Any] = {}
        self._shared_bytes = DEFAULT_SHARED_BYTES

    def launch(
        self,
        stream: Any,
        grid: int | tuple[int, ...],
        block: int | tuple[int, ...],
        *args: Any,
        shared_bytes: int = 0,
    ) -> None:
        """Enqueue the kernel.

        Parameters
        ----------
        stream
            The stream to enqueue on.
        grid, block
            Blocks, and threads of a block, up to three dimensions.
        args
            Tensors (as pointers), None (the null pointer), ints (pointers), objects with ``tensor_map`` (a 128-byte
            TMA descriptor, by value) and NumPy scalars (by value).
        shared_bytes
            Dynamic shared memory of a block, in bytes.
        """
        from cuda.core import LaunchConfig, launch

        key = (grid, block, shared_bytes)
        config = self._configs.get(key)
        if config is None:
            if shared_bytes > self._shared_bytes:
                self._allow_shared(shared_bytes)
            config = self._configs[key] = LaunchConfig(
                grid=grid,
                block=block,
                shmem_size=shared_bytes,
                programmatic_stream_serialization=self._early,
            )
        launch(stream, config, self._kernel, *[_argument(a) for a in args])

    @cached_property
    def registers(self) -> int:
        """Registers of a thread."""
        return int(self._kernel.attributes.num_regs)

    def _allow_shared(self, nbytes: int) -> None:
        from cuda.bindings import driver

        attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        _check(
            driver.cuKernelSetAttribute(
                attribute, nbytes, self._kernel.handle, driver.CUdevice(self._device.index)
            )
        )
        self._shared_bytes = nbytes


class CompileOnlyDevice(CudaDevice):
    """A GPU of a given architecture that is not there: tactics can be asked and compiled for it, not run."""

    def __init__(self, arch: str) -> None:  # no GPU: nothing of the base class is opened
        digits = arch.removeprefix("sm_").rstrip("af")
        self.index = 0
        self.name = f"{arch} (compile only)"
        self.artifacts = Artifacts()
        self.facts: Mapping[str, int | float | str] = _SPECIFICATIONS[arch] | {
            "arch": arch,
            "sm": int(digits),
            "compute_capability": f"{digits[:-1]}.{digits[-1]}",
            "driver": "",
        }

    def compile(self, source: KernelSource | KernelBinary | KernelLanguage) -> Any:
        """Compile ``source``; the kernel that comes back can't be launched."""
        if not isinstance(source, KernelSource | KernelBinary):
            return source.load(self)
        loadable_code(source, str(self.facts["arch"]), self.artifacts)
        return self.no_kernel()

    @staticmethod
    def no_kernel() -> Any:
        """Return what stands for a kernel that can't be launched."""
        return _NoKernel()

    def precompiler(self, processes: int) -> Precompiler | None:
        """Return None: nothing is measured here."""
        return None


class _NoKernel:
    registers = 0

    def launch(self, *args: Any, **options: Any) -> None:
        raise TacticError("a compile-only device can't launch kernels")


_SPECIFICATIONS: dict[str, dict[str, int | float | str]] = {
    "sm_80": {
        "multiprocessors": 108,
        "l2_bytes": 41943040,
        "shared_bytes_per_block": 166912,
        "memory_bytes": 85 * 10**9,
    },
    "sm_90a": {
        "multiprocessors": 132,
        "l2_bytes": 62914560,
        "shared_bytes_per_block": 232448,
        "memory_bytes": 150 * 10**9,
    },
}


ARCHITECTURES = tuple(_SPECIFICATIONS)
"""Those that can be compiled for without a GPU of that kind."""


def _facts(core: Any, index: int) -> dict[str, int | float | str]:
    from tactician.builtin_kernels.cuda.nvml import driver_version

    properties = core.properties
    major, minor = core.compute_capability
    return {
        "compute_capability": f"{major}.{minor}",
        "sm": major * 10 + minor,
        # wgmma and setmaxnreg exist only in the architecture-specific target
        "arch": f"sm_{major}{minor}" + ("a" if major == 9 else ""),
        "multiprocessors": properties.multiprocessor_count,
        "l2_bytes": properties.l2_cache_size,
        "shared_bytes_per_block": properties.max_shared_memory_per_block_optin,
        "memory_bytes": _memory_bytes(),
        "driver": driver_version(index),
    }


def _memory_bytes() -> int:
    from cuda.bindings import driver

    return int(_check(driver.cuMemGetInfo())[1])


def _library_versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
    for label, packages in {
        "nvrtc": ("nvidia-cuda-nvrtc",),
        "cublas": ("nvidia-cublas", "nvidia-cublas-cu13"),
        "cudnn": ("nvidia-cudnn-cu13",),
        "triton": ("triton",),  # compiles plugins' kernels: what another version made has other times
    }.items():
        for package in packages:
            try:
                versions[label] = version(package)
                break
            except PackageNotFoundError:
                continue
        else:
            versions[label] = ""
    return versions


def _is_capturing(stream: Any) -> bool:
    from cuda.bindings import driver

    (status,) = _check(driver.cuStreamIsCapturing(int(stream.handle)))
    return bool(status != driver.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_NONE)


def _contiguous(view: Any) -> bool:
    if view.strides is None:
        return True
    expected, stride = [], 1
    for extent in reversed(view.shape):
        expected.append(stride)
        stride *= extent
    return 0 in view.shape or all(
        s == e or n == 1 for s, e, n in zip(view.strides, reversed(expected), view.shape, strict=True)
    )


def _argument(value: Any) -> Any:
    if isinstance(value, DeviceTensor):
        return value.pointer
    if value is None:
        return 0
    return getattr(value, "tensor_map", value)


def _check(result: tuple[Any, ...]) -> tuple[Any, ...]:
    if int(result[0]) != 0:
        raise DeviceError(f"the CUDA driver answered {result[0].name}")
    return result[1:]
