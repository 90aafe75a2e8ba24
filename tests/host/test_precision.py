"""Precision: networks that compute in 16 bits between inputs and outputs of float32, and what is kept out of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import tactician
from digits import MODEL, SHAPES, right
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from tactician import passes
from tactician.config import BuilderConfig
from tactician.errors import ConfigError
from tactician.importer import import_model
from tactician.passes.convert_precision import ConvertPrecision
from tactician.precision_race import _Contender, _decide

Run = Callable[..., tuple[int, str, str]]
NARROW = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
TOLERANCE = {"fp16": 5e-3, "bf16": 4e-2}
X = {"x": np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)}


def model(
    nodes: str, inputs: str = "float[4, 8] x", outputs: str = "float[4, 8] y", **constants: Any
) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 20]> g ({inputs}) => ({outputs}) {{ {nodes} }}'
    )
    rng = np.random.default_rng(1)
    arrays = {
        "w": rng.standard_normal((8, 8)).astype(np.float32) / 3,
        "b": rng.standard_normal(8).astype(np.float32),
    }
    arrays |= {"two": np.float32(2), "last": np.array([-1]), "ids": np.array([0, 2, 1, 3])} | constants
    read = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(a), n) for n, a in arrays.items() if n in read
    )
    return proto


def convert(proto: onnx.ModelProto, precision: str = "fp16", *rules: tuple[str, str]) -> ir.Model:
    network = import_model(proto)
    ConvertPrecision(precision, rules)(network)
    onnx.checker.check_model(ir.serde.serialize_model(network), full_check=True)
    return network


def types(network: ir.Model) -> dict[str, str]:
    """Return the element type of what each node that is no cast computes."""
    return {
        n.name or "": n.outputs[0].dtype.name
        for n in network.graph
        if n.op_type != "Cast" and n.outputs[0].dtype
    }


def compare(
    proto: onnx.ModelProto, network: ir.Model, precision: str = "fp16", feeds: dict[str, Any] | None = None
) -> None:
    feeds = feeds or X
    for got, wanted in zip(
        ReferenceEvaluator(ir.serde.serialize_model(network)).run(None, feeds),
        ReferenceEvaluator(proto).run(None, feeds),
        strict=True,
    ):
        got, wanted = (
            np.asarray(got),
            np.asarray(wanted),
        )  # the reference gives what an optional holds as a list
        assert got.dtype == wanted.dtype
        assert np.linalg.norm(got.astype(float) - wanted) <= TOLERANCE[precision] * np.linalg.norm(wanted)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_all_between_inputs_and_outputs(precision: str) -> None:
    proto = model("[m] m = MatMul (x, w) [a] a = Add (m, b) [t] t = Tanh (a) [s] y = Softmax (t)")
    network = convert(proto, precision)
    assert set(types(network).values()) == {NARROW[precision].name}
    assert [v.dtype for v in (*network.graph.inputs, *network.graph.outputs)] == [ir.DataType.FLOAT] * 2
    assert [v.name for v in network.graph.outputs] == ["y"]
    assert sum(n.op_type == "Cast" for n in network.graph) == 2
    compare(proto, network, precision)


def test_what_is_sensitive_and_what_comes_of_it() -> None:
    """The mean of squares stays in float32 until it scales the 16-bit value again."""
    proto = model(
        "[p] p = Pow (x, two) [r] r = ReduceMean (p, last) [q] q = Sqrt (r) [d] d = Div (x, q) [m] y = MatMul (d, w)"
    )
    network = convert(proto)
    assert types(network) == {"p": "FLOAT", "r": "FLOAT", "q": "FLOAT", "d": "FLOAT16", "m": "FLOAT16"}
    compare(proto, network)


def test_a_product_of_what_stayed_is_converted() -> None:
    network = convert(model("[e] e = Exp (x) [m] y = MatMul (e, w)"))
    assert types(network) == {"e": "FLOAT", "m": "FLOAT16"}


def test_rules_come_first() -> None:
    proto = model("[m1] m = MatMul (x, w) [e] e = Exp (m) [m2] y = MatMul (e, w)")
    assert types(convert(proto, "fp16", ("m*", "fp32"))) == {"m1": "FLOAT", "e": "FLOAT", "m2": "FLOAT"}
    assert types(convert(proto, "fp16", ("m*", "fp32"), ("m1", "fp16"), ("e", "fp16"))) == {
        "m1": "FLOAT16", "e": "FLOAT16", "m2": "FLOAT",
    }  # fmt: skip


def test_constants_that_are_too_large() -> None:
    least = np.float32(np.finfo(np.float32).min)
    proto = model(
        "[a] a = Mul (x, big) [m] m = Add (x, mask) [s] s = Softmax (m) [y] y = Add (a, s)",
        big=np.float32(1e6), mask=np.array([0, least, 0, -np.inf, 0, 0, 0, 0], np.float32),
    )  # fmt: skip
    network = convert(proto)
    assert types(network)["a"] == "FLOAT"
    assert types(network)["m"] == "FLOAT16"
    (mask,) = (
        v.const_value.numpy()
        for n, v in network.graph.initializers.items()
        if n.startswith("mask_") and v.const_value
    )
    assert mask.tolist() == [0, -65504, 0, -np.inf, 0, 0, 0, 0]
    assert types(convert(proto, "bf16"))["a"] == "BFLOAT16"


def test_casts() -> None:
    """A cast from integers gives 16 bits at once; one from 16 bits to float32 is somebody's wish."""
    nodes = "[c] c = Cast <to = 1> (i) [a] a = Add (c, x) [h] h = Cast <to = 10> (a) [f] f = Cast <to = 1> (h) [n] y = Neg (f)"
    proto = model(nodes, "float[4, 8] x, int64[4, 8] i")
    network = convert(proto)
    kinds = {n.name: n.outputs[0].dtype.name for n in network.graph if n.outputs[0].dtype}
    assert kinds["c"] == "FLOAT16"
    assert (kinds["f"], kinds["n"]) == ("FLOAT", "FLOAT")
    compare(proto, network, feeds=X | {"i": np.arange(32).reshape(4, 8)})


def test_what_a_branch_reads_stays() -> None:
    proto = model(
        "[m] m = MatMul (x, w) [i] y = If (k) <then_branch = t () => (float[4, 8] o) { o = Neg (m) }, "
        "else_branch = e () => (float[4, 8] o) { o = Abs (m) }>",
        "float[4, 8] x, bool k",
    )
    network = convert(proto)
    assert types(network)["m"] == "FLOAT"
    compare(proto, network, feeds=X | {"k": np.array(True)})


@pytest.mark.parametrize(
    "nodes",
    [
        "[n] a = Neg (x) [s] s = SequenceConstruct (a, x) [i] i = Constant <value_int = 0> () [y] y = SequenceAt (s, i)",
        "[n] a = Neg (x) [o] o = Optional (a) [y] y = OptionalGetElement (o)",
    ],
)
def test_sequences_and_optionals_hold_float32(nodes: str) -> None:
    proto = model(nodes)
    network = convert(proto)
    assert types(network)["n"] == "FLOAT16"
    compare(proto, network)


def test_operators_without_such_a_form_stay() -> None:
    proto = model(
        "[c] y = Conv (x, k)",
        "float[1, 1, 6, 6] x",
        "float[1, 1, 4, 4] y",
        k=np.ones((1, 1, 3, 3), np.float32),
    )
    assert types(convert(proto, "fp16")) == {"c": "FLOAT16"}
    assert types(convert(proto, "bf16")) == {"c": "FLOAT"}  # of opset 22 on


def test_outputs_that_are_read_and_inputs_that_are_outputs() -> None:
    proto = model(
        "[m] y = MatMul (x, w) [n] z = Neg (y) [i] o = Identity (x)",
        outputs="float[4, 8] y, float[4, 8] z, float[4, 8] o",
    )
    network = convert(proto)
    assert [(v.name, v.dtype) for v in network.graph.outputs] == [(n, ir.DataType.FLOAT) for n in "yzo"]
    compare(proto, network)


@st.composite
def graphs(draw: st.DrawFn) -> tuple[onnx.ModelProto, list[tuple[str, str]]]:
    """Draw a network, and nodes that are to stay or to be converted all the same."""
    values, nodes = ["x"], []
    for number in range(draw(st.integers(2, 8))):
        a, b = (draw(st.sampled_from(values)) for _ in range(2))
        texts = (
            "MatMul ({a}, w)", "Add ({a}, {b})", "Tanh ({a})", "Mul ({a}, b)", "Softmax ({a})", "Gather <axis = 0> ({a}, ids)",
            "Exp ({a})",
        )  # fmt: skip
        kind = draw(st.sampled_from(texts)).format(a=a, b=b)
        # what grows is kept small: this is of types, not of overflow
        nodes.append(f"[n{number}] r{number} = {kind} [t{number}] v{number} = Tanh (r{number})")
        values.append(f"v{number}")
    outputs = sorted({values[-1], draw(st.sampled_from(values[1:]))})
    rules = draw(
        st.lists(
            st.tuples(st.sampled_from([f"n{i}" for i in range(8)]), st.sampled_from(["fp32", "fp16"])),
            max_size=3,
        )
    )
    return model(" ".join(nodes), outputs=", ".join(f"float[4, 8] {v}" for v in outputs)), rules


@given(graphs())
@settings(max_examples=40, deadline=None)
def test_any_network(drawn: tuple[onnx.ModelProto, list[tuple[str, str]]]) -> None:
    proto, rules = drawn
    network = convert(proto, "fp16", *rules)
    compare(proto, network)
    kinds = types(network)
    for name, precision in dict(rules).items():
        if precision == "fp32" and name in kinds:
            assert kinds[name] == "FLOAT"


def test_a_build(run: Run, tmp_path: Path) -> None:
    proto = model("[m] m = MatMul (x, w) [t] t = Tanh (m) [n] y = MatMul (t, w)")
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    status, output, _ = run(
        "build", tmp_path / "m.onnx", "--target", "cpu", "--plugin", "builtin", "--no-timing-cache",
        "--precision", "fp16", "--node-precision", "n=fp32", "--without", "fuse",
    )  # fmt: skip
    assert status == 0, output
    engine = tactician.Engine.load(tmp_path / "m.tactician")
    kinds = {s.node: engine.plan.tensors[s.outputs[0]].dtype for s in engine.plan.steps}
    assert (kinds["m"], kinds["t"], kinds["n"]) == ("float16", "float16", "float32")
    got = tactician.Session(engine).run(X)["y"]
    (wanted,) = ReferenceEvaluator(proto).run(None, X)
    assert got.dtype == np.float32
    assert np.linalg.norm(got - wanted) <= 5e-3 * np.linalg.norm(wanted)


def test_unknown_names() -> None:
    with pytest.raises(ConfigError, match="precision 'fp8' is none of fp32, tf32, fp16, bf16"):
        BuilderConfig(precision="fp8")  # type: ignore[arg-type]  # that is what is tried
    assert BuilderConfig(precision="tf32").tf32


def test_names_that_the_model_has_already() -> None:
    """Constants and values that are called as the pass would call its own."""
    proto = model(
        "[w_float16] x_float16 = MatMul (x, w) [m] m = Add (x_float16, w_float16) [y] y = Tanh (m)",
        w_float16=np.full(8, 0.25, np.float32),
    )
    network = import_model(proto)
    passes.run(network, passes.pipeline(BuilderConfig(precision="fp16")))
    names = [v.name for n in network.graph for v in n.outputs] + list(network.graph.initializers)
    assert len(names) == len(set(names))
    assert set(types(network).values()) == {"FLOAT16"}
    compare(proto, network)


def config_for_race(**options: Any) -> BuilderConfig:
    return BuilderConfig(
        target="cpu", use_timing_cache=False, precision="best", plugins=("builtin",), **options
    )


PRODUCT = "c = MatMul (x, w) d = Add (c, b) y = Tanh (d)"


def test_the_fastest_that_is_close_enough_wins() -> None:
    engine = tactician.build(model(PRODUCT), config_for_race(precision_tolerance=1.0))
    trials = {trial.precision: trial for trial in engine.report.precisions}
    assert list(trials) == ["fp32", "tf32", "fp16", "bf16"]
    (kept,) = (t for t in trials.values() if t.kept)
    timed = [t for t in trials.values() if t.seconds is not None]
    assert kept.seconds == min(t.seconds for t in timed if t.seconds is not None)
    assert trials["fp32"].error == 0.0
    assert trials["tf32"].reason == "is the same as fp32"  # nothing on the CPU rounds to it
    narrow = [t for t in (trials["fp16"], trials["bf16"]) if t.error is not None]
    assert all(0 < t.error < 0.05 for t in narrow if t.error is not None)
    (got,) = tactician.Session(engine).run(X).values()
    (wanted,) = ReferenceEvaluator(model(PRODUCT)).run(None, X)
    assert np.linalg.norm(got - wanted) <= 0.05 * np.linalg.norm(wanted)


def test_what_is_not_close_enough_is_out_however_fast() -> None:
    engine = tactician.build(model(PRODUCT), config_for_race(precision_tolerance=1e-6))
    trials = {trial.precision: trial for trial in engine.report.precisions}
    # a kernel may widen 16 bits on the way, and be as good
    far = [t for t in trials.values() if t.error is not None and t.error > 1e-6]
    assert all("is over 1.0e-06" in t.reason and not t.kept for t in far)
    (kept,) = (t for t in trials.values() if t.kept)
    assert kept.error is not None
    assert kept.error <= 1e-6


def test_a_race_is_decided_by_error_first_then_by_time() -> None:
    engine = tactician.build(model(PRODUCT), BuilderConfig(target="cpu", use_timing_cache=False))
    made = [
        _Contender("fp32", engine, seconds=3.0, error=0.0),
        _Contender("fp16", engine, seconds=1.0, error=1e-2),
        _Contender("bf16", engine, seconds=2.0, error=1e-3),
        _Contender("tf32", None, "no tactic"),
    ]
    trials = {t.precision: t for t in _decide(made, 5e-3).report.precisions}
    assert [p for p, t in trials.items() if t.kept] == ["bf16"]
    assert trials["fp16"].reason == "its error 1.0e-02 is over 5.0e-03"
    assert [trials[p].reason for p in ("fp32", "tf32")] == ["slower", "no tactic"]


def test_the_engine_file_keeps_the_race(tmp_path: Path) -> None:
    engine = tactician.build(model(PRODUCT), config_for_race())
    engine.save(tmp_path / "e.tactician")
    assert tactician.Engine.load(tmp_path / "e.tactician").report.precisions == engine.report.precisions


def test_a_race_needs_shapes() -> None:
    proto = model(PRODUCT, "float[N, 8] x", "float[N, 8] y")
    with pytest.raises(
        ConfigError, match="the shape of input 'x' is not known, .*; bind it with --shapes x:DIMS"
    ):
        tactician.build(proto, config_for_race())
    bound = tactician.build(proto, config_for_race(shapes={"x": (2, 8)}))
    assert len(bound.report.precisions) == 4


def test_a_tolerance_is_a_number(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="precision_tolerance is -1.0; it is a relative error"):
        BuilderConfig(precision_tolerance=-1.0)


def test_the_race_on_the_command_line(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(model(PRODUCT), path)
    code, out, err = run(
        "build",
        path,
        "--target",
        "cpu",
        "--precision",
        "best",
        "--precision-tolerance",
        "0.5",
        "--plugin",
        "builtin",
    )
    assert code == 0, err
    assert "races    fp32: " in out
    assert "races    bf16: " in out


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_trained_network_keeps_its_accuracy(precision: Any) -> None:
    counts = {}
    for choice in (None, precision):
        config = BuilderConfig(
            target="cpu", use_timing_cache=False, max_candidates=1, shapes=SHAPES, precision=choice
        )
        counts[choice] = right(tactician.build(MODEL, config))
    assert counts[None] > 440
    assert abs(counts[precision] - counts[None]) <= 1
