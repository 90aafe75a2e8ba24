"""Refit: new weights in a built engine, with no kernel run and every choice kept; and what can't be refitted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tactician
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from tactician.config import BuilderConfig
from tactician.errors import RefitError
from tactician.siblings.merge import SiblingMerger
from tactician.tactics.measure import Measurer
from tactician.tactics.record import Fusion

Run = Callable[..., tuple[int, str, str]]
CONFIG = BuilderConfig(target="cpu", plugins=("builtin",), isolate=False)
NODES = """
    [c] c = Conv <pads = [1, 1, 1, 1]> (x, w, b) [n] n = BatchNormalization (c, g, h, m, v) [r] r = Relu (n)
    [f] f = Flatten (r) [p] p = MatMul (f, u) [q] q = MatMul (f, t) [d] d = Sub (p, q) [e] y = Add (d, a)
"""
X = {"x": np.random.default_rng(9).standard_normal((2, 3, 6, 6)).astype(np.float32)}


def model(seed: int, nodes: str = NODES, **changed: Any) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 20]> g (float[2, 3, 6, 6] x) => (float[2, 32] y) {{ {nodes} }}'
    )
    rng = np.random.default_rng(seed)
    shapes = {
        "w": (4, 3, 3, 3),
        "u": (144, 32),
        "t": (144, 32),
        **dict.fromkeys("bghm", (4,)),
        "a": (32,),
        "z": (32,),
    }
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    arrays["v"] = rng.uniform(0.5, 2, 4).astype(np.float32)
    proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in (arrays | changed).items())
    return proto


def expected(proto: onnx.ModelProto) -> Any:
    return ReferenceEvaluator(proto).run(None, X)[0]


@pytest.fixture
def config(tmp_path: Path) -> BuilderConfig:
    return replace(CONFIG, timing_cache=tmp_path / "cache")


def test_new_weights_and_nothing_else(config: BuilderConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = tactician.build(model(1), config)
    monkeypatch.setattr(Measurer, "measure_all", None)  # nothing may be measured
    refitted = tactician.refit(engine, model(2), config)
    assert refitted.plan.steps == engine.plan.steps
    assert refitted.plan.tensors == engine.plan.tensors
    assert refitted.plan.model.sha256 != engine.plan.model.sha256
    assert refitted.report == engine.report
    for made, proto in ((engine, model(1)), (refitted, model(2))):
        got = tactician.Session(made).run(X)["y"]
        assert np.allclose(got, expected(proto), rtol=1e-4, atol=1e-4)


def test_what_the_network_has_been_rearranged_to(
    config: BuilderConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Products that were merged, whose weights lie in one batch."""

    def kept(self: SiblingMerger, group: Any, measured: Any) -> Fusion:
        return Fusion(group.name, tuple(n.name for n in group.nodes), "", True, "the test says so")

    with monkeypatch.context() as patch:
        patch.setattr(SiblingMerger, "_verdict", kept)
        engine = tactician.build(model(1), config)
    assert any(
        "MatMul(float32[1, 2, 144], float32[2, 144, 32])" in d.signature for d in engine.report.decisions
    )
    refitted = tactician.refit(engine, model(2), config)
    assert np.allclose(tactician.Session(refitted).run(X)["y"], expected(model(2)), rtol=1e-4, atol=1e-4)


def test_a_saved_engine(run: Run, config: BuilderConfig, tmp_path: Path) -> None:
    tactician.build(model(1), config).save(tmp_path / "old.tactician")
    (tmp_path / "new.onnx").write_bytes(model(2).SerializeToString())
    status, output, _ = run(
        "refit",
        tmp_path / "old.tactician",
        tmp_path / "new.onnx",
        "-o",
        tmp_path / "new.tactician",
        "--plugin",
        "builtin",
    )
    assert status == 0, output
    assert "with the weights of" in output
    session = tactician.Session(tactician.Engine.load(tmp_path / "new.tactician"))
    assert np.allclose(session.run(X)["y"], expected(model(2)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("nodes", "changed", "message"),
    [
        (NODES.replace("Relu", "Tanh"), {}, "another network than the engine's"),
        (NODES, {"u": np.zeros((144, 1), np.float32)}, "another network than the engine's"),
        (
            NODES.replace("[d] d = Sub", "[k] k = Neg (p) [d] d = Sub").replace("Sub (p", "Sub (k"),
            {},
            "is not in the engine",
        ),
    ],
)
def test_another_network_is_refused(config: BuilderConfig, nodes: str, changed: Any, message: str) -> None:
    engine = tactician.build(model(1), config)
    with pytest.raises(RefitError, match=message):
        tactician.refit(engine, model(2, nodes, **changed), config)


def test_weights_that_were_equal_and_no_longer_are(config: BuilderConfig) -> None:
    """Small constants that are equal become one; two that are not can't be put in its place."""
    nodes = NODES.replace("y = Add (d, a)", "k = Add (d, a) [o] o = Tanh (k) [z] y = Add (o, z)")
    one, two = np.ones(32, np.float32), np.full(32, 2, np.float32)
    engine = tactician.build(model(1, nodes, a=one, z=one), config)
    with pytest.raises(
        RefitError, match="share a weight in the engine.*have two in the model; build it anew"
    ):
        tactician.refit(engine, model(2, nodes), config)
    refitted = tactician.refit(engine, model(2, nodes, a=two, z=two), config)
    wanted = expected(model(2, nodes, a=two, z=two))
    assert np.allclose(tactician.Session(refitted).run(X)["y"], wanted, rtol=1e-4, atol=1e-4)
