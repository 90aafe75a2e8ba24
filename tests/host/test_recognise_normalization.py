"""Normalisations written out are recognised in every spelling, in 16 bits between casts too, and mean the same as one call."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import tactician
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from tactician.config import BuilderConfig
from tactician.importer import import_model
from tactician.recognition.normalization import NormalizationRecogniser
from tactician.recognition.recognise import recognise
from tactician.regions import apply, recognised_region

SHAPE = (2, 5, 16)
SQUARES = "[p] p = Pow (x, two) [m] m = ReduceMean (p, last) [e] e = Add (m, eps) [q] q = Sqrt (e)"
CENTRED = (
    "[mean] c = ReduceMean (x, last) [sub] d = Sub (x, c) [p] p = Pow (d, two) [m] m = ReduceMean (p, last) [e] e = Add (eps, m) "
    "[q] q = Sqrt (e) [div] n = Div (d, q)"
)
RMS = {
    "divided": f"{SQUARES} [d] n = Div (x, q) [s] y = Mul (n, w)",
    "times the reciprocal": f"{SQUARES} [r] r = Reciprocal (q) [d] n = Mul (x, r) [s] y = Mul (w, n)",
    "squared by Mul": f"{SQUARES.replace('Pow (x, two)', 'Mul (x, x)')} [d] n = Div (x, q) [s] y = Mul (n, wide)",
}
LAYER = {
    "with a bias": f"{CENTRED} [s] s = Mul (n, w) [b] y = Add (s, b)",
    "without a bias": f"{CENTRED} [s] y = Mul (w, n)",
}
HALF = {
    "scale behind the cast": "[up] u = Cast <to = 1> (x) {} [d] n = Div (u, q) [down] h = Cast <to = 10> (n) [s] y = Mul (h, w)",
    "scale before the cast": "[up] u = Cast <to = 1> (x) {} [d] n = Div (u, q) [s] s = Mul (n, w) [down] y = Cast <to = 10> (s)",
}


def model(
    nodes: str, dtype: str = "float", weight: Any = np.float32, outputs: str | None = None
) -> onnx.ModelProto:
    shape = ", ".join(map(str, SHAPE))
    proto = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 20]> g ({dtype}[{shape}] x) => ({outputs or f"{dtype}[{shape}] y"}) {{ {nodes} }}'
    )
    rng = np.random.default_rng(2)
    row = rng.standard_normal(SHAPE[-1])
    constants = {
        "two": np.float32(2), "last": np.array([-1]), "first": np.array([0]), "eps": np.float32(1e-5),
        "w": row.astype(np.float16).astype(weight), "wide": row.reshape(1, 1, -1).astype(np.float32),
        "b": rng.standard_normal(SHAPE[-1]).astype(np.float32), "whole": rng.standard_normal(SHAPE).astype(np.float32),
    }  # fmt: skip
    read = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items() if n in read
    )
    return proto


def x(dtype: Any = np.float32) -> dict[str, Any]:
    return {"x": (3 * np.random.default_rng(0).standard_normal(SHAPE) + 1).astype(dtype)}


def one_call(found: Any, network: ir.Model, feeds: dict[str, Any]) -> Any:
    """Run the recognised call by ONNX's reference."""
    names = [f"i{i}" for i in range(len(found.inputs))]
    constants = [v.const_value for v in found.inputs[1:]]
    node = onnx.helper.make_node(found.signature.op_type, names, ["y"], **dict(found.signature.attributes))
    kind = onnx.helper.np_dtype_to_tensor_dtype(feeds["x"].dtype)
    graph = onnx.helper.make_graph(
        [node], "g", [onnx.helper.make_tensor_value_info("i0", kind, SHAPE)], [onnx.helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(t.numpy(), n) for t, n in zip(constants, names[1:], strict=True) if t is not None],
    )  # fmt: skip
    version = [onnx.helper.make_opsetid("", found.signature.version)]
    return ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=version)).run(
        None, {"i0": feeds["x"]}
    )[0]


@pytest.mark.parametrize(
    ("nodes", "op", "operands", "dtype", "weight"),
    [
        *((n, "RMSNormalization", 2, np.float32, np.float32) for n in RMS.values()),
        *((n, "LayerNormalization", 3 - i, np.float32, np.float32) for i, n in enumerate(LAYER.values())),
        (HALF["scale behind the cast"].format(SQUARES.replace("(x,", "(u,")), "RMSNormalization", 2, np.float16, np.float16),
        (HALF["scale before the cast"].format(SQUARES.replace("(x,", "(u,")), "RMSNormalization", 2, np.float16, np.float32),
    ],
)  # fmt: skip
def test_it_is_found(nodes: str, op: str, operands: int, dtype: Any, weight: Any) -> None:
    proto = model(nodes, {np.float32: "float", np.float16: "float16"}[dtype], weight)
    network = import_model(proto)
    (found,), missed = recognise(network, [NormalizationRecogniser()])
    assert missed == []
    assert found.signature.op_type == op
    assert len(found.inputs) == operands
    assert {t.dtype for t in found.signature.inputs if t} == {np.dtype(dtype).name}
    attributes = dict(found.signature.attributes)
    assert (attributes["axis"], attributes["stash_type"]) == (-1, 1)
    assert attributes["epsilon"] == pytest.approx(1e-5)
    feeds = x(dtype)
    (wanted,) = ReferenceEvaluator(proto).run(None, feeds)
    tolerance = 2e-5 if dtype is np.float32 else 2e-3
    got = one_call(found, network, feeds)
    assert np.linalg.norm(got.astype(float) - wanted) <= tolerance * np.linalg.norm(wanted.astype(float))
    apply(network, [recognised_region(network, found)])
    assert network.graph.num_nodes() == 1
    fused = ir.serde.serialize_model(network)
    onnx.checker.check_model(fused)
    assert np.array_equal(ReferenceEvaluator(fused).run(None, feeds)[0], wanted)


@pytest.mark.parametrize(
    "nodes",
    [
        f"{SQUARES} [d] y = Div (x, q)",  # no scale
        f"{SQUARES} [d] n = Div (x, q) [s] y = Mul (n, whole)",  # a scale for each element
        f"{SQUARES.replace('last', 'first')} [d] n = Div (x, q) [s] y = Mul (n, w)",  # over another dimension
        f"{SQUARES} [d] n = Div (whole, q) [s] y = Mul (n, w)",  # of something else
        f"{SQUARES.replace('two', 'eps')} [d] n = Div (x, q) [s] y = Mul (n, w)",  # no squares
        f"{SQUARES} [d] n = Div (q, x) [s] y = Mul (n, w)",
    ],
)
def test_what_it_is_not(nodes: str) -> None:
    found, missed = recognise(import_model(model(nodes)), [NormalizationRecogniser()])
    assert (found, missed) == ([], [])


def test_a_result_that_others_read_ends_it() -> None:
    """What comes before the scale is an output too: without the scale there is no call."""
    proto = model(RMS["divided"], outputs="float[2, 5, 16] y, float[2, 5, 16] n")
    assert recognise(import_model(proto), [NormalizationRecogniser()]) == ([], [])


def test_a_build(tmp_path: Any) -> None:
    proto = model(LAYER["with a bias"])
    config = BuilderConfig(target="cpu", plugins=("builtin",), timing_cache=tmp_path / "cache", isolate=False)
    engine = tactician.build(proto, config)
    assert any(f.signature.startswith("LayerNormalization(") for f in engine.report.fusions)
    (wanted,) = ReferenceEvaluator(proto).run(None, x())
    assert np.allclose(tactician.Session(engine).run(x())["y"], wanted, rtol=1e-4, atol=1e-5)
