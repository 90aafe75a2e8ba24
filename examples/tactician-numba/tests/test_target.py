"""The target, its device and its timer."""

import gc
import importlib.metadata
import sys
import threading
import time

import numpy as np
import pytest
from tactician import TensorType
from tactician.errors import ConfigError, DeviceError
from tactician_numba import compiling, processor, timer
from tactician_numba.device import NumbaDevice, NumbaTensor
from tactician_numba.target import NumbaTarget


def test_there_is_one_device_and_the_cpu_to_fall_back_to():
    target = NumbaTarget()
    assert (target.name, target.fallback, target.unavailable(), target.count()) == ("numba", "cpu", None, 1)
    assert target.device().target == "numba"
    with pytest.raises(DeviceError, match="no device 1"):
        target.device(1)


def test_why_it_may_be_unavailable(monkeypatch):
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    assert "NUMBA_DISABLE_JIT" in NumbaTarget().unavailable()
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "0")
    assert NumbaTarget().unavailable() is None
    monkeypatch.setitem(sys.modules, "numba", None)
    assert NumbaTarget().unavailable() == "Numba is not installed; pip install numba"
    with pytest.raises(DeviceError, match="target 'numba': Numba is not installed"):
        NumbaTarget().device()


def test_facts_and_fingerprint(monkeypatch):
    for variable in ("NUMBA_NUM_THREADS", "NUMBA_OPT", "NUMBA_CPU_NAME"):
        monkeypatch.delenv(variable, raising=False)
    device = NumbaDevice(threads=3)
    assert device.facts["threads"] == 3
    assert device.facts["cpu"] == processor.name() != ""
    assert all(value > 0 for key, value in device.facts.items() if key.endswith("_bytes"))
    fields = device.fingerprint()
    assert fields["numba"] == importlib.metadata.version("numba")
    assert fields["llvmlite"] == importlib.metadata.version("llvmlite")
    assert NumbaDevice(threads=4).fingerprint() != fields
    monkeypatch.setenv("NUMBA_OPT", "1")
    assert NumbaDevice(threads=3).fingerprint()["settings"] == "NUMBA_OPT=1"
    assert device.requirements() == {}


def test_threads_come_from_numbas_variable(monkeypatch):
    monkeypatch.setenv("NUMBA_NUM_THREADS", "5")
    assert NumbaDevice().threads == 5
    monkeypatch.setenv("NUMBA_NUM_THREADS", "many")
    with pytest.raises(ConfigError, match="NUMBA_NUM_THREADS is 'many'"):
        NumbaDevice()


def test_memory():
    device = NumbaDevice()
    for nbytes in (0, 1, 1000):
        buffer = device.allocate(nbytes)
        assert buffer.ctypes.data % 256 == 0
        assert buffer.nbytes >= nbytes
    buffer = device.allocate(1024)
    tensor = device.view(buffer, 256, TensorType("float32", (3, 5)))
    assert tensor.array.ctypes.data == buffer.ctypes.data + 256
    array = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    device.upload(tensor, array)
    np.testing.assert_array_equal(tensor.flat, array.ravel())
    copy = device.download(tensor)
    assert not np.shares_memory(copy, tensor.array)
    np.testing.assert_array_equal(copy, array)
    with pytest.raises(DeviceError, match="can't allocate"):
        device.allocate(1 << 60)


@pytest.mark.parametrize("dtype", ["int64", "bool", "bfloat16", "float64", "int4"])
def test_other_types_can_be_stored(dtype):
    device, kind = NumbaDevice(), TensorType(dtype, (2, 3))
    array = np.array([[0, 1, 2], [3, 4, 5]]).astype(kind.numpy_dtype)
    tensor = device.view(device.allocate(kind.nbytes), 0, kind)
    device.upload(tensor, array)
    np.testing.assert_array_equal(device.download(tensor), array)


def test_import_shares_memory_that_kernels_can_use():
    device, array = NumbaDevice(), np.arange(6, dtype=np.float32).reshape(2, 3)
    tensor = device.import_tensor(array)
    assert np.shares_memory(tensor.array, array)
    assert device.import_tensor(tensor) is tensor
    assert np.shares_memory(np.from_dlpack(tensor), array)
    frozen = array.copy()
    frozen.flags.writeable = False
    shifted = np.frombuffer(b"x" * 13, np.uint8)[1:].view(np.float32)
    swapped = array.astype(">f4")
    for other in (array.T, frozen, shifted, swapped, [1.0, 2.0]):
        assert device.import_tensor(other) is None


def test_there_are_no_streams():
    device = NumbaDevice()
    assert device.create_stream() is None
    assert device.wrap_stream(7) is None
    assert device.capture(lambda stream: None) is None
    device.synchronize()


@pytest.mark.parametrize("count", [1, 2, 3, 4, 100])
def test_split_does_every_item_once(count):
    device, done, lock = NumbaDevice(threads=3), [], threading.Lock()

    def work(begin, end, part):
        with lock:
            done.append((begin, end, part))

    for parallel, pieces in ((False, 1), (True, min(3, count))):
        done.clear()
        device.split(work, count, parallel=parallel)
        done.sort()
        assert [part for _, _, part in done] == list(range(pieces))
        assert [i for begin, end, _ in done for i in range(begin, end)] == list(range(count))
    device.close()
    device.close()


def test_split_passes_errors_on():
    def work(begin, end, part):
        if part == 1:
            raise ValueError("part 1")

    with pytest.raises(ValueError, match="part 1"):
        NumbaDevice(threads=2).split(work, 2, parallel=True)


def test_a_kernel_is_not_compiled_for_other_types():
    from tactician_numba.movement_kernels import copy

    compiled = copy.compile()
    assert compiled is copy.compile()
    x, y = np.ones(3, np.float32), np.zeros(3, np.float32)
    compiled(x, y)
    assert y.tolist() == [1, 1, 1]
    with pytest.raises(TypeError):
        compiled(x.astype(np.float64), y)
    assert compiling.OPTIONS["nogil"]


def test_samples_are_long_against_the_clock():
    device_timer = timer.WallClockTimer()
    calls = []
    sample = device_timer.prepare(lambda stream: calls.append(stream))
    calls.clear()
    (seconds,) = device_timer.round([sample])
    assert len(calls) > 100
    assert seconds * len(calls) >= 100 * timer.clock_step()
    assert seconds < 1e-4


def test_the_timer_turns_through_copies_and_tells_slow_from_fast():
    calls = []
    device_timer = timer.WallClockTimer()
    copies = [lambda stream, i=i: calls.append(i) for i in range(4)]
    sample = device_timer.prepare(copies[0], copies)
    calls.clear()
    device_timer.round([sample])
    assert {calls.count(i) for i in range(4)} == {len(calls) // 4}
    slow, fast = (device_timer.prepare(lambda stream, s=s: time.sleep(s)) for s in (0.004, 0.0005))
    times = device_timer.round([slow, fast, slow])
    assert len(times) == 3
    assert 0.004 <= times[0] < 0.1
    assert times[1] < times[0]


def test_a_long_call_is_a_sample_by_itself(monkeypatch):
    monkeypatch.setattr(timer, "MOST_SECONDS", 0.005)
    sample = timer.WallClockTimer().prepare(
        lambda stream: time.sleep(0.003), [lambda stream: time.sleep(0.003)] * 4
    )
    assert len(sample.calls) == 1


def test_garbage_is_not_collected_while_timing():
    seen = []
    device_timer = timer.WallClockTimer()
    sample = device_timer.prepare(lambda stream: seen.append(gc.isenabled()) or time.sleep(0.002))
    seen.clear()
    device_timer.round([sample])
    assert set(seen) == {False}
    assert gc.isenabled()


def test_a_tensor_is_no_array():
    # the core downloads what is no NumPy array: outputs are then the caller's own, and not the session's memory
    assert not isinstance(NumbaTensor(np.zeros(3)), np.ndarray)
