"""Views: reshapes that cost nothing, memory that is not reused under them, and when a node stays a node."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tactician
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from tactician.config import BuilderConfig
from tactician.plan import Place

Run = Callable[..., tuple[int, str, str]]
PLAIN = BuilderConfig(
    target="cpu", plugins=("builtin",), use_timing_cache=False, isolate=False, avg_timing_iterations=1,
    without=("fuse",),
)  # fmt: skip


def model(nodes: str, inputs: str = "float[2, 3, 4] x", outputs: str = "float[6, 4] y") -> onnx.ModelProto:
    text = f'<ir_version: 9, opset_import: ["" : 21]> g ({inputs}) => ({outputs}) <int64[2] s = {{6, 4}}> {{ {nodes} }}'
    return onnx.parser.parse_model(text)


def build(proto: onnx.ModelProto, **options: Any) -> tactician.Engine:
    return tactician.build(proto, replace(PLAIN, **options))


def steps(engine: tactician.Engine) -> list[str]:
    return [step.node for step in engine.plan.steps]


CHAIN = "[a] a = Neg (x) [v] v = Reshape (a, s) [b] y = Exp (v)"


def test_a_reshape_between_nodes_is_no_step() -> None:
    engine = build(model(CHAIN))
    assert steps(engine) == ["a", "b"]
    assert engine.report.views == ("v",)
    first, last = engine.plan.steps
    made, read = (engine.plan.tensors[i] for i in (first.outputs[0], last.inputs[0]))
    assert (made.offset, made.shape) == (read.offset, (2, 3, 4))
    assert (read.shape, read.place) == ((6, 4), Place.ARENA)
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    assert np.allclose(tactician.Session(engine).run({"x": x})["y"], np.exp(-x).reshape(6, 4))


@pytest.mark.parametrize(
    ("nodes", "kept"),
    [
        ("[v] v = Reshape (x, s) [b] y = Exp (v)", "v"),  # of an input
        ("[a] a = Neg (x) [v] y = Reshape (a, s)", "v"),  # an output
        (
            "[a] a = Neg (x) [v] v = Transpose <perm = [1, 0, 2]> (a) [w] w = Reshape (v, s) [b] y = Exp (w)",
            "v",
        ),
    ],
)
def test_some_stay_nodes(nodes: str, kept: str) -> None:
    engine = build(model(nodes))
    assert kept in steps(engine)
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    (wanted,) = ReferenceEvaluator(model(nodes)).run(None, {"x": x})
    assert np.allclose(tactician.Session(engine).run({"x": x})["y"], wanted)


def test_a_transpose_that_moves_nothing_is_a_view() -> None:
    nodes = "[a] a = Neg (x) [t] t = Transpose <perm = [0, 2, 1, 3]> (a) [f] f = Flatten <axis = 2> (t) [b] y = Exp (f)"
    proto = model(nodes, "float[2, 1, 3, 4] x")
    engine = build(proto)
    assert steps(engine) == ["a", "b"]
    assert engine.report.views == ("f", "t")
    x = np.random.default_rng(0).standard_normal((2, 1, 3, 4)).astype(np.float32)
    assert np.allclose(tactician.Session(engine).run({"x": x})["y"], np.exp(-x).reshape(6, 4))


def test_they_can_be_left_out_or_named() -> None:
    assert steps(build(model(CHAIN), without=("fuse", "views"))) == ["a", "v", "b"]
    engine = build(model(CHAIN), tactic_rules=(("v", "*"),))
    assert steps(engine) == ["a", "v", "b"]
    assert engine.report.views == ()


def test_explain_tells_of_them(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "engine.tactician"
    build(model(CHAIN)).save(path)
    status, output, _ = run("explain", str(path), "v")
    assert status == 0
    assert "v   a view: its result lies where its input does, and nothing runs" in output


@st.composite
def networks(draw: st.DrawFn) -> onnx.ModelProto:
    """Draw a graph of elementwise nodes and reshapes in which values are read late, early, and more than once."""
    values = ["x"]
    nodes = []
    shapes = {"flat": [24], "rows": [6, 4], "deep": [2, 3, 4]}
    for number in range(draw(st.integers(3, 12))):
        source, name = draw(st.sampled_from(values)), f"v{number}"
        if draw(st.booleans()):
            nodes.append(
                helper.make_node("Reshape", [source, draw(st.sampled_from(list(shapes)))], [name], name)
            )
        else:
            nodes.append(helper.make_node(draw(st.sampled_from(["Neg", "Tanh"])), [source], [name], name))
        values.append(name)
    chosen = draw(st.lists(st.sampled_from(values[1:]), min_size=1, max_size=3, unique=True))
    flat = [helper.make_node("Reshape", [v, "flat"], [f"f{v}"], f"f{v}") for v in chosen]
    total = helper.make_node("Sum", [f"f{v}" for v in chosen], ["y"], "y")
    info = [
        helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s)
        for n, s in (("x", [2, 3, 4]), ("y", [24]))
    ]
    constants = [numpy_helper.from_array(np.array(s), n) for n, s in shapes.items()]
    graph = helper.make_graph([*nodes, *flat, total], "g", info[:1], info[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=9)


@given(networks())
@settings(max_examples=25, deadline=None)
def test_memory_under_a_view_is_not_reused(proto: onnx.ModelProto) -> None:
    x = np.random.default_rng(1).standard_normal((2, 3, 4)).astype(np.float32)
    (wanted,) = ReferenceEvaluator(proto).run(None, {"x": x})
    engine = build(proto)
    assert np.allclose(tactician.Session(engine).run({"x": x})["y"], wanted, rtol=1e-5, atol=1e-6)
    for report in engine.plan.memory:
        assert report.lower_bound <= report.peak <= report.naive
