"""What is done to whole networks before kernels are chosen, on a GPU: attention, layouts, merged products, views, precision."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
import tactician
from attention_spellings import SPELLINGS, attention_model
from digits import MODEL, SHAPES, right
from models import bert_encoder, resnet50
from onnx.reference import ReferenceEvaluator
from tactician.config import BuilderConfig
from tactician.layouts.planner import LayoutPlanner
from tactician.siblings.merge import SiblingMerger
from tactician.tactics.record import Fusion

pytestmark = pytest.mark.gpu

TOLERANCE = 5e-3
RIGHT = 446
"""Digits that the quick start's network gets right in float32, of 448."""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> BuilderConfig:
    cache = tmp_path_factory.mktemp("cache") / "timing.sqlite"
    return BuilderConfig(target="cuda", plugins=("builtin",), timing_cache=cache, threads=4)


def check(engine: tactician.Engine, proto: onnx.ModelProto) -> None:
    """Hold two runs against ONNX's reference in float32: the second one finds the arena as the first has left it."""
    assert {step.target for step in engine.plan.steps} == {"cuda"}
    session = tactician.Session(engine)
    rng = np.random.default_rng(5)
    for _ in range(2):
        feeds = {s.name: rng.standard_normal(s.type.dims).astype(s.type.numpy_dtype) for s in session.inputs}
        (wanted,) = ReferenceEvaluator(proto).run(None, feeds)
        (got,) = session.run(feeds).values()
        assert got.dtype == wanted.dtype
        assert np.linalg.norm(got.astype(float) - wanted) <= TOLERANCE * np.linalg.norm(wanted.astype(float))


@pytest.mark.parametrize("name", list(SPELLINGS))
def test_attention_in_16_bits(device: Any, config: BuilderConfig, name: str) -> None:
    spelling = SPELLINGS[name]
    proto = attention_model(spelling.nodes, spelling.inputs, spelling.output, spelling.opset)
    engine = tactician.build(proto, replace(config, precision="fp16"))
    (fusion,) = (f for f in engine.report.fusions if f.signature.startswith("Attention("))
    assert fusion.seconds is not None
    check(engine, proto)


def test_channels_innermost(device: Any, config: BuilderConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every convolution that a kernel takes, whether it is faster so or not."""
    monkeypatch.setattr(LayoutPlanner, "_best", lambda self, measured: frozenset(self._moved))
    proto = resnet50(2, "float16", image=64, width=16, blocks=(1, 1, 1, 1), classes=16)
    engine = tactician.build(proto, config)
    assert sum(step.op_signature.anchor.op == "tactician.nhwc::Conv" for step in engine.plan.steps) >= 12
    check(engine, proto)


def test_merged_products(device: Any, config: BuilderConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def kept(self: SiblingMerger, group: Any, measured: Any) -> Fusion:
        return Fusion(group.name, tuple(n.name for n in group.nodes), "", True, "the test says so")

    monkeypatch.setattr(SiblingMerger, "_verdict", kept)
    proto = bert_encoder(2, 256, 4, 64, 2, "float16")
    engine = tactician.build(proto, config)
    # those of the first layer are of an input
    assert (
        sum(
            d.signature.startswith("MatMul") and "(float16[1, 128, 256], float16[3, 256, 256]" in d.signature
            for d in engine.report.decisions
        )
        == 1
    )
    assert not any(step.op in ("ai.onnx::Split", "ai.onnx::Reshape") for step in engine.plan.steps[8:])
    check(engine, proto)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_float32_model_in_16_bits(device: Any, config: BuilderConfig, precision: Any) -> None:
    proto = bert_encoder(1, 128, 4, 32, 2, "float32")
    engine = tactician.build(proto, replace(config, precision=precision))
    narrow = {"fp16": "float16", "bf16": "bfloat16"}[precision]
    assert narrow in {engine.plan.tensors[s.outputs[0]].dtype for s in engine.plan.steps}
    session = tactician.Session(engine)
    rng = np.random.default_rng(6)
    feeds = {s.name: rng.standard_normal(s.type.dims).astype(np.float32) for s in session.inputs}
    (wanted,) = ReferenceEvaluator(proto).run(None, feeds)
    (got,) = session.run(feeds).values()
    assert got.dtype == np.float32
    bound = TOLERANCE if precision == "fp16" else 8 * TOLERANCE
    assert np.linalg.norm(got - wanted) <= bound * np.linalg.norm(wanted)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "best"])
def test_a_trained_network_keeps_its_accuracy(device: Any, config: BuilderConfig, precision: Any) -> None:
    engine = tactician.build(
        MODEL, replace(config, shapes=SHAPES, precision=precision, precision_tolerance=2e-2)
    )
    assert abs(right(engine) - RIGHT) <= 1


def test_refit(device: Any, config: BuilderConfig) -> None:
    engine = tactician.build(bert_encoder(2, 128, 4, 32, 2, "float16"), config)
    proto = bert_encoder(2, 128, 4, 32, 2, "float16", seed=7)
    check(tactician.refit(engine, proto, config), proto)
