"""Optimization profiles on a GPU: shapes between the best ones are right, share weights, and run on any stream."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import tactician
from profiled import LARGE, SMALL, expected, feeds, is_right, model
from tactician import BuilderConfig, OptimizationProfile, ProfiledEngine, ProfiledSession
from tactician.errors import ProfileError
from tactician.plan import Place
from tactician.tactics.measure import Measurer

pytestmark = pytest.mark.gpu

DIGITS = Path(__file__).resolve().parents[2] / "examples" / "digits" / "digits.onnx"
SHAPES = ((2, 4), (3, 12), (1, 1), (4, 8), (5, 24), (1, 7), (5, 6))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> BuilderConfig:
    return BuilderConfig(
        target="cuda",
        plugins=("builtin",),
        timing_cache=tmp_path_factory.mktemp("cache") / "timing.sqlite",
        profiles=(SMALL, LARGE),
        threads=4,
    )


@pytest.fixture(scope="module")
def engine(device: Any, config: BuilderConfig) -> ProfiledEngine:
    built = tactician.build(model(), config)
    assert isinstance(built, ProfiledEngine)
    return built


def test_shapes_within_the_profiles(engine: ProfiledEngine, tmp_path: Path) -> None:
    engine.save(tmp_path / "e")
    for session in (ProfiledSession(engine, most_shapes=2), ProfiledSession(tmp_path / "e", most_shapes=2)):
        for shape in (*SHAPES, *SHAPES):
            assert is_right(session, feeds(*shape)), shape
        assert len(session.prepared) == 2
        with pytest.raises(ProfileError):
            session.run(feeds(6, 6))


def test_nothing_runs_elsewhere(engine: ProfiledEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Measurer, "measure_all", None)  # nothing may be measured
    session = ProfiledSession(engine)
    for batch, rows in SHAPES[2:]:
        session.prepare({"x": (batch, rows, 16), "m": (batch, rows)})
    for one in (*session._opts.values(), *session._others.values()):
        assert {step.target for step in one.plan.steps} == {"cuda"}


def test_weights_lie_on_the_device_once(engine: ProfiledEngine) -> None:
    session = ProfiledSession(engine)
    session.prepare({"x": (4, 7, 16), "m": (4, 7)})
    (other,) = session._others.values()
    first = session._opts[0]

    def pointers(one: tactician.Session) -> dict[str, int]:
        return {
            spec.name: one._values[i].pointer
            for i, spec in enumerate(one.plan.tensors)
            if spec.place == Place.WEIGHT and spec.type.nbytes > 64
        }

    common = pointers(first).keys() & pointers(other).keys()
    assert {"w1", "w2"} <= common
    assert all(pointers(first)[name] == pointers(other)[name] for name in common)


def test_streams_and_evictions(engine: ProfiledEngine) -> None:
    """What was enqueued with a shape that has to go ends before its memory does."""
    torch = pytest.importorskip("torch")
    session = ProfiledSession(engine, most_shapes=1)
    stream = torch.cuda.Stream()
    results = []
    for shape in (*SHAPES, *SHAPES):
        values = feeds(*shape)
        given = {name: torch.from_numpy(value).cuda() for name, value in values.items()}
        output = torch.empty(expected(values).shape, device="cuda")
        torch.cuda.synchronize()
        session.enqueue(stream, given, {"y": output})
        results.append((given, output, expected(values)))
    stream.synchronize()
    for _, output, wanted in results:
        assert np.allclose(output.cpu().numpy(), wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_convolutional_network(device: Any, config: BuilderConfig, precision: Any, tmp_path: Path) -> None:
    """Its layouts and fusions are those of the profile, and no time is taken for other batches."""
    profiles = tuple(
        OptimizationProfile.parse(f"input:{low}x1x8x8..{opt}x1x8x8..{high}x1x8x8")
        for low, opt, high in ((1, 8, 16), (17, 64, 128))
    )
    built = tactician.build(DIGITS, replace(config, profiles=profiles, precision=precision))
    built.save(tmp_path / "e")
    session = tactician.load(tmp_path / "e")
    runtime = onnxruntime.InferenceSession(DIGITS, providers=["CPUExecutionProvider"])
    for batch in (8, 64, 1, 16, 3, 17, 100, 128):
        images = np.random.default_rng(batch).random((batch, 1, 8, 8), np.float32)
        wanted = runtime.run(None, {"input": images})[0]
        got = session.run({"input": images})["logits"]
        assert np.linalg.norm(got - wanted) < {"fp32": 1e-4, "fp16": 2e-2}[precision] * np.linalg.norm(wanted)
