"""Signatures of nodes, and the builder for those who have no ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator
from tactician.errors import InvalidModelError, ShapeError, UnknownOpError
from tactician.importer import import_model
from tactician.network import Network, call_inputs, captured_values, signature_of, signatures
from tactician.plugins.node_model import captured_names
from tactician.plugins.reference import reference_for
from tactician.signature import Blob, OpSignature, TensorType


def parse(body: str, imports: str = "", functions: str = "", opset: int = 18) -> ir.Model:
    extra = f", {imports}" if imports else ""
    return ir.serde.deserialize_model(
        onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}{extra}]>\n{body}\n{functions}')
    )


def random(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def signatures_of(body: str) -> dict[str, OpSignature]:
    return signatures(import_model(parse(body)))


class TestSignatures:
    def test_a_signature_holds_types_attributes_and_constants(self) -> None:
        body = """g (float[1, 3, 8, 8] x) => (y, i) <int64[1] k = {2}> {
            [conv] c = Conv <pads = [1, 1, 1, 1], group = 1, auto_pad = "NOTSET"> (x, w)
            f = Flatten <axis = 1> (c)
            [top] y, i = TopK <axis = 1> (f, k) }"""
        model = parse(body)
        weight = ir.tensor(random(4, 3, 3, 3), name="w")
        proto = ir.serde.serialize_model(model)
        proto.graph.initializer.append(ir.serde.serialize_tensor(weight))
        found = signatures(import_model(proto))
        assert list(found) == ["conv", "Flatten_1", "top"]
        conv, top = found["conv"], found["top"]
        assert conv.op == "ai.onnx::Conv"
        assert conv.version == 18
        assert conv.attributes == (("auto_pad", "NOTSET"), ("group", 1), ("pads", (1, 1, 1, 1)))
        assert conv.inputs == (TensorType("float32", (1, 3, 8, 8)), TensorType("float32", (4, 3, 3, 3)))
        assert conv.outputs == (TensorType("float32", (1, 4, 8, 8)),)
        assert conv.constants[0] is None
        assert conv.constants[1] is not None
        assert conv.constants[1].value is None, "weights do not tell layers apart"
        assert top.known(1) == np.array([2])
        assert top.outputs == (TensorType("float32", (1, 2)), TensorType("int64", (1, 2)))

    def test_absent_inputs_and_outputs_are_none(self) -> None:
        found = signatures_of(
            'g (float[1, 1, 4, 4] x, float[4] s) => (y) { y = Resize <mode = "nearest"> (x, , s) }'
        )
        resize = next(s for s in found.values() if s.op_type == "Resize")
        assert resize.inputs[1] is None
        lstm = signatures_of(
            "g (float[2, 1, 3] x, float[1, 16, 3] w, float[1, 16, 4] r) => (h) { , h = LSTM <hidden_size = 4> (x, w, r) }"
        )
        assert next(iter(lstm.values())).outputs[0] is None

    def test_every_kind_of_attribute_survives(self) -> None:
        graph = onnx.helper.make_graph([], "inner", [], [])
        values: dict[str, Any] = {
            "i": 3,
            "f": 0.1,
            "s": "text",
            "ints": [1, 2],
            "floats": [0.5, float("inf")],
            "strings": ["a", "b"],
            "t": onnx.numpy_helper.from_array(random(2, 2), "t"),
            "g": graph,
            "graphs": [graph, graph],
            "tensors": [onnx.numpy_helper.from_array(random(2), "t")],
            "tp": onnx.helper.make_tensor_type_proto(1, [2]),
        }
        node = onnx.helper.make_node("Any", ["x"], ["y"], domain="acme", **values)
        info = onnx.helper.make_tensor_value_info("x", 1, [2])
        model = onnx.helper.make_model(
            onnx.helper.make_graph([node], "g", [info], [onnx.helper.make_tensor_value_info("y", 1, [2])]),
            opset_imports=[onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("acme", 3)],
        )
        network = ir.serde.deserialize_model(model)
        signature = signature_of(network.graph[0], network)
        assert signature.op == "acme::Any"
        assert signature.version == 3
        assert signature.attribute("ints") == (1, 2)
        assert signature.attribute("f") == pytest.approx(0.1)
        assert signature.attribute("strings") == ("a", "b")
        for name, kind in [
            ("t", "tensor"),
            ("g", "graph"),
            ("graphs", "graphs"),
            ("tensors", "tensors"),
            ("tp", "type_proto"),
        ]:
            blob = signature.attribute(name)
            assert isinstance(blob, Blob), name
            assert blob.kind == kind
        tensor = onnx.TensorProto.FromString(signature.attribute("t").data[0])
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor), random(2, 2))
        assert OpSignature.from_plain(signature.to_plain()) == signature

    def test_what_subgraphs_capture_are_further_inputs(self) -> None:
        body = """g (bool c, float[3] x, float[3] z) => (float[3] y) {
            h = Relu(x)
            y = If (c) <
                then_branch = t () => (float[3] a) {
                    n = If (c) <then_branch = u () => (float[3] p) { p = Add(z, h) },
                                else_branch = v () => (float[3] q) { q = Neg(x) }>
                    a = Add(n, h) },
                else_branch = e () => (float[3] b) { k = Neg(x)  b = Abs(k) }> }"""
        network = import_model(parse(body))
        node = network.graph[1]
        assert [v.name for v in captured_values(node)] == ["x", "c", "z", "h"]
        assert [v.name for v in call_inputs(node) if v is not None] == ["c", "x", "c", "z", "h"]
        signature = signature_of(node, network)
        assert captured_names(signature) == tuple(v.name for v in captured_values(node))
        assert signature.inputs[1:] == (
            TensorType("float32", (3,)),
            TensorType("bool", ()),
            TensorType("float32", (3,)),
            TensorType("float32", (3,)),
        )

    def test_loops_run_from_their_signature_alone(self) -> None:
        body = """g (int64 n, float[3] x, float[3] step) => (float[3] y) <bool go = {1}> {
            y = Loop (n, go, x) <body = b (int64 i, bool c, float[3] s) => (bool d, float[3] t) { d = Identity(c)  t = Add(s, step) }> }"""
        network = import_model(parse(body))
        signature = signature_of(network.graph[0], network)
        x, step = random(3), np.array([1, 2, 3], np.float32)
        (result,) = reference_for(signature)([np.array(4), np.array(True), x, step])
        np.testing.assert_allclose(result, x + 4 * step, rtol=1e-6)


class TestFusedNodes:
    def network(self, second: str, functions: str) -> ir.Model:
        body = f"g (float[2, 3] x, float[3] b) => (float[2, 3] y) {{ h = fused.One(x, b)  y = fused.{second}(h, b) }}"
        network = parse(body, imports='"fused" : 1', functions=functions)
        for i, node in enumerate(network.graph):
            node.name = f"call_{i}"
            node.outputs[0].type, node.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([2, 3])
        return network

    FIRST = '<opset_import: ["" : 18], domain: "fused"> One (x, bias) => (out) { total = Add(x, bias)  out = Relu(total) }'

    def test_the_body_is_what_the_call_means(self) -> None:
        network = self.network("One", self.FIRST)
        first, second = signatures(network).values()
        assert first == second
        assert first.body is not None
        x, bias = random(2, 3), random(3)
        (result,) = reference_for(first)([x, bias])
        np.testing.assert_allclose(result, np.maximum(x + bias, 0))

    def test_equal_bodies_are_equal_whatever_their_values_are_called(self) -> None:
        other = '<opset_import: ["" : 18], domain: "fused"> Two (p, q) => (r) { sum_7 = Add(p, q)  r = Relu(sum_7) }'
        first, second = signatures(self.network("Two", self.FIRST + "\n" + other)).values()
        assert first.body is not None
        assert second.body is not None
        assert first.body.replace(b"One", b"Two") == second.body

    @pytest.mark.parametrize(
        "inner", ["sum_7 = Add(q, p)  r = Relu(sum_7)", "sum_7 = Sub(p, q)  r = Relu(sum_7)"]
    )
    def test_other_bodies_differ(self, inner: str) -> None:
        other = f'<opset_import: ["" : 18], domain: "fused"> Two (p, q) => (r) {{ {inner} }}'
        first, second = signatures(self.network("Two", self.FIRST + "\n" + other)).values()
        assert first.body is not None
        assert second.body is not None
        assert first.body.replace(b"One", b"Two") != second.body

    def test_subgraphs_in_bodies_are_renamed_with_what_they_capture(self) -> None:
        def function(name: str, a: str, b: str, h: str, inner: str) -> str:
            return f"""<opset_import: ["" : 18], domain: "fused"> {name} ({a}, {b}) => (out) {{
                {h} = Add({a}, {b})
                zero = Constant <value = float {{0}}> ()
                total = ReduceSum <keepdims = 0> ({h})
                flag = Greater(total, zero)
                out = If (flag) <then_branch = t () => ({inner}) {{ {inner} = Neg({h}) }},
                                 else_branch = e () => ({inner}) {{ {inner} = Mul({h}, {b}) }}> }}"""

        functions = function("One", "x", "bias", "h", "i") + "\n" + function("Two", "p", "q", "h2", "j")
        first, second = signatures(self.network("Two", functions)).values()
        assert first.body is not None
        assert second.body is not None
        assert first.body.replace(b"One", b"Two") == second.body
        x, bias = random(2, 3), random(3)
        total = x + bias
        expected = -total if total.sum() > 0 else total * bias
        np.testing.assert_allclose(reference_for(second)([x, bias])[0], expected, rtol=1e-6)


class TestBuilder:
    def test_a_network_computes_what_it_says(self) -> None:
        net = Network()
        x = net.input("x", "float32", ("N", 3, 8, 8))
        weight, bias = random(4, 3, 3, 3), random(4)
        y = net.op("Conv", x, net.constant(weight, "w"), bias, pads=[1, 1, 1, 1], name="conv")
        y = net.op("Relu", y) * 2 + 1
        halves = net.op("Split", y, outputs=2, axis=1, num_outputs=2)
        net.output(halves[0] - halves[1], "difference")
        onnx.checker.check_model(ir.serde.serialize_model(net.model), full_check=True)
        network = import_model(net, {"x": (2, 3, 8, 8)})
        assert signatures(network)["conv"].outputs == (TensorType("float32", (2, 4, 8, 8)),)
        feeds = {"x": random(2, 3, 8, 8)}
        convolved = ReferenceEvaluator(
            onnx.parser.parse_model(
                '<ir_version: 8, opset_import: ["" : 18]> g (float[2,3,8,8] x, float[4,3,3,3] w, float[4] b) => (float[2,4,8,8] y)'
                " { y = Conv <pads = [1,1,1,1]> (x, w, b) }"
            )
        ).run(None, {**feeds, "w": weight, "b": bias})[0]
        expected = np.maximum(convolved, 0) * 2 + 1
        (result,) = ReferenceEvaluator(ir.serde.serialize_model(network)).run(None, feeds)
        np.testing.assert_allclose(result, expected[:, :2] - expected[:, 2:], rtol=1e-5, atol=1e-5)

    def test_operators_append_nodes(self) -> None:
        net = Network()
        a, b = net.input("a", "float64", (2, 2)), net.input("b", "float64", (2, 2))
        array = np.array([[1.0, 2.0], [3.0, 5.0]])
        net.output((1 - a) / (2 + b) @ array @ (3 * -a) - (array @ b) / 4, "y")
        feeds = {"a": random(2, 2).astype(np.float64), "b": np.abs(random(2, 2)).astype(np.float64)}
        (result,) = ReferenceEvaluator(ir.serde.serialize_model(import_model(net))).run(None, feeds)
        va, vb = feeds["a"], feeds["b"]
        expected = (1 - va) / (2 + vb) @ array @ (3 * -va) - (array @ vb) / 4
        np.testing.assert_allclose(result, expected)
        assert result.dtype == np.float64

    def test_types_are_known_while_it_is_written(self) -> None:
        net = Network()
        x = net.input("x", "bfloat16", ("N", 6))
        assert (x.dtype, x.shape) == ("bfloat16", ("N", 6))
        y = net.op("Reshape", x, np.array([0, 2, -1]))
        assert y.shape == ("N", 2, 3)
        assert net.op("Shape", y).dtype == "int64"
        assert "Tensor('x', bfloat16, ('N', 6))" in repr(x)

    def test_a_plugins_operator_has_no_type_yet(self) -> None:
        net = Network()
        y = net.op("Gelu", net.input("x", "float32", (2,)), domain="acme", version=3)
        assert y.dtype is None
        assert net.op("Relu", y).shape is None
        assert net.model.graph.opset_imports["acme"] == 3

    def test_inputs_and_constants_can_be_outputs(self) -> None:
        net = Network()
        x = net.input("x", "float32", (2,))
        net.output(x, "same")
        net.output(net.constant(random(2)), "fixed")
        y = net.op("Relu", x)
        net.output(y, "first")
        net.output(y, "second")
        value = random(2)
        results = ReferenceEvaluator(ir.serde.serialize_model(import_model(net))).run(None, {"x": value})
        for result, expected in zip(results, [value, value, *[np.maximum(value, 0)] * 2], strict=True):
            np.testing.assert_array_equal(result, expected)

    def test_it_is_saved_as_an_onnx_file(self, tmp_path: Path) -> None:
        net = Network(name="tiny")
        net.output(net.op("Relu", net.input("x", "float32", (2,))), "y")
        net.save(tmp_path / "tiny.onnx")
        model = onnx.load(tmp_path / "tiny.onnx")
        onnx.checker.check_model(model, full_check=True)
        assert model.graph.name == "tiny"

    def test_mistakes_are_named_where_they_are_made(self) -> None:
        net = Network()
        x = net.input("x", "float32", (2, 3))
        with pytest.raises(UnknownOpError, match=r"no operator 'Rellu' in opset 21.*Relu"):
            net.op("Rellu", x)
        with pytest.raises(UnknownOpError, match="in opset 17"):
            Network(opset=17).op("RMSNormalization")
        with pytest.raises(ShapeError, match=r"MatMul 'mm': .*\(inputs: 'x' FLOAT\[2,3\]"):
            net.op("MatMul", x, x, name="mm")
        with pytest.raises(ShapeError, match="slope"):
            net.op("Relu", x, slope=1.0)
        with pytest.raises(ShapeError, match="Add"):
            _ = x + np.zeros((2, 3))  # float64
        with pytest.raises(InvalidModelError, match="'x' already"):
            net.input("x", "float32", ())
        with pytest.raises(InvalidModelError, match="'float33' is no ONNX element type"):
            net.input("z", "float33", ())
        with pytest.raises(InvalidModelError, match="another network"):
            net.op("Relu", Network().input("x", "float32", ()))
        with pytest.raises(InvalidModelError, match="a str is no tensor"):
            net.op("Relu", "x")
        with pytest.raises(InvalidModelError, match="attributes can't be written"):
            net.op("Relu", x, alpha=object())
        with pytest.raises(InvalidModelError, match="no tensor of a network"):
            net.output(3)  # type: ignore[arg-type]  # the mistake itself
