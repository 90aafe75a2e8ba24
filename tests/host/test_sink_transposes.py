"""Transposes behind rows: rotated heads in each spelling mean the same, and what can't be moved stays."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from tactician import passes
from tactician.config import BuilderConfig
from tactician.importer import import_model
from tactician.passes.sink_transposes import SinkTransposes
from tactician.recognition.recognise import RECOGNISERS, recognise

B, S, H, D = 2, 5, 3, 8
X = {"x": np.random.default_rng(0).standard_normal((B, S, H, D)).astype(np.float32)}
MADE = f"float[{B}, {H}, {S}, {D}] y"


def model(nodes: str, outputs: str = MADE, inputs: str = f"float[{B}, {S}, {H}, {D}] x") -> onnx.ModelProto:
    proto = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 20]> g ({inputs}) => ({outputs}) {{ {nodes} }}'
    )
    rng = np.random.default_rng(1)
    constants: dict[str, Any] = {
        "cos": rng.standard_normal((S, D)), "sin": rng.standard_normal((1, 1, S, D)), "row": rng.standard_normal(D),
        "head": rng.standard_normal((H, 1, 1)), "half": np.float64(0.5), "whole": rng.standard_normal((B, H, S, D)),
    }  # fmt: skip
    constants = {name: np.asarray(a, np.float32) for name, a in constants.items()}
    constants |= {
        "zero": np.array([0]),
        "middle": np.array([D // 2]),
        "end": np.array([2**62]),
        "last": np.array([3]),
        "rows": np.array([2]),
    }
    read = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in constants.items() if n in read)
    return proto


ROTARY = {
    "Split": "[c] l, h = Split <axis = 3, num_outputs = 2> (t) [n] n = Neg (h) [j] j = Concat <axis = -1> (n, l)",
    "Slice": "[a] l = Slice (t, zero, middle, last) [b] h = Slice (t, middle, end, last) [n] n = Neg (h) [j] j = Concat <axis = 3> (n, l)",
}
TURN = "[t] t = Transpose <perm = [0, 2, 1, 3]> (x)"
JOIN = "[p] p = Mul (t, cos) [q] q = Mul (sin, j) [s] s = Add (p, q)"


def sunk(proto: onnx.ModelProto) -> tuple[ir.Model, bool]:
    network = import_model(proto)
    modified = bool(SinkTransposes()(network).modified)
    written = ir.serde.serialize_model(network)
    onnx.checker.check_model(written, full_check=True)
    feeds = {i.name: X["x"] for i in proto.graph.input}
    for got, wanted in zip(
        ReferenceEvaluator(written).run(None, feeds), ReferenceEvaluator(proto).run(None, feeds), strict=True
    ):
        assert np.allclose(got, wanted, rtol=1e-6, atol=1e-6)
    return network, modified


@pytest.mark.parametrize("spelling", list(ROTARY))
def test_heads_turned_by_their_positions(spelling: str) -> None:
    network, modified = sunk(model(f"{TURN} {ROTARY[spelling]} {JOIN} [k] k = Softmax (s) [y] y = Neg (k)"))
    assert modified
    kinds = [n.op_type for n in network.graph]
    assert kinds[-3:] == ["Transpose", "Softmax", "Neg"]
    assert kinds.count("Transpose") == 1


@pytest.mark.parametrize("constant", ["cos", "sin", "row", "head", "half", "whole"])
def test_constants_move_with_it(constant: str) -> None:
    network, modified = sunk(model(f"{TURN} [m] m = Mul (t, {constant}) [y] y = Softmax (m)"))
    assert modified
    assert [n.op_type for n in network.graph] == ["Mul", "Transpose", "Softmax"]


@pytest.mark.parametrize(
    ("nodes", "outputs"),
    [
        (f"{TURN} [m] y = Mul (t, cos)", MADE),  # the result is an output: the transpose stays in front of it anyway
        (f"{TURN} [m] m = Mul (t, cos) [y] y = Softmax (m) [z] z = Softmax (t)", f"{MADE}, {MADE.replace(' y', ' z')}"),
        (f"{TURN} [m] m = Mul (t, cos) [n] n = Neg (t) [y] y = Softmax (m) [z] z = Softmax (n)", f"{MADE}, {MADE.replace(' y', ' z')}"),
        (f"{TURN} [y] y = Softmax (t)", MADE),
        ("[t] t = Transpose <perm = [0, 2, 3, 1]> (x) [n] n = Neg (t) [y] y = Softmax (n)", f"float[{B}, {H}, {D}, {S}] y"),
        (f"{TURN} [a] a = Slice (t, zero, middle, rows) [n] n = Neg (a) [y] y = Softmax (n)", f"float[{B}, {H}, 4, {D}] y"),
    ],
)  # fmt: skip
def test_what_stays(nodes: str, outputs: str) -> None:
    network, modified = sunk(model(nodes, outputs))
    assert not modified
    assert network.graph.num_nodes() == len(model(nodes, outputs).graph.node)


@st.composite
def networks(draw: st.DrawFn) -> onnx.ModelProto:
    """Draw nodes behind a transpose, some of which work on rows, and some of which don't."""
    values, nodes = ["t"], [TURN]
    for number in range(draw(st.integers(1, 7))):
        a, b = (draw(st.sampled_from(values)) for _ in range(2))
        texts = (
            "Neg ({a})",
            "Mul ({a}, cos)",
            "Add ({a}, {b})",
            "Mul (head, {a})",
            "Softmax <axis = 1> ({a})",
            "Tanh ({a})",
        )
        kind = draw(st.sampled_from(texts)).format(a=a, b=b)
        nodes.append(f"[n{number}] v{number} = {kind}")
        values.append(f"v{number}")
    chosen = draw(st.lists(st.sampled_from(values[1:]), min_size=1, max_size=2, unique=True))
    ends = [f"[e{i}] y{i} = Softmax ({v})" for i, v in enumerate(chosen)]
    outputs = ", ".join(MADE.replace(" y", f" y{i}") for i in range(len(chosen)))
    return model(" ".join([*nodes, *ends]), outputs)


@given(networks())
@settings(max_examples=60, deadline=None)
def test_any_network_means_the_same(proto: onnx.ModelProto) -> None:
    network, _ = sunk(proto)
    assert sum(n.op_type == "Transpose" for n in network.graph) <= 1


def test_attention_takes_rotated_heads_as_they_lie() -> None:
    """No transpose is left: queries and keys are turned by their positions where the product has put them."""
    hidden = H * D
    heads = [
        f"[{n}4] {n}4 = Reshape ({n}, split) [{n}t] {n}t = Transpose <perm = [0, 2, 1, 3]> ({n}4)"
        for n in ("q", "k", "v")
    ]
    turned = [
        f"[{n}c] {n}l, {n}h = Split <axis = -1, num_outputs = 2> ({n}t) [{n}n] {n}n = Neg ({n}h) "
        f"[{n}j] {n}j = Concat <axis = -1> ({n}n, {n}l) [{n}p] {n}p = Mul ({n}t, cos) [{n}s] {n}s = Mul ({n}j, sin) "
        f"[{n}r] {n}r = Add ({n}p, {n}s)"
        for n in ("q", "k")
    ]
    rest = (
        "[kk] kk = Transpose <perm = [0, 1, 3, 2]> (kr) [qk] s = MatMul (qr, kk) [sm] w = Softmax (s) [pv] yh = MatMul (w, vt) "
        "[yt] yt = Transpose <perm = [0, 2, 1, 3]> (yh) [out] y = Reshape (yt, join)"
    )
    inputs = ", ".join(f"float[{B}, {S}, {hidden}] {n}" for n in ("q", "k", "v"))
    proto = model(" ".join([*heads, *turned, rest]), f"float[{B}, {S}, {hidden}] y", inputs)
    sizes = {"split": [B, S, H, D], "join": [B, S, hidden]}
    proto.graph.initializer.extend(numpy_helper.from_array(np.array(s), n) for n, s in sizes.items())
    network = import_model(proto)
    passes.run(network, passes.pipeline(BuilderConfig()))
    (found,), missed = recognise(network, RECOGNISERS)
    assert missed == []
    assert [t.dims for t in found.signature.inputs if t] == [(B, S, hidden)] * 3
    assert not any(n.op_type == "Transpose" and n not in found.nodes for n in network.graph)
