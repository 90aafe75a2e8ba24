"""The stage that decomposes: what it leaves alone, what becomes of names, and a build for a target that falls back."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import tactician
from decomposing import decomposed, is_basic, model, run_reference
from tactician import InlinePlugin, hookimpl
from tactician.builtin_kernels.cpu.onnx_reference import Reference
from tactician.builtin_kernels.cpu.target import CpuTarget
from tactician.config import BuilderConfig
from tactician.decompositions.stage import Decomposer
from tactician.errors import ConfigError
from tactician.importer import import_model
from tactician.network import signature_of, signatures
from tactician.signature import OpSignature
from tactician.tactics.lock import LockedNode, LockFile

TEXT = """<ir_version: 9, opset_import: ["" : 21]>
g (float[1, 2, 4, 4] x, float[2, 2, 4, 4] w) => (float[1, 2, 8, 8] y, float[1, 2, 8, 8] z)
<int64 k = {0}>
{ [up] u = ConvTranspose <strides = [2, 2], pads = [1, 1, 1, 1]> (x, w) [tri] y = Trilu (u, k) [neg] z = Neg (u) }"""
FEEDS = {
    "x": np.random.default_rng(0).standard_normal((1, 2, 4, 4)).astype(np.float32),
    "w": np.random.default_rng(1).standard_normal((2, 2, 4, 4)).astype(np.float32),
}


class SmallTarget(CpuTarget):
    """A target that falls back to the CPU."""

    name: ClassVar[str] = "small"
    fallback: ClassVar[str | None] = "cpu"

    def device(self, index: int = 0, artifacts: Any = None) -> Any:
        device = super().device(index, artifacts)
        device.target = "small"
        return device


@dataclass(frozen=True)
class Basic(Reference):
    """Runs what decompositions are made of."""

    target: ClassVar[str] = "small"

    def decline(self, signature: OpSignature, device: Any) -> str | None:
        return None if is_basic(signature) else "not so basic"


def plugin() -> InlinePlugin:
    @hookimpl
    def targets() -> list[Any]:
        return [SmallTarget]

    @hookimpl
    def tactics() -> list[Any]:
        return [Basic]

    return InlinePlugin("small", {"targets": targets, "tactics": tactics})


@pytest.fixture
def config(tmp_path: Path) -> BuilderConfig:
    return BuilderConfig(
        target="small", plugins=("builtin", plugin()), isolate=False, avg_timing_iterations=1, timing_cache=tmp_path / "cache",
        without=("fuse",),
    )  # fmt: skip


def test_a_build_without_falling_back(config: BuilderConfig, tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(TEXT)
    engine = tactician.build(proto, replace(config, dump_stages=tmp_path))
    assert {d.target for d in engine.report.decisions} == {"small"} and not engine.report.warnings
    stage = next(s for s in engine.report.stages if s.name == "decompose")
    assert (stage.matches, stage.nodes_before) == (2, 3) and stage.nodes_after > 3
    (file,) = tmp_path.glob("*_decompose.onnx")
    wanted = run_reference(proto, FEEDS)
    for results in (
        run_reference(onnx.load(file), FEEDS),
        [*tactician.Session(engine, plugins=[plugin()]).run(FEEDS).values()],
    ):
        for got, want in zip(results, wanted, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_without_it_the_build_falls_back(config: BuilderConfig) -> None:
    engine = tactician.build(onnx.parser.parse_model(TEXT), replace(config, without=("fuse", "decompose")))
    assert {n for d in engine.report.decisions if d.target == "cpu" for n in d.nodes} == {"up", "tri"}
    assert "decompose" not in {s.name for s in engine.report.stages} and len(engine.report.warnings) == 2


def test_a_misspelt_name_is_an_error(config: BuilderConfig) -> None:
    with pytest.raises(ConfigError, match="did you mean 'decompose'"):
        tactician.build(onnx.parser.parse_model(TEXT), replace(config, without=("decompos",)))


def test_a_target_without_a_fallback_has_no_such_stage(tmp_path: Path) -> None:
    config = BuilderConfig(target="cpu", isolate=False, avg_timing_iterations=1, timing_cache=tmp_path / "c")
    engine = tactician.build(onnx.parser.parse_model(TEXT), config)
    assert "decompose" not in {s.name for s in engine.report.stages}


def test_a_lock_file_replays_it(config: BuilderConfig, tmp_path: Path) -> None:
    proto, file = onnx.parser.parse_model(TEXT), tmp_path / "m.lock"
    built = tactician.build(proto, config)
    LockFile.of(built.report.decisions, built.plan.plugins, target="small").save(file)
    replayed = tactician.build(proto, replace(config, lock_file=file, locked=True))
    assert [s.node for s in replayed.plan.steps] == [s.node for s in built.plan.steps]


def test_a_lock_file_of_a_build_without_it_keeps_the_calls() -> None:
    network = import_model(onnx.parser.parse_model(TEXT))
    up = next(n for n in network.graph if n.name == "up")
    call = signature_of(up, network)
    lock = LockFile(1, {"up": LockedNode("cpu.it()", 1, "cpu", str(call), call.key)}, {})
    assert Decomposer(is_basic, BuilderConfig(), {}, lock).run(network) == 1
    assert {"ConvTranspose", "Where"} <= {n.op_type for n in network.graph}


def test_what_a_rule_names_is_left_alone() -> None:
    network = import_model(onnx.parser.parse_model(TEXT))
    rules = BuilderConfig(tactic_rules=(("up", "*"),))
    assert Decomposer(is_basic, rules, {}).run(network) == 1
    assert {"ConvTranspose", "Where"} <= {n.op_type for n in network.graph}


def test_names() -> None:
    proto = onnx.parser.parse_model(TEXT)
    proto.graph.node[2].name = "up/Conv"  # taken
    network = import_model(proto)
    assert Decomposer(is_basic, BuilderConfig(), {}).run(network) == 2
    names = [n.name or "" for n in network.graph]
    assert len(set(names)) == len(names) and {"up", "tri", "up/Conv_1"} <= set(names)
    assert all(n.startswith(("up", "tri")) for n in names)
    assert [v.name for v in network.graph.outputs] == ["y", "z"]
    results = run_reference(ir.serde.serialize_model(network), FEEDS)
    for got, want in zip(results, run_reference(proto, FEEDS), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_constants_are_not_copied() -> None:
    proto = model("ConvTranspose", {"x": FEEDS["x"]}, {"w": FEEDS["w"], "b": np.ones(2, np.float32)})
    network, _ = decomposed(proto)
    weights = network.graph.initializers
    (node,) = network.graph
    assert node.inputs[2] is weights["b"] and node.inputs[1] is not None and node.inputs[1].name != "w"
    assert "w" not in weights  # nobody reads what the filters were made of


@pytest.mark.parametrize("missing", ["Conv", "Pad", "Slice"])
def test_nothing_changes_where_a_part_is_not_accepted(missing: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "tactician.decompositions.stage")
    w = np.zeros((2, 2, 3, 3), np.float32)
    proto = model("ConvTranspose", {"x": FEEDS["x"], "w": w}, strides=[2, 2], pads=[1, 1, 1, 1])
    before = import_model(proto)
    network, count = decomposed(proto, lambda call: is_basic(call) and call.op_type != missing)
    assert count == 0 and signatures(network) == signatures(before)
    assert "ConvTranspose 'it' is not decomposed: no tactic accepts " + missing in caplog.text


def test_nothing_changes_where_a_shape_is_not_known(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "tactician.decompositions.stage")
    proto = model("Hardmax", {"x": np.zeros((3, 4), np.float32)})
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    assert decomposed(proto)[1] == 0
    assert "Hardmax 'it' is not decomposed: not every shape is known" in caplog.text


def test_shapes_that_an_expansion_makes_known() -> None:
    """Inference knows no shape of a MeanVarianceNormalization; that of its body it does, and what follows from it."""
    proto = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 21]> g (float[2, 3, 4, 4] x) => (float y)
        { [mvn] m = MeanVarianceNormalization (x) [max] h = Hardmax (m) [sum] y = ReduceSum <keepdims = 0> (h) }"""
    )
    network, count = decomposed(
        proto, lambda call: is_basic(call) and call.op_type != "MeanVarianceNormalization"
    )
    assert count == 2 and all(call.is_static for call in signatures(network).values())
    (got,) = run_reference(ir.serde.serialize_model(network), {"x": FEEDS["w"].repeat(3, 1)[:, :3]})
    assert got == 2 * 3 * 4


def test_nothing_changes_before_opset_18() -> None:
    proto = model("Trilu", {"x": np.zeros((3, 4), np.float32)}, opset=18)
    network = import_model(proto)
    network.graph.opset_imports[""] = 17
    assert Decomposer(is_basic, BuilderConfig(), {}).run(network) == 0


def test_what_is_accepted_is_not_asked_for_more() -> None:
    asked: list[str] = []

    def accepts(call: OpSignature) -> bool:
        asked.append(call.op_type)
        return True

    assert decomposed(onnx.parser.parse_model(TEXT), accepts)[1] == 0
    assert asked == ["ConvTranspose", "Trilu"]


def test_expansions_are_expanded_in_turn() -> None:
    """A loss is a log of softmax and another loss, whose bodies are ONNX's."""
    feeds = {
        "x": np.random.default_rng(2).standard_normal((3, 5)).astype(np.float32),
        "t": np.array([0, 4, 2]),
    }
    losses = ("SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss", "LogSoftmax")
    proto = model("SoftmaxCrossEntropyLoss", feeds, reduction="sum")
    network, count = decomposed(proto, lambda call: call.op_type not in losses)
    assert count == 1 and not {n.op_type for n in network.graph} & set(losses)
    (got,) = run_reference(ir.serde.serialize_model(network), feeds)
    np.testing.assert_allclose(got, run_reference(proto, feeds)[0], rtol=1e-5)
