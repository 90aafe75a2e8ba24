"""What ``Session.enqueue`` does on the host for tensors that it has seen: few calls, none of them an import, and nothing unsafe."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tactician
from tactician.engine import Engine
from tactician.errors import InputError
from tactician.plan import BuildReport, MemoryReport, ModelInfo, Place, Plan, PluginUse, Step, TensorSpec
from tactician.plugins.manager import Plugins, load_plugins
from tactician.signature import OpSignature, TensorType

pytest.importorskip("cuda.core", reason="the device is that of CUDA, with its driver's part played here")

from tactician.builtin_kernels.cuda.device import CompileOnlyDevice, CudaDevice
from tactician.builtin_kernels.cuda.target import CudaTarget
from tactician.builtin_kernels.cuda.tensor import DeviceTensor

MOST_CALLS = 50
"""Calls of functions, of Python's and of C's, from ``enqueue`` to its end: a tenth of a microsecond each, and 15 us the bar."""

DIMS = (4, 8)
X, Y, OTHER_Y = 0x7000_0000, 0x7100_0000, 0x7200_0000


class FakeTensor:
    """What PyTorch's tensors have and is asked for."""

    def __init__(self, pointer: int, dims: tuple[int, ...] = DIMS) -> None:
        self.pointer, self.shape, self.dtype = pointer, dims, "float32"

    def data_ptr(self) -> int:
        return self.pointer

    def is_contiguous(self) -> bool:
        return True


class FakeStream:
    """A caller's stream, and what cuda.core makes of it."""

    def __init__(self, handle: int) -> None:
        self.handle = self.cuda_stream = handle
        self.waited: list[object] = []

    def __cuda_stream__(self) -> tuple[int, int]:
        return (0, self.cuda_stream)

    def record(self) -> object:
        return object()

    def wait(self, mark: object) -> None:
        self.waited.append(mark)

    def sync(self) -> None:
        """Nothing is ever under way."""


class FakeCore:
    """The part of ``cuda.core.Device`` that sessions use."""

    def __init__(self) -> None:
        self.streams = 0

    def set_current(self) -> None:
        """There is one device."""

    def create_stream(self, given: Any = None) -> FakeStream:
        self.streams += 1
        return FakeStream(self.streams if given is None else given.cuda_stream)


class FakeGpu(CudaDevice):
    """A GPU whose memory is numbers, and whose kernels and graphs count how often they are launched."""

    def __init__(self) -> None:
        specification = CompileOnlyDevice("sm_90a")
        self.index, self.name, self.facts = 0, specification.name, specification.facts
        self.artifacts = specification.artifacts
        self.core = FakeCore()
        self._stream = self.core.create_stream()
        self._streams = {}
        self.imports, self.captures, self.replays = 0, 0, 0

    def requirements(self) -> dict[str, str]:
        return {}

    def allocate(self, nbytes: int) -> Any:
        return FakeStream(0x1000)  # has a handle, which is all that is asked of a buffer

    def upload(self, tensor: DeviceTensor, array: np.ndarray[Any, Any], stream: Any = None) -> None:
        """Memory holds nothing."""

    def import_tensor(self, array: Any, stream: Any = None) -> DeviceTensor | None:
        self.imports += 1
        if not isinstance(array, FakeTensor):
            return None
        return DeviceTensor(array.pointer, array.shape, array.dtype, 0, array)

    def compile(self, source: Any) -> Any:
        return CompileOnlyDevice.no_kernel()

    def capture(self, thunk: Callable[[Any], None]) -> Callable[[Any], None]:
        self.captures += 1

        def replay(stream: Any) -> None:
            self.replays += 1

        return replay


def engine_of(steps: int, plugins: Plugins) -> Engine:
    """Return an engine of ``steps`` Relus one after the other, with as many weights that nothing reads."""
    ref = next(ref for ref, _ in plugins.registry if ref.name == "builtin")
    tensor = TensorType("float32", DIMS)
    call = OpSignature("ai.onnx::Relu", 14, (), (tensor,), (tensor,), (None,))
    chosen = plugins.registry.candidates(call, CompileOnlyDevice("sm_90a"))[0][0]
    tensors = [TensorSpec("x", "float32", DIMS, "cuda", Place.INPUT)]
    tensors += [
        TensorSpec(f"a{i}", "float32", DIMS, "cuda", Place.ARENA, 256 * (i % 2)) for i in range(steps - 1)
    ]
    tensors += [TensorSpec("y", "float32", DIMS, "cuda", Place.OUTPUT)]
    weights = [TensorSpec(f"w{i}", "float32", DIMS, "cuda", Place.WEIGHT, 256 * i) for i in range(steps)]
    plan = Plan(
        format_version=1,
        producer="tactician",
        target="cuda",
        requirements={},
        model=ModelInfo("m.onnx", "0" * 64, steps, 0),
        plugins=(PluginUse("builtin", ref.version, ref.digest),),
        tensors=(*tensors, *weights),
        inputs=(0,),
        outputs=(steps,),
        steps=tuple(
            Step(f"n{i}", call.op, "cuda", chosen.id, chosen.tactic.version, call.to_plain(), (i,), (i + 1,))
            for i in range(steps)
        ),
        memory=(MemoryReport("cuda", 512, 512, 512, 0, 256 * steps),),
        threads=1,
    )
    blob = np.zeros(DIMS, np.float32).tobytes()
    return Engine(plan, BuildReport({"name": "Fake"}, (), (), {}), {w.name: blob for w in weights}, {})


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return load_plugins(tactician.BuilderConfig(plugins=("builtin",)))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    """The device that sessions get; a driver that is asked answers that no stream is being captured."""
    return make_gpu(monkeypatch)


def make_gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    """Put a new device in the place of the GPU."""
    from cuda.bindings import driver

    none = driver.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_NONE
    gpu = FakeGpu()
    monkeypatch.setattr(CudaTarget, "unavailable", lambda self: None)
    monkeypatch.setattr(CudaTarget, "device", lambda self, index=0, artifacts=None: gpu)
    monkeypatch.setattr(driver, "cuStreamIsCapturing", lambda stream: (driver.CUresult.CUDA_SUCCESS, none))
    return gpu


@pytest.fixture
def session(gpu: FakeGpu, plugins: Plugins) -> tactician.Session:
    return tactician.Session(engine_of(2, plugins), plugins=plugins)


def calls_of(work: Callable[[], Any]) -> int:
    """Return how many functions ``work`` calls, those of C among them."""
    calls = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(before)
    return calls


class TestFewCalls:
    @staticmethod
    def calls(gpu: FakeGpu, plugins: Plugins, steps: int, **outputs: FakeTensor) -> int:
        """Return the calls of a second ``enqueue`` with the same tensors."""
        session = tactician.Session(engine_of(steps, plugins), plugins=plugins)
        stream, x = FakeStream(0x5000), FakeTensor(X)
        session.enqueue(stream, {"x": x}, outputs)
        imports, captures = gpu.imports, gpu.captures
        calls = calls_of(lambda: session.enqueue(stream, {"x": x}, outputs))
        assert (gpu.imports, gpu.captures, gpu.replays) == (imports, captures, 2)
        return calls

    def test_with_an_output_of_the_session(self, gpu: FakeGpu, plugins: Plugins) -> None:
        assert self.calls(gpu, plugins, 2) <= MOST_CALLS

    def test_with_a_callers_output(self, gpu: FakeGpu, plugins: Plugins) -> None:
        assert self.calls(gpu, plugins, 2, y=FakeTensor(Y)) <= MOST_CALLS + 25

    def test_a_large_network_takes_no_more(self, plugins: Plugins, monkeypatch: pytest.MonkeyPatch) -> None:
        counts = []
        for steps in (2, 100):
            with monkeypatch.context() as patch:
                counts.append(self.calls(make_gpu(patch), plugins, steps))
        assert counts[0] == counts[1]


class TestWhatChanged:
    def test_the_place_of_an_input(self, gpu: FakeGpu, session: tactician.Session) -> None:
        stream, x = FakeStream(0x5000), FakeTensor(X)
        session.enqueue(stream, {"x": x})
        imports, captures = gpu.imports, gpu.captures
        x.pointer += 4096
        session.enqueue(stream, {"x": x})
        assert (gpu.imports, gpu.captures) == (imports + 1, captures + 1)

    def test_the_shape_of_an_input(self, session: tactician.Session) -> None:
        stream, x = FakeStream(0x5000), FakeTensor(X)
        session.enqueue(stream, {"x": x})
        x.shape = (8, 4)
        with pytest.raises(InputError, match=r"'x' must be float32\[4, 8\], but its shape is \[8, 4\]"):
            session.enqueue(stream, {"x": x})

    def test_another_tensor_in_the_same_place(self, gpu: FakeGpu, session: tactician.Session) -> None:
        stream = FakeStream(0x5000)
        session.enqueue(stream, {"x": FakeTensor(X)})
        captures = gpu.captures
        with pytest.raises(InputError, match="its shape is"):
            session.enqueue(stream, {"x": FakeTensor(X, (2, 8))})
        session.enqueue(stream, {"x": FakeTensor(X)})
        assert gpu.captures == captures

    def test_names_are_checked_every_time(self, session: tactician.Session) -> None:
        stream, x = FakeStream(0x5000), FakeTensor(X)
        session.enqueue(stream, {"x": x})
        with pytest.raises(InputError, match="no input 'z'"):
            session.enqueue(stream, {"x": x, "z": x})
        with pytest.raises(InputError, match="no output 'z'"):
            session.enqueue(stream, {"x": x}, {"z": x})


class TestStreams:
    @staticmethod
    def waits(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """Return the handles of the streams that are told to wait for what was enqueued before, as they are."""
        waits: list[int] = []

        def wait(stream: Any, mark: Any) -> None:
            if mark is not None:
                waits.append(int(stream.handle))

        monkeypatch.setattr(gpu, "wait", wait)
        return waits

    def test_the_same_stream_is_in_order(
        self, gpu: FakeGpu, session: tactician.Session, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        waits, x = self.waits(gpu, monkeypatch), FakeTensor(X)
        for _ in range(3):
            session.enqueue(FakeStream(0x5000), {"x": x})  # PyTorch makes an object anew for each question
        assert waits == []

    def test_another_stream_waits(
        self, gpu: FakeGpu, session: tactician.Session, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        waits, x = self.waits(gpu, monkeypatch), FakeTensor(X)
        for handle in (0x5000, 0x6000, 0x6000, 0x5000):
            session.enqueue(FakeStream(handle), {"x": x})
        assert waits == [0x6000, 0x5000]

    def test_a_number_may_be_another_stream_by_now(
        self, gpu: FakeGpu, session: tactician.Session, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """CUDA gives the number of a stream that was destroyed to the next one, whose work is in no order with its."""
        monkeypatch.setattr("cuda.core.Stream", type("Stream", (), {"from_handle": staticmethod(FakeStream)}))
        waits, x = self.waits(gpu, monkeypatch), FakeTensor(X)
        for _ in range(3):
            session.enqueue(0x5000, {"x": x})
        assert waits == [0x5000, 0x5000]

    def test_a_stream_that_is_known_is_kept(self, gpu: FakeGpu, session: tactician.Session) -> None:
        stream, x = FakeStream(0x5000), FakeTensor(X)
        there = weakref.ref(stream)
        session.enqueue(stream, {"x": x})
        del stream
        gc.collect()
        assert there() is not None


def test_a_returned_output_keeps_the_callers_memory(session: tactician.Session) -> None:
    stream, x, y = FakeStream(0x5000), FakeTensor(X), FakeTensor(Y)
    for _ in range(2):
        returned = session.enqueue(stream, {"x": x}, {"y": y})["y"]
    there = weakref.ref(y)
    for i in range(10):  # other tensors, so that no graph is kept that writes to this one
        session.enqueue(stream, {"x": x}, {"y": FakeTensor(OTHER_Y + 4096 * i)})
    del y
    gc.collect()
    assert there() is not None
    assert returned.owner is there()
    assert returned.pointer == Y
