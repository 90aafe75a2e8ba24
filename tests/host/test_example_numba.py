"""The example target: installed as others would, it builds the digits model, and says what it can't do."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from packages import LEFTOVERS, ROOT, run
from tactician import BuilderConfig, Engine, Network, Session, build
from tactician.errors import DeviceError, EngineMismatchError
from tactician.plugins.manager import load_plugins

pytest.importorskip("numba")

EXAMPLE = ROOT / "examples" / "tactician-numba"
MODEL = ROOT / "examples" / "digits" / "digits.onnx"
PLUGIN = "numba_target"
PLUGINS = ("builtin", PLUGIN)
BATCH = 5
OPTIONS: dict[str, Any] = {
    "target": "numba",
    "plugins": PLUGINS,
    "use_timing_cache": False,
    "max_candidates": 2,
}


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Install the package into a folder of its own, and put that on the path for the tests of this file."""
    folder = tmp_path_factory.mktemp("numba")
    source, site = folder / "source", folder / "site"
    shutil.copytree(EXAMPLE, source, ignore=LEFTOVERS)
    offline = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    run(sys.executable, "-m", "pip", "install", "--quiet", *offline, "--target", site, source)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site))
        yield site
        for name in [n for n in sys.modules if n.partition(".")[0] == "tactician_numba"]:
            del sys.modules[name]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return build(MODEL, BuilderConfig(shapes={"input": (BATCH, 1, 8, 8)}, **OPTIONS))


@pytest.fixture
def without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)


def random_images() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).standard_normal((BATCH, 1, 8, 8)).astype(np.float32)


def relative(values: np.ndarray[Any, Any], reference: np.ndarray[Any, Any]) -> float:
    return float(np.linalg.norm(values - reference) / np.linalg.norm(reference))


def test_the_tests_of_the_example_pass() -> None:
    words = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
    assert " passed" in run(sys.executable, *words, cwd=EXAMPLE)


def test_loading_the_plugin_imports_no_numba(installed: Path) -> None:
    code = (
        "import sys; from tactician.plugins.manager import load_plugins; from tactician import BuilderConfig\n"
        f"target = load_plugins(BuilderConfig(plugins={PLUGINS!r}, strict=True)).target('numba')\n"
        "target.device().fingerprint(); assert 'numba' not in sys.modules; print(target.fallback)"
    )
    assert run(sys.executable, "-c", code, env={"PYTHONPATH": str(installed)}).strip() == "cpu"


def test_the_digits_model_runs_on_numba_alone(engine: Engine) -> None:
    assert engine.plan.target == "numba"
    assert {step.target for step in engine.plan.steps} == {"numba"}
    assert {d.chosen.partition(".")[0] for d in engine.report.decisions} == {PLUGIN}
    outcomes = {c.outcome for d in engine.report.decisions for c in d.candidates}
    assert not outcomes & {"wrong", "failed"}
    assert not engine.report.warnings


def test_it_computes_what_onnx_runtime_does(engine: Engine) -> None:
    images = random_images()
    peer = onnxruntime.InferenceSession(MODEL, providers=["CPUExecutionProvider"])
    session = Session(engine, plugins=PLUGINS)
    first = session.run({"input": images})["logits"]
    assert relative(first, peer.run(None, {"input": images})[0]) < 1e-4
    kept = first.copy()
    second = session.run({"input": 2 * images})["logits"]
    assert relative(second, peer.run(None, {"input": 2 * images})[0]) < 1e-4
    # outputs are the caller's: another run writes elsewhere
    np.testing.assert_array_equal(first, kept)


def test_the_saved_engine_gives_the_same(engine: Engine, tmp_path: Path) -> None:
    engine.save(tmp_path / "digits.tactician")
    images = random_images()
    loaded = Session(tmp_path / "digits.tactician", plugins=PLUGINS).run({"input": images})["logits"]
    np.testing.assert_array_equal(loaded, Session(engine, plugins=PLUGINS).run({"input": images})["logits"])


def test_outputs_on_the_device_are_taken_by_dlpack(engine: Engine) -> None:
    session, images = Session(engine, plugins=PLUGINS), random_images()
    tensor = session.run({"input": images}, on_device=True)["logits"]
    np.testing.assert_array_equal(np.from_dlpack(tensor), session.run({"input": images})["logits"])


def test_what_has_no_kernel_runs_on_the_cpu_and_is_reported() -> None:
    net = Network()
    x = net.input("x", "float32", (3, 7))
    net.output(net.op("Relu", net.op("Sinh", net.op("Tanh", x), name="curve"), name="last"), "y")
    built = build(net, BuilderConfig(**OPTIONS))
    targets = {step.node: step.target for step in built.plan.steps if not step.is_copy}
    assert targets["curve"] == "cpu"
    assert targets["last"] == "numba"
    assert sum(step.is_copy for step in built.plan.steps) == 2
    (warning,) = built.report.warnings
    assert "curve" in warning
    assert "runs on the cpu, since no numba tactic accepts it" in warning
    values = np.random.default_rng(0).standard_normal((3, 7)).astype(np.float32)
    exact = np.maximum(np.sinh(np.tanh(values.astype(np.float64))), 0)
    assert relative(Session(built, plugins=PLUGINS).run({"x": values})["y"], exact) < 1e-6


def test_another_type_runs_on_the_cpu() -> None:
    net = Network()
    net.output(net.op("Relu", net.input("x", "float64", (3, 7)), name="wide"), "y")
    built = build(net, BuilderConfig(**OPTIONS))
    (decision,) = built.report.decisions
    assert decision.target == "cpu"
    reasons = [c.reason for c in decision.candidates if (c.plugin, c.outcome) == (PLUGIN, "declined")]
    assert reasons and all("float64" in reason for reason in reasons), "why not on the target asked for"
    values = np.random.default_rng(0).standard_normal((3, 7))
    np.testing.assert_array_equal(
        Session(built, plugins=PLUGINS).run({"x": values})["y"], np.maximum(values, 0)
    )


def test_without_numba_the_error_says_so(without_numba: None) -> None:
    with pytest.raises(
        DeviceError, match="target 'numba' can't be used here: Numba is not installed; pip install numba"
    ):
        build(MODEL, BuilderConfig(shapes={"input": (BATCH, 1, 8, 8)}, **OPTIONS))
    # the plugin itself is sound: other targets are built as ever
    assert load_plugins(BuilderConfig(plugins=PLUGINS, strict=True)).states[PLUGIN].state == "ready"


def test_an_engine_without_numba_or_the_plugin_says_what_is_missing(
    engine: Engine, request: pytest.FixtureRequest
) -> None:
    with pytest.raises(EngineMismatchError, match="needs plugin 'numba_target'"):
        Session(engine, plugins=("builtin",))
    request.getfixturevalue("without_numba")
    with pytest.raises(DeviceError, match="Numba is not installed"):
        Session(engine, plugins=PLUGINS)
