"""The cpu target: its device's memory, facts and timer."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
from tactician.builtin_kernels.cpu import machine
from tactician.builtin_kernels.cpu.machine import one_blas_thread
from tactician.builtin_kernels.cpu.target import CpuDevice, CpuTarget
from tactician.builtin_kernels.cpu.timer import MAX_ROTATION, CpuTimer
from tactician.errors import ConfigError, DeviceError
from tactician.plugins.target import Artifacts
from tactician.signature import TensorType


@pytest.fixture
def device() -> CpuDevice:
    return CpuDevice()


def test_there_is_one_cpu_and_nothing_to_fall_back_to() -> None:
    target = CpuTarget()
    assert (target.name, target.fallback, target.unavailable(), target.count()) == ("cpu", None, None, 1)
    artifacts = Artifacts()
    assert target.device(0, artifacts).artifacts is artifacts
    with pytest.raises(DeviceError, match="no device 1"):
        target.device(1)


def test_threads_come_from_argument_environment_or_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TACTICIAN_THREADS", raising=False)
    assert CpuDevice().facts["threads"] == len(os.sched_getaffinity(0))
    monkeypatch.setenv("TACTICIAN_THREADS", "3")
    assert CpuDevice().threads == 3
    assert CpuDevice(threads=5).threads == 5
    monkeypatch.setenv("TACTICIAN_THREADS", "many")
    with pytest.raises(ConfigError, match="TACTICIAN_THREADS is 'many'"):
        CpuDevice()


def test_fingerprint_names_all_that_times_depend_on(device: CpuDevice) -> None:
    fields = device.fingerprint()
    assert {"device", "threads", "isa", "numpy", "blas", "onnxruntime"} <= fields.keys()
    assert fields["numpy"] == np.__version__
    assert all(isinstance(v, str) for v in fields.values())
    assert CpuDevice(threads=device.threads + 1).fingerprint() != fields


def test_buffers_are_aligned_and_views_lie_within(device: CpuDevice) -> None:
    for nbytes in (0, 1, 1000):
        buffer = device.allocate(nbytes)
        assert buffer.ctypes.data % 256 == 0
        assert buffer.nbytes >= nbytes
    buffer = device.allocate(1024)
    view = device.view(buffer, 256, TensorType("float16", (3, 5)))
    assert view.ctypes.data == buffer.ctypes.data + 256
    view[...] = 1.5
    assert buffer[256:286].view(np.float16).tolist() == [1.5] * 15


@pytest.mark.parametrize(
    "dtype", ["float32", "bfloat16", "float8e4m3fn", "int4", "bool", "int64", "complex64"]
)
def test_upload_then_download(device: CpuDevice, dtype: str) -> None:
    tensor = TensorType(dtype, (2, 3))
    array = np.array([[0, 1, 2], [3, 4, 5]]).astype(tensor.numpy_dtype)
    view = device.view(device.allocate(tensor.nbytes), 0, tensor)
    device.upload(view, array)
    result = device.download(view)
    np.testing.assert_array_equal(result, array)
    assert not np.shares_memory(result, view)


def test_strings_and_scalars(device: CpuDevice) -> None:
    text = device.view(device.allocate(0), 0, TensorType("string", (2,)))
    device.upload(text, np.array(["a", "b"], object))
    assert device.download(text).tolist() == ["a", "b"]
    scalar = device.view(device.allocate(8), 0, TensorType("float64", ()))
    device.upload(scalar, np.float64(2.5))
    assert device.download(scalar) == 2.5


def test_too_large_a_buffer_is_a_device_error(device: CpuDevice) -> None:
    with pytest.raises(DeviceError, match="can't allocate"):
        device.allocate(1 << 60)


def test_contiguous_arrays_are_taken_as_they_are(device: CpuDevice) -> None:
    array = np.arange(6.0).reshape(2, 3)
    assert device.import_tensor(array) is array
    assert device.import_tensor(array.T) is None
    assert device.import_tensor([1, 2]) is None


def test_host_tensors_of_others_are_taken_without_a_copy(device: CpuDevice) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.arange(6.0).reshape(2, 3)
    view = device.import_tensor(tensor)
    assert view.ctypes.data == tensor.data_ptr()
    assert device.import_tensor(tensor.T) is None
    assert device.import_tensor(torch.ones(2, dtype=torch.bfloat16)) is None


def test_there_are_no_streams_and_no_graphs(device: CpuDevice) -> None:
    assert device.create_stream() is None
    assert device.wrap_stream(7) is None
    assert device.capture(lambda stream: None) is None
    device.synchronize()


def test_timer_tells_a_slow_call_from_a_fast_one() -> None:
    timer = CpuTimer()
    slow = timer.prepare(lambda stream: time.sleep(0.004))
    fast = timer.prepare(lambda stream: time.sleep(0.0005))
    times = timer.round([slow, fast, slow])
    assert len(times) == 3
    assert 0.004 <= times[0] < 0.1
    assert 0.0005 <= times[1] < times[0]


def test_timer_batches_short_calls_and_turns_through_copies() -> None:
    calls: list[int] = []

    def copy(number: int) -> Any:
        return lambda stream: calls.append(number)

    timer = CpuTimer()
    contender = timer.prepare(copy(0), [copy(i) for i in range(10)])
    calls.clear()
    (seconds,) = timer.round([contender])
    assert seconds < 1e-4
    assert len(calls) > 100
    # every copy as often as the others, and no more copies than a launch remembers
    assert {calls.count(i) for i in range(MAX_ROTATION)} == {len(calls) // MAX_ROTATION}
    assert max(calls) == MAX_ROTATION - 1


def test_garbage_is_not_collected_while_timing() -> None:
    seen = []
    timer = CpuTimer()
    contender = timer.prepare(lambda stream: seen.append(gc.isenabled()) or time.sleep(0.002))
    seen.clear()
    timer.round([contender])
    assert set(seen) == {False}
    assert gc.isenabled()


def test_blas_keeps_to_one_thread_only_within_the_context() -> None:
    threadpoolctl = pytest.importorskip("threadpoolctl")

    def threads() -> set[int]:
        return {p["num_threads"] for p in threadpoolctl.threadpool_info() if p["user_api"] == "blas"}

    machine._blas_controller.cache_clear()  # other tests may have loaded another BLAS since
    before = threads()
    with one_blas_thread():
        assert threads() == {1}
    assert threads() == before


def test_the_plugin_imports_fast_and_nothing_heavy() -> None:
    code = (
        "import sys, numpy, pluggy, msgspec, ml_dtypes, time; start = time.perf_counter()\n"
        "import tactician.builtin_kernels\n"
        "seconds = time.perf_counter() - start\n"
        "from tactician.builtin_kernels import cpu\n"
        "classes = cpu.tactics() + cpu.targets()\n"
        "loaded = {m.partition('.')[0] for m in sys.modules}\n"
        "heavy = {'onnx', 'onnx_ir', 'onnxscript', 'onnxruntime', 'cuda', 'sympy'} & loaded\n"
        "print(len(classes) > 20, sorted(heavy), seconds < 0.1)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "True [] True"
