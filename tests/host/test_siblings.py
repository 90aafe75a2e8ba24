"""Siblings: products of one tensor that become one of a batch, whose parts are views; and where times say so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import tactician
from fakes import FakeDevice, make_tactic, registry
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from tactician.config import BuilderConfig
from tactician.importer import import_model
from tactician.network import signatures
from tactician.siblings.find import find_siblings
from tactician.siblings.merge import SiblingMerger
from tactician.signature import OpSignature
from tactician.tactics.lock import LockedNode, LockFile
from tactician.tactics.measure import Measured
from tactician.tactics.record import CandidateRecord, Fusion, Outcome, Timing
from tactician.views import view_nodes

B, S, K, N = 2, 8, 12, 16
CONFIG = BuilderConfig(target="cpu", isolate=False)
Times = Callable[[OpSignature], float]
X = {"x": np.random.default_rng(0).standard_normal((B, S, K)).astype(np.float32)}


def model(
    nodes: str, outputs: str = f"float[{B}, {S}, {N}] y", inputs: str = f"float[{B}, {S}, {K}] x"
) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 20]> g ({inputs}) => ({outputs}) {{ {nodes} }}'
    )
    rng = np.random.default_rng(1)
    shapes = {
        "u": (K, N), "v": (K, N), "w": (K, N), "ut": (N, K), "vt": (N, K), "wide": (K, 3 * N), "other": (K, 2 * N),
        "a": (N,), "b": (1, 1, N), "c": (N,), "abc": (3 * N,),
    }  # fmt: skip
    read = {name for node in proto.graph.node for name in node.input}
    constants = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    constants |= {"flat": np.array([-1, K]), "deep": np.array([B, S, -1])}
    proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in constants.items() if n in read)
    return proto


THREE = (
    "[r] h = Relu (x) [m1] p1 = MatMul (h, u) [a1] q1 = Add (p1, a) [m2] p2 = MatMul (h, v) [a2] q2 = Add (b, p2) "
    "[m3] p3 = MatMul (h, w) [a3] q3 = Add (p3, c) [s1] s = Sub (q1, q2) [s2] y = Mul (s, q3)"
)
TWO = "[r] h = Relu (x) [m1] p1 = MatMul (h, u) [m2] p2 = MatMul (h, v) [s] y = Sub (p1, p2)"
GEMMS = (
    "[r] h = Relu (x) [f] h2 = Reshape (h, flat) [g1] p1 = Gemm <transB = 1> (h2, ut, a) [g2] p2 = Gemm <transB = 1> (h2, vt, c) "
    "[s] s = Sub (p1, p2) [d] y = Reshape (s, deep)"
)
SPLIT = (
    "[r] h = Relu (x) [m] p = MatMul (h, wide) [a] q = Add (p, abc) [cut] q1, q2, q3 = Split <axis = -1, num_outputs = 3> (q) "
    "[s1] s = Sub (q1, q2) [s2] y = Mul (s, q3)"
)
SPLIT_GEMM = (
    "[r] h = Relu (x) [f] h2 = Reshape (h, flat) [g] p = Gemm (h2, wide, abc) [d] q = Reshape (p, deep) "
    "[cut] q1, q2, q3 = Split <axis = 2, num_outputs = 3> (q) [s1] s = Sub (q1, q2) [s2] y = Mul (s, q3)"
)


def planned(nodes: str, times: Times, **options: str) -> tuple[ir.Model, list[Fusion]]:
    """Let products be merged where calls take ``times``."""
    offered = registry(
        *(make_tactic(op, op=f"ai.onnx::{op}", target="fake") for op in ("MatMul", "Add", "Gemm", "Split"))
    )
    network = import_model(model(nodes, **options))
    merger = SiblingMerger(network, offered, FakeDevice(), CONFIG, None)
    measured = {}
    for call in merger.candidates().values():
        seconds = times(call)
        record = CandidateRecord(
            "acme.it()", "acme", Outcome.UNMEASURED, timing=Timing(seconds, seconds, seconds, 5)
        )
        measured[call.key] = (FakeDevice(), Measured(call, (record,), {}))
    return network, merger.settle(measured)


def is_merged(call: OpSignature) -> bool:
    return call.inputs[0] is not None and call.inputs[0].dims[0] == 1


def cheap(call: OpSignature) -> float:
    return 1e-6


@pytest.mark.parametrize(
    ("nodes", "count"), [(THREE, 3), (TWO, 2), (GEMMS, 2), (SPLIT, 3), (SPLIT_GEMM, 3)],
    ids=["three with biases", "two", "Gemm", "Split", "Split of a Gemm"],
)  # fmt: skip
def test_a_merged_product_means_the_same(nodes: str, count: int) -> None:
    apart = {"MatMul": 10e-6, "Gemm": 10e-6, "Split": 10e-6}
    network, (fusion,) = planned(
        nodes, lambda call: 1e-6 if is_merged(call) else apart.get(call.op_type, 1e-6)
    )
    assert fusion.kept and fusion.reason == "faster"
    products = [n for n in network.graph if n.op_type == "MatMul"]
    assert [tuple(n.outputs[0].shape or ()) for n in products] == [(count, B * S, N)]
    assert not any(n.op_type == "Gemm" for n in network.graph)
    proto = ir.serde.serialize_model(network)
    onnx.checker.check_model(proto, full_check=True)
    (wanted,) = ReferenceEvaluator(model(nodes)).run(None, X)
    assert np.allclose(ReferenceEvaluator(proto).run(None, X)[0], wanted, rtol=1e-4, atol=1e-5)
    # what was measured is what runs, and nothing else runs beside it
    assert str(signatures(network)[fusion.name]) == fusion.signature
    views = view_nodes(network, CONFIG)
    assert {n.op_type for n in network.graph if n.name not in views} <= {
        "Relu",
        "MatMul",
        "Add",
        "Sub",
        "Mul",
        "Reshape",
    }
    assert {f"{fusion.name}/source", f"{fusion.name}/parts", f"{fusion.name}/part0"} <= views


def test_calls_are_those_of_the_merged_nodes() -> None:
    offered = registry(*(make_tactic(op, op=f"ai.onnx::{op}", target="fake") for op in ("MatMul", "Add")))
    network = import_model(model(THREE))
    merger = SiblingMerger(network, offered, FakeDevice(), CONFIG, None)
    keys = {s.key for s in merger.candidates().values()}
    record = CandidateRecord("acme.it()", "acme", Outcome.UNMEASURED, timing=Timing(1e-6, 1e-6, 1e-6, 5))
    (fusion,) = merger.settle(
        {s.key: (FakeDevice(), Measured(s, (record,), {})) for s in merger.candidates().values()}
    )
    calls = signatures(network)
    assert {calls[fusion.name].key, calls[f"{fusion.name}/bias"].key} <= keys


@pytest.mark.parametrize("merged", [25e-6, 29.9e-6, 40e-6])
def test_times_decide(merged: float) -> None:
    network, (fusion,) = planned(TWO, lambda call: merged if is_merged(call) else 15e-6)
    assert fusion.kept == (merged < 29.7e-6)
    assert fusion.seconds == pytest.approx(merged)
    assert fusion.seconds_apart == pytest.approx(30e-6)
    assert sum(n.op_type == "MatMul" for n in network.graph) == (1 if fusion.kept else 2)


def test_the_lock_file_decides_alone() -> None:
    network, (fusion,) = planned(TWO, cheap)
    call = signatures(network)[fusion.name]
    entry = LockedNode("acme.it()", 1, "acme", str(call), call.key)
    for nodes, kept in (({fusion.name: entry}, True), ({}, False)):
        offered = registry(make_tactic("MatMul", op="ai.onnx::MatMul", target="fake"))
        merger = SiblingMerger(
            import_model(model(TWO)), offered, FakeDevice(), CONFIG, LockFile(1, nodes, {})
        )
        assert merger.candidates() == {}
        (again,) = merger.settle({})
        assert again.kept == kept


@pytest.mark.parametrize(
    ("nodes", "options"),
    [
        (TWO.replace("(h, v)", "(h, u2)"), {"inputs": f"float[{B}, {S}, {K}] x, float[{K}, {N}] u2"}),  # no constant
        (TWO.replace("[r] h = Relu (x)", "").replace("(h,", "(x,"), {}),  # of an input, which would be copied
        (TWO, {"outputs": f"float[{B}, {S}, {N}] y, float[{B}, {S}, {N}] p1"}),  # an output, which would be copied
        ("[r] h = Relu (x) [m1] p1 = MatMul (h, u) [a1] q1 = Add (p1, a) [m2] p2 = MatMul (h, v) [s] y = Sub (q1, p2)", {}),
        (
            "[r] h = Relu (x) [m1] p1 = MatMul (h, u) [m2] p2 = MatMul (h, other) [n1] y = Neg (p1) [n2] z = Neg (p2)",
            {"outputs": f"float[{B}, {S}, {N}] y, float[{B}, {S}, {2 * N}] z"},
        ),
        (SPLIT.replace("num_outputs = 3", "num_outputs = 2").replace("q1, q2, q3", "q1, q2").replace("q3", "q1"), {}),
    ],
)  # fmt: skip
def test_what_is_no_group(nodes: str, options: dict[str, str]) -> None:
    if "num_outputs = 2" in nodes:
        nodes = nodes.replace("-1, num_outputs = 2", "1, num_outputs = 2")
        options = {"outputs": f"float[{B}, {S // 2}, {3 * N}] y"}
    assert list(find_siblings(import_model(model(nodes, **options)))) == []


def test_parts_that_would_have_to_be_copied_are_left_alone() -> None:
    small = model(
        TWO.replace("h = Relu (x)", "h = Relu (x)"),
        inputs=f"float[1, 3, {K}] x",
        outputs=f"float[1, 3, {N}] y",
    )
    offered = registry(make_tactic("MatMul", op="ai.onnx::MatMul", target="fake"))
    network = import_model(small)
    assert len(list(find_siblings(network))) == 1
    assert SiblingMerger(network, offered, FakeDevice(), CONFIG, None).candidates() == {}


def test_a_whole_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kept(self: SiblingMerger, group: Any, measured: Any) -> Fusion:
        return Fusion(group.name, tuple(n.name for n in group.nodes), "", True, "the test says so")

    monkeypatch.setattr(SiblingMerger, "_verdict", kept)
    config = replace(
        CONFIG, plugins=("builtin",), timing_cache=tmp_path / "cache", dump_stages=tmp_path / "stages"
    )
    engine = tactician.build(model(THREE), config)
    (wanted,) = ReferenceEvaluator(model(THREE)).run(None, X)
    session = tactician.Session(engine)
    for _ in range(2):
        assert np.allclose(session.run(X)["y"], wanted, rtol=1e-4, atol=1e-5)
    parts = [t for t in engine.plan.tensors if "/parts_out" in t.name]
    assert [t.offset - parts[0].offset for t in parts] == [0, B * S * N * 4, 2 * B * S * N * 4]
    for written in (tmp_path / "stages").glob("*.onnx"):
        assert np.allclose(ReferenceEvaluator(str(written)).run(None, X)[0], wanted, rtol=1e-4, atol=1e-5)
    assert any(s.name == "merge_siblings" and s.matches == 1 for s in engine.report.stages)


def test_the_report_has_both_times(tmp_path: Path) -> None:
    engine = tactician.build(
        model(TWO), replace(CONFIG, plugins=("builtin",), timing_cache=tmp_path / "cache")
    )
    fusion = next(f for f in engine.report.fusions if f.nodes == ("m1", "m2"))
    assert fusion.signature.startswith("MatMul(float32[1, 16, 12]")
    assert fusion.seconds is not None and fusion.seconds_apart is not None
    assert fusion.reason in ("faster", "slower than its operators one by one")


def test_a_lock_file_gives_the_same_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the merged product, with its biases, has become part of a fused node."""

    def kept(self: SiblingMerger, group: Any, measured: Any) -> Fusion:
        return Fusion(group.name, tuple(n.name for n in group.nodes), "", True, "the test says so")

    config = replace(CONFIG, plugins=("builtin",), timing_cache=tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.setattr(SiblingMerger, "_verdict", kept)
        engine = tactician.build(model(THREE), config)
    LockFile.of(engine.report.decisions, engine.plan.plugins, target="cpu").save(tmp_path / "lock.json")
    again = tactician.build(model(THREE), replace(config, lock_file=tmp_path / "lock.json", locked=True))
    assert again.plan == engine.plan
