"""References: against ONNX's own evaluator, in wider types, and for every form that a call can have."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from signatures import make_signature
from tactician.errors import UnknownOpError
from tactician.plugins.node_model import captured_names, input_names, node_model
from tactician.plugins.op import Op
from tactician.plugins.reference import one_node_model, ops_in_use, reference_for, set_ops
from tactician.signature import Blob, OpSignature, TensorType, make_constant

RNG = np.random.default_rng(7)


def normal(*shape: int, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    return RNG.standard_normal(shape).astype(dtype)


def relative_error(actual: Any, expected: Any) -> float:
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    return float(np.linalg.norm(actual - expected) / max(np.linalg.norm(expected), 1e-30))


def onnx_reference(op: str, inputs: list[Any], attributes: dict[str, Any]) -> Any:
    """What the evaluator computes by itself, with none of our faster operators."""
    names = [f"x{i}" for i in range(len(inputs))]
    node = helper.make_node(op, names, ["y"], **attributes)
    infos = [
        helper.make_tensor_value_info(n, TensorProto.DOUBLE, x.shape)
        for n, x in zip(names, inputs, strict=True)
    ]
    graph = helper.make_graph(
        [node], "g", infos, [helper.make_tensor_value_info("y", TensorProto.DOUBLE, None)]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)])
    return ReferenceEvaluator(model).run(None, dict(zip(names, inputs, strict=True)))[0]


def bare(op: str, types: list[Any], attributes: dict[str, Any] | None = None, **fields: Any) -> OpSignature:
    """Return a signature whose outputs are of unknown type."""
    given = tuple(sorted((attributes or {}).items()))
    outputs = fields.pop("outputs", (TensorType("float32", None),))
    constants = fields.pop("constants", (None,) * len(types))
    return OpSignature(op, fields.pop("version", 21), given, tuple(types), outputs, constants, **fields)


@st.composite
def geometries(draw: st.DrawFn) -> dict[str, Any]:
    rank = draw(st.integers(1, 3))
    kernel = draw(st.lists(st.integers(1, 3), min_size=rank, max_size=rank))
    attributes = {
        "kernel_shape": kernel,
        "strides": draw(st.lists(st.integers(1, 3), min_size=rank, max_size=rank)),
        "dilations": draw(st.lists(st.integers(1, 2), min_size=rank, max_size=rank)),
    }
    auto_pad = draw(st.sampled_from(["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]))
    if auto_pad == "NOTSET":
        attributes["pads"] = [draw(st.integers(0, k - 1)) for k in kernel * 2]
    else:
        attributes |= {"auto_pad": auto_pad, "dilations": [1] * rank}
    return attributes


@given(geometries(), st.integers(1, 2), st.sampled_from([(1, 2, 3), (2, 1, 2), (3, 1, 1)]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_fast_convolution_is_onnx_convolution(
    attributes: dict[str, Any], batch: int, sizes: tuple[int, int, int], with_bias: bool
) -> None:
    group, channels, filters = sizes
    rank = len(attributes["kernel_shape"])
    x = normal(batch, group * channels, *range(7, 7 + rank), dtype=np.float64)
    w = normal(group * filters, channels, *attributes["kernel_shape"], dtype=np.float64)
    inputs = [x, w, normal(group * filters, dtype=np.float64)][: 3 if with_bias else 2]
    attributes = attributes | {"group": group}
    expected = onnx_reference("Conv", inputs, attributes)
    (actual,) = reference_for(make_signature("Conv", inputs, attributes, version=22))(inputs)
    assert relative_error(actual, expected) < 1e-12


@given(geometries(), st.sampled_from(["MaxPool", "AveragePool"]), st.booleans(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_fast_pooling_is_that_of_another_runtime(
    attributes: dict[str, Any], op: str, ceil_mode: bool, count_pads: bool
) -> None:
    # neither ONNX's evaluator nor ONNX Runtime knows how to pad where strides skip elements
    skips = any(s > k for s, k in zip(attributes["strides"], attributes["kernel_shape"], strict=True))
    assume(not (skips and attributes.get("auto_pad", "").startswith("SAME")))
    rank = len(attributes["kernel_shape"])
    x = normal(2, 3, *range(7, 7 + rank))
    if "auto_pad" not in attributes:
        attributes = attributes | {"ceil_mode": int(ceil_mode)}
    if op == "AveragePool":
        attributes = attributes | {"count_include_pad": int(count_pads)}
    signature = make_signature(op, [x], attributes, version=22)
    (actual,) = reference_for(signature)([x])
    # ONNX's own evaluator fails on many of these: another runtime is the judge
    session = onnxruntime.InferenceSession(one_node_model(signature), providers=["CPUExecutionProvider"])
    assert relative_error(actual, session.run(None, {"call/input_0": x})[0]) < 1e-6


@given(geometries(), st.lists(st.integers(1, 6), min_size=3, max_size=3), st.booleans(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_places_of_maxima_are_those_of_another_runtime(
    attributes: dict[str, Any], sides: list[int], ceil_mode: bool, order: bool
) -> None:
    skips = any(s > k for s, k in zip(attributes["strides"], attributes["kernel_shape"], strict=True))
    assume(not (skips and attributes.get("auto_pad", "").startswith("SAME")))
    rank = len(attributes["kernel_shape"])
    x = np.random.default_rng(rank).integers(-4, 4, (2, 3, *sides[:rank])).astype(np.float32)  # with ties
    attributes = attributes | {"storage_order": int(order)}
    if "auto_pad" not in attributes:
        attributes["ceil_mode"] = int(ceil_mode)
    try:
        signature = make_signature("MaxPool", [x], attributes, version=22, outputs=2)
    except ValueError:  # a kernel that is larger than what it is over
        assume(False)
    maxima, places = reference_for(signature)([x])
    assume(maxima.size and np.isfinite(maxima).all())  # windows of padding alone have no maximum
    session = onnxruntime.InferenceSession(one_node_model(signature), providers=["CPUExecutionProvider"])
    wanted = session.run(None, {"call/input_0": x})
    assert np.array_equal(maxima, wanted[0])
    assert np.array_equal(places, wanted[1])


def test_places_of_maxima_where_the_padding_is_wider_than_the_input() -> None:
    x = np.array([[[[-7.0]]]], np.float32)
    attributes = {"kernel_shape": [5, 5], "pads": [2, 2, 2, 2]}
    signature = make_signature("MaxPool", [x], attributes, version=22, outputs=2)
    assert [y.reshape(-1).tolist() for y in reference_for(signature)([x])] == [[-7.0], [0]]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_wider_inputs_are_computed_in_the_wider_type(dtype: str) -> None:
    inputs = [normal(2, 3, 8, 8).astype(dtype), normal(4, 3, 3, 3).astype(dtype)]
    signature = make_signature("Conv", inputs)
    (wide,) = reference_for(signature)([x.astype(np.float64) for x in inputs])
    assert wide.dtype == np.float64
    (own,) = reference_for(signature)(inputs)
    assert own.dtype == dtype
    assert 1e-9 < relative_error(own, wide) < 2e-3


def gelu_body() -> bytes:
    """A fused node's body with constants of its own in single precision."""
    nodes = [
        helper.make_node(
            "Constant", [], ["root"], value=numpy_helper.from_array(np.array(2**0.5, np.float32))
        ),
        helper.make_node("Constant", [], ["half"], value_float=0.5),
        helper.make_node("Div", ["x", "root"], ["a"]),
        helper.make_node("Erf", ["a"], ["b"]),
        helper.make_node("CastLike", ["half", "x"], ["c"]),
        helper.make_node("Mul", ["b", "c"], ["d"]),
        helper.make_node("Add", ["d", "c"], ["e"]),
        helper.make_node("Mul", ["x", "e"], ["y"]),
    ]
    function = helper.make_function("tactician", "Fused", ["x"], ["y"], nodes, [helper.make_opsetid("", 20)])
    return function.SerializeToString()


def test_fused_node_is_its_body_in_any_precision() -> None:
    x = normal(3, 5)
    signature = bare("tactician::Fused", [TensorType("float32", x.shape)], body=gelu_body(), version=1)
    exact = onnx_reference("Gelu", [x.astype(np.float64)], {})
    assert relative_error(reference_for(signature)([x])[0], exact) < 1e-6
    (wide,) = reference_for(signature)([x.astype(np.float64)])
    # the body's own sqrt(2) is single precision, whatever it is computed in
    assert wide.dtype == np.float64
    assert relative_error(wide, exact) < 1e-7


def branch(name: str, nodes: list[Any]) -> Any:
    return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)])


def conditional() -> OpSignature:
    """If, whose branches read two outer values; ``else`` comes before ``then`` by name."""
    then = branch("then", [helper.make_node("Sub", ["left", "right"], ["out"])])
    other = branch("else", [helper.make_node("Add", ["right", "left"], ["out"])])
    attributes = {
        "then_branch": Blob("graph", (then.SerializeToString(),)),
        "else_branch": Blob("graph", (other.SerializeToString(),)),
    }
    types = [TensorType("bool", ()), TensorType("float32", (2,)), TensorType("float32", (2,))]
    return bare("ai.onnx::If", types, attributes)


def test_captured_values_are_the_last_inputs_in_order_of_first_use() -> None:
    signature = conditional()
    assert captured_names(signature) == ("right", "left")
    assert input_names(signature)[1:] == ["right", "left"]
    right, left = normal(2), normal(2)
    compute = reference_for(signature)
    np.testing.assert_array_equal(compute([np.array(True), right, left])[0], left - right)
    np.testing.assert_array_equal(compute([np.array(False), right, left])[0], left + right)


def test_inner_values_are_not_captured() -> None:
    inner = branch("inner", [helper.make_node("Mul", ["local", "outer"], ["out"])])
    nodes = [
        helper.make_node("Neg", ["first"], ["local"]),
        helper.make_node("If", ["flag"], ["out"], then_branch=inner, else_branch=inner),
    ]
    blob = Blob("graph", (branch("outer", nodes).SerializeToString(),))
    signature = bare("ai.onnx::If", [TensorType("bool", ())], {"else_branch": blob, "then_branch": blob})
    assert captured_names(signature) == ("first", "flag", "outer")


def test_sequences_and_optionals_are_lists_and_none() -> None:
    arrays = [normal(2), normal(3)]
    sequence, tensor = TensorType("sequence(float32)", None), TensorType("float32", (1,))
    insert = bare("ai.onnx::SequenceInsert", [sequence, tensor], outputs=(sequence,))
    (result,) = reference_for(insert)([arrays, normal(1)])
    assert [len(a) for a in result] == [2, 3, 1]
    has = bare("ai.onnx::OptionalHasElement", [TensorType("optional(float32)", None)])
    assert not reference_for(has)([None])[0]
    assert reference_for(has)([arrays[0]])[0]


def test_absent_inputs_and_tensor_attributes() -> None:
    x = normal(10)
    clip = bare("ai.onnx::Clip", [TensorType("float32", (10,)), None, TensorType("float32", ())])
    np.testing.assert_array_equal(reference_for(clip)([x, None, np.float32(0.5)])[0], np.minimum(x, 0.5))
    value = Blob("tensor", (numpy_helper.from_array(np.array([7], np.int32)).SerializeToString(),))
    fill = bare("ai.onnx::ConstantOfShape", [TensorType("int64", (2,))], {"value": value})
    np.testing.assert_array_equal(reference_for(fill)([np.array([2, 3])])[0], np.full((2, 3), 7, np.int32))


def twice(signature: OpSignature, x: Any) -> Any:
    return x * (2 + signature.attribute("more", 0))


DOUBLE = Op("acme::Double", lambda signature: [signature.inputs[0]], twice)  # type: ignore[list-item]  # never absent here


def test_custom_operators_are_found_by_name_and_in_bodies() -> None:
    x = normal(4)
    direct = bare("acme::Double", [TensorType("float32", (4,))], {"more": 1}, version=1)
    np.testing.assert_array_equal(reference_for(direct, {"acme::Double": DOUBLE})([x])[0], x * 3)
    nodes = [
        helper.make_node("Double", ["x"], ["a"], domain="acme", more=2),
        helper.make_node("Neg", ["a"], ["y"]),
    ]
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("acme", 1)]
    body = helper.make_function("tactician", "F", ["x"], ["y"], nodes, imports).SerializeToString()
    fused = bare("tactician::F", [TensorType("float32", (4,))], body=body, version=1)
    np.testing.assert_array_equal(reference_for(fused, {"acme::Double": DOUBLE})([x])[0], x * -4)


def test_operators_in_use_are_the_default() -> None:
    before = ops_in_use()
    signature = bare("acme::Double", [TensorType("float32", (4,))], version=1)
    try:
        set_ops({"acme::Double": DOUBLE})
        assert reference_for(signature)([np.ones(4)])[0].tolist() == [2, 2, 2, 2]
    finally:
        set_ops(before)


@pytest.mark.parametrize("op", ["ai.onnx::Nonsense", "acme::Nothing"])
def test_an_unknown_operator_is_named(op: str) -> None:
    with pytest.raises(UnknownOpError, match=op):
        reference_for(bare(op, [TensorType("float32", (4,))]), {})


def test_model_of_a_node_bakes_known_constants_and_places_external_ones() -> None:
    shape = np.array([3, 2], np.int64)
    types = [TensorType("float32", (2, 3)), TensorType("int64", (2,))]
    outputs = (TensorType("float32", (3, 2)),)
    reshape = bare("ai.onnx::Reshape", types, constants=(None, make_constant(shape)), outputs=outputs)
    model = onnx.ModelProto.FromString(one_node_model(reshape))
    onnx.checker.check_model(model, full_check=True)
    assert [i.name for i in model.graph.input] == ["call/input_0"]
    assert numpy_helper.to_array(model.graph.initializer[0]).tolist() == [3, 2]
    weights = node_model(make_signature("MatMul", [normal(2, 3), normal(3, 4)]), external=[1])
    assert [e.value for e in weights.graph.initializer[0].external_data] == ["weights", "0", "48"]


def test_oldest_opset_keeps_the_meaning() -> None:
    softmax = make_signature("Softmax", [normal(2, 3)], version=21)
    assert node_model(softmax, oldest_opset=True).opset_import[0].version == 13
    old = make_signature("Softmax", [normal(2, 3)], version=12)
    assert node_model(old, oldest_opset=True).opset_import[0].version == 11
