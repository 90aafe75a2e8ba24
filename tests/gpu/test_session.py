"""Whole engines on a GPU: right, without copies where tensors lie there already, on any stream, without a compiler."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tactician
from models import bert_encoder, resnet50
from tactician.errors import InputError

pytestmark = pytest.mark.gpu

IMAGE = (2, 3, 48, 48)
TOLERANCE = {"float32": 1e-5, "float16": 5e-3}


def small_resnet(dtype: str = "float32") -> onnx.ModelProto:
    return resnet50(2, dtype, image=48, width=8, blocks=(1, 1, 1, 1), classes=10)


def small_bert(dtype: str = "float32") -> onnx.ModelProto:
    return bert_encoder(2, 64, 4, 24, 2, dtype)


def by_onnxruntime(model: onnx.ModelProto, feeds: dict[str, Any]) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


def feeds_for(session: tactician.Session, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {s.name: rng.standard_normal(s.type.dims).astype(s.type.numpy_dtype) for s in session.inputs}


def relative(got: Any, wanted: Any) -> float:
    wanted = np.asarray(wanted, np.float64)
    return float(np.linalg.norm(np.asarray(got, np.float64) - wanted) / np.linalg.norm(wanted))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> tactician.BuilderConfig:
    return tactician.BuilderConfig(
        target="cuda",
        plugins=("builtin",),
        timing_cache=tmp_path_factory.mktemp("cache") / "timing.sqlite",
        threads=4,  # tests that run at the same time compile at the same time
    )


@pytest.fixture(scope="module")
def engine(device: Any, config: tactician.BuilderConfig) -> tactician.Engine:
    return tactician.build(small_resnet(), config)


@pytest.fixture
def session(engine: tactician.Engine) -> tactician.Session:
    return tactician.Session(engine)


@pytest.fixture
def feeds(session: tactician.Session) -> dict[str, Any]:
    return feeds_for(session)


@pytest.fixture
def wanted(feeds: dict[str, Any]) -> np.ndarray[Any, Any]:
    return by_onnxruntime(small_resnet(), feeds)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("make", [small_resnet, small_bert])
def test_whole_models_run_on_the_gpu_alone(
    device: Any, config: tactician.BuilderConfig, make: Callable[..., onnx.ModelProto], dtype: str
) -> None:
    engine = tactician.build(make(dtype), config)
    assert {step.target for step in engine.plan.steps} == {"cuda"}
    assert not engine.report.warnings
    session = tactician.Session(engine)
    feeds = feeds_for(session)
    (output,) = session.run(feeds).values()
    wide = {name: value.astype(np.float32) for name, value in feeds.items()}
    assert relative(output, by_onnxruntime(make(), wide)) < TOLERANCE[dtype]
    (again,) = session.run(feeds).values()
    assert np.array_equal(output, again)
    (other,) = session.run(feeds_for(session, 1)).values()
    assert not np.allclose(output.astype(np.float32), other.astype(np.float32))


def test_memory_is_shared_by_lifetime(engine: tactician.Engine) -> None:
    (memory,) = [m for m in engine.plan.memory if m.target == "cuda"]
    assert memory.peak < memory.naive / 2


class TestWithoutCopies:
    def test_torch(
        self, session: tactician.Session, feeds: dict[str, Any], wanted: np.ndarray[Any, Any]
    ) -> None:
        torch = pytest.importorskip("torch")
        image = torch.from_numpy(feeds["image"]).cuda()
        output = torch.from_dlpack(session.run({"image": image}, on_device=True)["logits"])
        assert output.is_cuda
        assert relative(output.cpu(), wanted) < 1e-5

    def test_cupy(
        self, session: tactician.Session, feeds: dict[str, Any], wanted: np.ndarray[Any, Any]
    ) -> None:
        cupy = pytest.importorskip("cupy")
        image = cupy.asarray(feeds["image"])
        output = cupy.from_dlpack(session.run({"image": image}, on_device=True)["logits"])
        assert relative(cupy.asnumpy(output), wanted) < 1e-5

    def test_jax(self, feeds: dict[str, Any], engine: tactician.Engine, tmp_path: Path) -> None:
        """In a process of its own: JAX takes most of the GPU's memory for itself."""
        pytest.importorskip("jax")
        path = tmp_path / "m.tactician"
        engine.save(path)
        np.save(tmp_path / "image.npy", feeds["image"])
        script = (
            "import jax, numpy as np, tactician, sys\n"
            "session = tactician.load(sys.argv[1])\n"
            "host = np.load(sys.argv[2])\n"
            "image = jax.device_put(host, jax.devices('gpu')[0])\n"
            "y = jax.numpy.from_dlpack(session.run({'image': image}, on_device=True)['logits'])\n"
            "assert y.device.platform == 'gpu', y.device\n"
            "np.testing.assert_array_equal(np.asarray(y), session.run({'image': host})['logits'])\n"
        )
        run_python(script, str(path), str(tmp_path / "image.npy"), XLA_PYTHON_CLIENT_PREALLOCATE="false")

    def test_inputs_and_outputs_stay_where_they_are(
        self, session: tactician.Session, feeds: dict[str, Any], wanted: np.ndarray[Any, Any]
    ) -> None:
        torch = pytest.importorskip("torch")
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            image = torch.from_numpy(feeds["image"]).cuda(non_blocking=True) * 0.5
            output = torch.full((2, 10), float("nan"), device="cuda")
            image *= 2  # enqueued before the engine, on its stream: nothing waits in between
            returned = session.enqueue(stream, {"image": image}, {"logits": output})
            tripled = output * 3
        stream.synchronize()
        assert relative(output.cpu(), wanted) < 1e-5
        assert relative(tripled.cpu(), 3 * wanted) < 1e-5
        assert returned["logits"].pointer == output.data_ptr()

    def test_two_streams_take_turns(self, session: tactician.Session) -> None:
        """One session has one arena: what is enqueued on another stream waits for it."""
        torch = pytest.importorskip("torch")
        streams = [torch.cuda.Stream(), torch.cuda.Stream()]
        images = [torch.from_numpy(feeds_for(session, seed)["image"]).cuda() for seed in range(8)]
        outputs = [torch.full((2, 10), float("nan"), device="cuda") for _ in images]
        torch.cuda.synchronize()
        for i, (image, output) in enumerate(zip(images, outputs, strict=True)):
            session.enqueue(streams[i % 2], {"image": image}, {"logits": output})
        torch.cuda.synchronize()
        for image, output in zip(images, outputs, strict=True):
            alone = session.run({"image": image.cpu().numpy()})["logits"]
            assert np.array_equal(output.cpu().numpy(), alone)

    @pytest.mark.parametrize("form", ["stream", "handle"])
    def test_tensors_that_were_seen_are_read_anew(self, session: tactician.Session, form: str) -> None:
        """The same tensors and stream time after time, and other contents: nothing of the call before is left."""
        torch = pytest.importorskip("torch")
        stream = torch.cuda.Stream()
        image = torch.empty(IMAGE, device="cuda")
        output = torch.full((2, 10), float("nan"), device="cuda")
        torch.cuda.synchronize()
        for seed in range(4):
            host = feeds_for(session, seed)["image"]
            with torch.cuda.stream(stream):
                image.copy_(torch.from_numpy(host))
                given = stream if form == "stream" else stream.cuda_stream
                returned = session.enqueue(given, {"image": image}, {"logits": output})["logits"]
            stream.synchronize()
            assert returned.pointer == output.data_ptr()
            assert returned.owner is not None
            alone = session.run({"image": host})["logits"]
            assert np.array_equal(output.cpu().numpy(), alone)


def test_what_does_not_fit_is_refused(session: tactician.Session, feeds: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    image = torch.from_numpy(feeds["image"]).cuda()
    stream = torch.cuda.Stream()
    with pytest.raises(InputError, match="float16"):
        session.run({"image": image.half()})
    with pytest.raises(InputError, match="shape"):
        session.enqueue(stream, {"image": image[:1]})
    with pytest.raises(InputError, match="not a contiguous tensor on cuda:0"):
        session.enqueue(stream, {"image": feeds["image"]})
    with pytest.raises(InputError, match="not a contiguous tensor on cuda:0"):
        session.enqueue(stream, {"image": image.transpose(2, 3)})
    with pytest.raises(InputError, match="no output 'probabilities'"):
        session.enqueue(stream, {"image": image}, {"probabilities": image})


def test_a_loaded_engine_needs_no_compiler(
    engine: tactician.Engine, feeds: dict[str, Any], session: tactician.Session, tmp_path: Path
) -> None:
    path = tmp_path / "m.tactician"
    engine.save(path)
    np.save(tmp_path / "image.npy", feeds["image"])
    script = (
        "import sys, json, numpy as np, tactician, cuda.core\n"
        "cuda.core.Program = None  # whoever compiles fails\n"
        "logits = tactician.load(sys.argv[1]).run({'image': np.load(sys.argv[2])})['logits']\n"
        "heavy = ('onnx', 'onnx_ir', 'onnxscript', 'sympy')\n"
        "print(json.dumps([logits.tolist(), [m for m in heavy if m in sys.modules]]))\n"
    )
    logits, imported = json.loads(run_python(script, str(path), str(tmp_path / "image.npy")))
    assert np.array_equal(np.array(logits, np.float32), session.run(feeds)["logits"])
    assert imported == []


def test_what_has_no_kernel_runs_on_the_cpu_and_says_so(device: Any, config: tactician.BuilderConfig) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 20]>\n'
        "g (float[4, 3, 3] x) => (float[4] y) { a = Relu(x)  [middle] d = Det(a)  y = Add(d, d) }"
    )
    engine = tactician.build(model, config)
    targets = {step.node: step.target for step in engine.plan.steps if not step.is_copy}
    assert targets["middle"] == "cpu"
    assert set(targets.values()) == {"cpu", "cuda"}
    (warning,) = engine.report.warnings
    assert "middle" in warning
    assert "copied" in warning
    x = np.random.default_rng(0).standard_normal((4, 3, 3)).astype(np.float32)
    got = tactician.Session(engine).run({"x": x})["y"]
    assert relative(got, 2 * np.linalg.det(np.maximum(x, 0).astype(np.float64))) < 1e-5


def test_profile_tells_every_step(session: tactician.Session, feeds: dict[str, Any]) -> None:
    times = session.profile(feeds, iterations=3)
    assert [t.node for t in times] == [s.node for s in session.plan.steps]
    assert all(0 < t.seconds < 0.1 for t in times)


def test_both_gpus_run_an_engine(engine: tactician.Engine, feeds: dict[str, Any]) -> None:
    from tactician.builtin_kernels.cuda.target import CudaTarget

    if CudaTarget().count() < 2:
        pytest.skip("there is one GPU")
    outputs = [tactician.Session(engine, device=i).run(feeds)["logits"] for i in (0, 1)]
    assert np.array_equal(*outputs)


def run_python(script: str, *arguments: str, **environment: str) -> str:
    import os

    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_elementwise_operators_are_fused_and_right(device: Any, config: tactician.BuilderConfig) -> None:
    """Sigmoid(x) * x + 1 and the like: one launch, that computes what its operators would one by one."""
    model = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 20]> g (float[64, 1023] x, float[1, 1023] b) => (float[64, 1023] y)
        { [tanh] t = Tanh (x) [add] a = Add (t, b) [relu] r = Relu (a) [mul] m = Mul (r, x) [neg] y = Neg (m) }"""
    )
    engine = tactician.build(model, config)
    apart = tactician.build(model, dataclasses.replace(config, without=("fuse",)))
    assert [step.node for step in engine.plan.steps] == ["tanh+neg"]
    assert len(apart.plan.steps) == 5
    (fusion,) = (f for f in engine.report.fusions if f.kept)
    assert fusion.tie or fusion.seconds < fusion.seconds_apart
    session = tactician.Session(engine)
    feeds = feeds_for(session)
    wanted = by_onnxruntime(model, feeds)
    for built in (engine, apart):
        assert relative(tactician.Session(built).run(feeds)["y"], wanted) < TOLERANCE["float32"]


def test_a_network_is_fused_and_right(engine: tactician.Engine) -> None:
    assert any(step.op.startswith("tactician.fused::Conv_Add_Relu") for step in engine.plan.steps)
    assert all(f.tie or f.seconds < f.seconds_apart for f in engine.report.fusions if f.kept)
