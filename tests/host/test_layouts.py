"""Layouts: networks that mean the same with the channels innermost, and where times say that they should be so."""

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
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from tactician.builtin_kernels.nhwc import CONV, ops
from tactician.config import BuilderConfig
from tactician.importer import import_model
from tactician.layouts.planner import LayoutPlanner
from tactician.layouts.rewrite import convert
from tactician.layouts.standard import standard
from tactician.layouts.twins import Twins, follows
from tactician.network import signature_of, signatures
from tactician.signature import OpSignature
from tactician.tactics.fused_form import FusedForm
from tactician.tactics.lock import LockedNode, LockFile
from tactician.tactics.measure import Measured
from tactician.tactics.record import CandidateRecord, Outcome, Timing

TWINS = Twins.of({op.name: op for op in ops()})
Times = Callable[[OpSignature], float]


def model(
    nodes: str, outputs: str = "float[2, 4, 6, 6] y", inputs: str = "float[2, 4, 6, 6] x"
) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 20]> g ({inputs}) => ({outputs}) {{ {nodes} }}'
    )
    rng = np.random.default_rng(0)
    shapes = {
        "w": (4, 4, 1, 1), "w3": (4, 4, 3, 3), "wd": (4, 1, 3, 3), "v": (4, 4, 1, 1), "b": (4,),
        "c": (4, 1, 1), "c4": (1, 4, 1, 1), "s": (), "slope": (4, 1, 1),
    }  # fmt: skip
    proto.graph.initializer.append(numpy_helper.from_array(np.array([-1, 2]), "pixels"))
    proto.graph.initializer.append(numpy_helper.from_array(np.array([1]), "channel"))
    read = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(
        numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        for name, shape in shapes.items()
        if name in read
    )
    return proto


def network(proto: onnx.ModelProto) -> ir.Model:
    return import_model(proto, None, {op.name: op for op in ops()})


def anchors(model: ir.Model) -> list[ir.Node]:
    return [n for n in model.graph if TWINS.signature(n, model) is not None]


def labels(model: ir.Model, chosen: list[ir.Node]) -> set[ir.Node]:
    """Return the chosen anchors, and what follows them."""
    found = set(chosen)
    for node in model.graph:
        if node.op_type != "Conv" and follows(node) and any(v and v.producer() in found for v in node.inputs):
            found.add(node)
    return found


def run(model: ir.Model, feeds: dict[str, Any]) -> list[Any]:
    proto = ir.serde.serialize_model(standard(model, TWINS))
    onnx.checker.check_model(proto, full_check=True)
    return list(ReferenceEvaluator(proto).run(None, feeds))


X = {"x": np.random.default_rng(3).standard_normal((2, 4, 6, 6)).astype(np.float32)}
NETWORKS = {
    "residual": (
        "[a] a = Conv (x, w, b) [r] r = Relu (a) [d] d = Conv <pads = [1, 1, 1, 1]> (r, w3) [e] e = Add (d, a) [f] y = Relu (e)",
        2,
    ),
    "depthwise": (
        "[a] a = Conv (x, w) [p] p = PRelu (a, slope) [d] d = Conv <group = 4, pads = [1, 1, 1, 1]> (p, wd, b) "
        "[e] y = Add (d, x)",
        2,
    ),
    "squeeze and excite": (
        "[a] a = Conv (x, w) [g] g = GlobalAveragePool (a) [s1] h = Conv (g, v, b) [t] t = Sigmoid (h) [m] m = Mul (a, t) "
        "[k] y = Mul (m, c4)",
        2,
    ),
    "concatenated": (
        "[a] a = Conv (x, w) [d] d = Conv (x, v) [j] j = Concat <axis = 1> (a, d) [z] z = Neg (j) "
        "[q] y = ReduceMax <keepdims = 0> (z)",
        2,
    ),
    "mean of all pixels": (
        "[a] a = Conv (x, w) [g] g = ReduceMean <keepdims = 0> (a, pixels) [q] y = Relu (g)", 1,
    ),
    "largest channel, and sums of pixels": (
        "[a] a = Conv (x, w) [g] g = ReduceMax <keepdims = 1> (a, channel) [q] q = Mul (a, g) [p] y = ReduceSum (q, pixels)",
        2,
    ),
    "constants of all ranks": ("[a] a = Conv (x, w) [m] m = Mul (c, a) [n] n = Add (m, s) [k] y = Div (n, c4)", 2),
    "read in between": (
        "[a] a = Conv (x, w) [r] r = Relu (a) [p] p = MaxPool <kernel_shape = [1, 1]> (r) [d] d = Conv (p, v) [e] y = Add (d, r)",
        None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(NETWORKS))
def test_a_converted_network_means_the_same(name: str) -> None:
    nodes, transposes = NETWORKS[name]
    shape = {
        "concatenated": "[]",
        "mean of all pixels": "[2, 4]",
        "largest channel, and sums of pixels": "[2, 4, 1, 1]",
    }
    proto = model(nodes, f"float{shape.get(name, '[2, 4, 6, 6]')} y")
    plain = network(proto)
    wanted = ReferenceEvaluator(proto).run(None, X)
    twins = {n.name: TWINS.signature(n, plain) for n in anchors(plain)}
    convert(plain, TWINS, labels(plain, anchors(plain)))
    assert not any(n.op_type == "Conv" and not n.domain for n in plain.graph)
    if transposes is not None:
        assert sum(n.op_type == "Transpose" for n in plain.graph) == transposes
    for got, expected in zip(run(plain, X), wanted, strict=True):
        assert np.allclose(got, expected, rtol=1e-4, atol=1e-5)
    # what was measured is what runs
    for node in plain.graph:
        if node.domain:
            assert signature_of(node, plain).key == twins[node.name].key  # type: ignore[union-attr]  # anchors have one


def test_an_output_in_the_middle_keeps_its_layout() -> None:
    proto = model(
        "[a] a = Conv (x, w) [r] r = Relu (a) [d] y = Conv (r, v)", "float[2, 4, 6, 6] y, float[2, 4, 6, 6] r"
    )
    plain = network(proto)
    convert(plain, TWINS, labels(plain, anchors(plain)))
    assert [o.name for o in plain.graph.outputs] == ["y", "r"]
    for got, expected in zip(run(plain, X), ReferenceEvaluator(proto).run(None, X), strict=True):
        assert np.allclose(got, expected, rtol=1e-4, atol=1e-5)


@st.composite
def graphs(draw: st.DrawFn) -> tuple[onnx.ModelProto, list[bool]]:
    """Draw a network of convolutions and elementwise nodes, and which convolutions are converted."""
    values = ["x"]
    nodes: list[str] = []
    for number in range(draw(st.integers(2, 9))):
        a, b = (draw(st.sampled_from(values)) for _ in range(2))
        nodes.append(
            draw(
                st.sampled_from(
                    [
                        f"[n{number}] v{number} = Conv ({a}, w, b)",
                        f"[n{number}] v{number} = Conv <pads = [1, 1, 1, 1]> ({a}, w3)",
                        f"[n{number}] v{number} = Relu ({a})",
                        f"[n{number}] v{number} = Add ({a}, {b})",
                        f"[n{number}] v{number} = Mul ({a}, c)",
                        f"[n{number}] v{number} = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> ({a})",
                    ]
                )
            )
        )
        values.append(f"v{number}")
    outputs = sorted({values[-1], draw(st.sampled_from(values[1:]))})
    proto = model(" ".join(nodes), ", ".join(f"float[2, 4, 6, 6] {v}" for v in outputs))
    return proto, draw(st.lists(st.booleans(), min_size=9, max_size=9))


@given(graphs())
@settings(max_examples=40, deadline=None)
def test_any_choice_of_layouts_means_the_same(drawn: tuple[onnx.ModelProto, list[bool]]) -> None:
    proto, choice = drawn
    plain = network(proto)
    chosen = [n for n, is_last in zip(anchors(plain), choice, strict=False) if is_last]
    wanted = ReferenceEvaluator(proto).run(None, X)
    convert(plain, TWINS, labels(plain, chosen))
    for got, expected in zip(run(plain, X), wanted, strict=True):
        assert np.allclose(got, expected, rtol=1e-3, atol=1e-4)


def planned(
    nodes: str, times: Times, lock: LockFile | None = None, elsewhere: str = ""
) -> tuple[int, ir.Model]:
    """Let a planner lay out a network whose calls take ``times``; return how many anchors moved, and the network."""
    offered = registry(make_tactic("Kernel", op=CONV, target="fake"))
    plain = network(model(nodes))
    planner = LayoutPlanner(plain, TWINS, offered, FakeDevice(), lock)
    measured = {}
    for call in planner.candidates().values():
        device = FakeDevice()
        if elsewhere and call.op == elsewhere:
            device.target = "other"
        seconds = times(call)
        record = CandidateRecord(
            "acme.it()", "acme", Outcome.UNMEASURED, timing=Timing(seconds, seconds, seconds, 5)
        )
        measured[call.key] = (device, Measured(call, (record,), {}))
    return planner.settle(measured), plain


def cost(last: float, transpose: float = 1e-6) -> Times:
    """Return times at which a convolution takes 10 µs, and ``last`` with the channels innermost."""
    return lambda call: {"ai.onnx::Transpose": transpose, CONV: last}.get(call.op, 10e-6)


TWO = "[a] a = Conv (x, w) [r] r = Relu (a) [d] y = Conv (r, v)"


@pytest.mark.parametrize(
    ("last", "transpose", "moved"),
    [(5e-6, 1e-6, 2), (5e-6, 4e-6, 2), (5e-6, 6e-6, 0), (9.95e-6, 0.0, 0), (12e-6, 0.0, 0)],
)
def test_times_decide(last: float, transpose: float, moved: int) -> None:
    count, plain = planned(TWO, cost(last, transpose))
    assert count == moved
    assert sum(n.op_type == "Transpose" for n in plain.graph) == (2 if moved else 0)


def test_one_may_stay_where_it_is_faster() -> None:
    def times(call: OpSignature) -> float:
        return 50e-6 if call.op == CONV and call.inputs[1].dims[1] == 3 else cost(2e-6)(call)  # type: ignore[union-attr]  # filters are there

    count, plain = planned(
        "[a] a = Conv <pads = [1, 1, 1, 1]> (x, w3) [r] r = Relu (a) [d] y = Conv (r, v)", times
    )
    assert count == 1
    assert [(n.op_type, n.domain) for n in plain.graph if n.op_type == "Conv"] == [
        ("Conv", ""),
        ("Conv", "tactician.nhwc"),
    ]


def test_what_runs_elsewhere_is_not_moved() -> None:
    assert planned(TWO, cost(1e-6), elsewhere=CONV)[0] == 0
    assert planned(TWO, cost(1e-6), elsewhere="ai.onnx::Transpose")[0] == 0


def test_the_lock_file_decides_alone() -> None:
    plain = network(model(TWO))
    twin = TWINS.signature(plain.graph[0], plain)
    assert twin is not None
    entry = LockedNode("acme.it()", 1, "acme", str(twin), twin.key)
    lock = LockFile(1, {"a": entry}, {})
    offered = registry(make_tactic("Kernel", op=CONV, target="fake"))
    planner = LayoutPlanner(plain, TWINS, offered, FakeDevice(), lock)
    assert planner.candidates() == {}
    assert planner.settle({}) == 1
    assert [n.domain for n in plain.graph if n.op_type == "Conv"] == ["tactician.nhwc", ""]


@pytest.mark.parametrize(("op", "moved"), [(CONV, 2), ("ai.onnx::Conv", 0)])
def test_the_lock_file_decides_for_what_is_fused(op: str, moved: int) -> None:
    """A fused node has the anchor's name among its operators alone: its tactic says which layout that had."""
    form = FusedForm(op, epilogue=("ai.onnx::Relu",))
    kernels = [
        make_tactic("Kernel", op=CONV, target="fake"),
        make_tactic("Fused", op=op, fused_forms=(form,)),
    ]
    entry = LockedNode("acme.fused()", 1, "acme", "Conv+Relu(…", "00", operators=("a", "r"))
    other = LockedNode("acme.fused()", 1, "acme", "Conv+Relu(…", "00", operators=("d", "e"))
    gone = LockedNode("acme.gone()", 1, "acme", "Conv+Relu(…", "00", operators=("f", "g"))
    lock = LockFile(1, {"a+r": entry, "d+e": other, "f+g": gone}, {})
    nodes = "[a] a = Conv (x, w) [r] r = Relu (a) [d] d = Conv (r, v) [e] e = Relu (d) [f] f = Conv (e, w) [g] y = Relu (f)"
    plain = network(model(nodes))
    planner = LayoutPlanner(plain, TWINS, registry(*kernels), FakeDevice(), lock)
    assert planner.settle({}) == moved


def test_filters_that_are_computed_keep_their_layout() -> None:
    plain = network(model("[a] y = Conv (x, f)", inputs="float[2, 4, 6, 6] x, float[4, 4, 1, 1] f"))
    assert anchors(plain) == []


PLUGIN = '''
"""Convolutions with the channels innermost, of one pixel, by a product."""
from dataclasses import dataclass

import numpy as np
from tactician import Tactic, hookimpl

TACTICIAN_API = (1, 4)


@dataclass(frozen=True)
class Pointwise(Tactic):
    op = "tactician.nhwc::Conv"
    target = "cpu"

    def prepare(self, signature, device):
        def launch(inputs, outputs, workspace, stream):
            x, w, *b = inputs
            np.matmul(x, w[:, 0, 0].T, out=outputs[0])
            if b:
                outputs[0][...] += b[0]

        return launch


@hookimpl
def tactics():
    return [Pointwise]
'''


def test_a_whole_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pointwise.py"
    path.write_text(PLUGIN)
    monkeypatch.setattr(LayoutPlanner, "_best", lambda self, measured: frozenset(self._moved))
    config = BuilderConfig(
        target="cpu",
        plugins=("builtin", str(path)),
        timing_cache=tmp_path / "cache",
        isolate=False,
        dump_stages=tmp_path / "stages",
    )
    proto = model("[a] a = Conv (x, w, b) [r] r = Relu (a) [d] d = Conv (r, v) [e] y = Exp (d)")
    engine = tactician.build(proto, config)
    tactics = [step.tactic for step in engine.plan.steps]
    assert tactics.count("pointwise.pointwise()") == 2
    (stage,) = (s for s in engine.report.stages if s.name == "layouts")
    assert stage.matches == 2
    (wanted,) = ReferenceEvaluator(proto).run(None, X)
    assert np.allclose(
        tactician.Session(engine, plugins=[str(path)]).run(X)["y"], wanted, rtol=1e-4, atol=1e-5
    )
    for written in sorted((tmp_path / "stages").glob("*.onnx")):
        dumped = onnx.load(written)
        onnx.checker.check_model(dumped)
        assert np.allclose(ReferenceEvaluator(dumped).run(None, X)[0], wanted, rtol=1e-4, atol=1e-5)
    plain = tactician.build(proto, replace(config, without=("layouts",), dump_stages=None))
    assert not any("pointwise" in step.tactic for step in plain.plan.steps)


def test_nothing_is_measured_where_no_kernel_wants_it(tmp_path: Path) -> None:
    proto = model(TWO)
    config = BuilderConfig(target="cpu", plugins=("builtin",), timing_cache=tmp_path / "cache", isolate=False)
    engine = tactician.build(proto, config)
    assert {s.op for s in engine.plan.steps} & {CONV} == set()
    assert [s.matches for s in engine.report.stages if s.name == "layouts"] == [0]
    assert len(signatures(network(proto))) == 3


def test_names_that_the_model_has_already(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pointwise.py"
    path.write_text(PLUGIN)
    monkeypatch.setattr(LayoutPlanner, "_best", lambda self, measured: frozenset(self._moved))
    proto = model(
        "[x_channels_last] a_channels_last = Relu (x) [a] a = Conv (a_channels_last, w, b) [r] a_channels_first = Relu (a) "
        "[p] p = MaxPool <kernel_shape = [1, 1]> (a_channels_first) [e] y = Exp (p)"
    )
    config = BuilderConfig(
        target="cpu", plugins=("builtin", str(path)), timing_cache=tmp_path / "cache", isolate=False
    )
    engine = tactician.build(proto, config)
    assert any("pointwise" in step.tactic for step in engine.plan.steps)
    (wanted,) = ReferenceEvaluator(proto).run(None, X)
    assert np.allclose(
        tactician.Session(engine, plugins=[str(path)]).run(X)["y"], wanted, rtol=1e-4, atol=1e-5
    )
