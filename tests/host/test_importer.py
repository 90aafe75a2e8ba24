"""Importing: what a network must look like, what binds its shapes, and what is said when a model is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from tactician.errors import (
    ExternalDataError,
    InvalidModelError,
    ShapeError,
    TacticianError,
    UnknownOpError,
)
from tactician.importer import import_model
from tactician.network import Network, tensor_type
from tactician.plugins.op import Op
from tactician.signature import OpSignature, TensorType


def parse(
    body: str, opset: int = 18, ir_version: int = 8, imports: str = "", functions: str = ""
) -> onnx.ModelProto:
    extra = f", {imports}" if imports else ""
    return onnx.parser.parse_model(
        f'<ir_version: {ir_version}, opset_import: ["" : {opset}{extra}]>\n{body}\n{functions}'
    )


def types(network: ir.Model) -> dict[str, str]:
    return {v.name or "": str(tensor_type(v)) for node in network.graph for v in node.outputs}


def run(model: ir.Model | onnx.ModelProto, feeds: dict[str, Any]) -> list[Any]:
    proto = ir.serde.serialize_model(model) if isinstance(model, ir.Model) else model
    return list(ReferenceEvaluator(proto).run(None, feeds))


def random(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


RELU = "g (float[N, 3] x) => (float[N, 3] y) { y = Relu(x) }"
LINEAR = (
    "g (float[N, 3] x) => (float[N, 4] y) <float[3, 4] w = {1,2,3,4,5,6,7,8,9,10,11,12}> { y = MatMul(x, w) }"
)


class TestSources:
    def test_all_kinds_of_source_give_the_same_network(self, tmp_path: Path) -> None:
        model = parse(LINEAR)
        path = tmp_path / "model.onnx"
        onnx.save(model, path)
        data = model.SerializeToString()
        sources: list[Any] = [
            path,
            str(path),
            data,
            bytearray(data),
            model,
            ir.serde.deserialize_model(model),
        ]
        networks = [
            ir.serde.serialize_model(import_model(s)).SerializeToString(deterministic=True) for s in sources
        ]
        assert len(set(networks)) == 1

    def test_a_source_is_not_changed(self) -> None:
        model = parse("g (float[N, 3] x) => (y) { h = Relu(x)  y = Relu(h) }", opset=11)
        before = model.SerializeToString(deterministic=True)
        import_model(model, {"x": (2, 3)})
        assert model.SerializeToString(deterministic=True) == before
        network = import_model(models.resnet50(image=32, width=8, blocks=(1, 1, 1, 1)))
        names = [list(network.graph.initializers), [v.name for v in network.graph.inputs]]
        import_model(network)
        assert names == [list(network.graph.initializers), [v.name for v in network.graph.inputs]]

    def test_a_builders_network_is_imported(self) -> None:
        net = Network()
        net.output(net.op("Relu", net.input("x", "float32", (2, 3))), "y")
        assert types(import_model(net)) == {"y": "float32[2, 3]"}

    def test_another_kind_of_source_is_named(self) -> None:
        with pytest.raises(InvalidModelError, match="can't import a int; pass a path"):
            import_model(3)

    @pytest.mark.parametrize("name", ["missing.onnx", ""])
    def test_a_missing_file_or_a_folder_is_named(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(InvalidModelError, match=tmp_path.name):
            import_model(tmp_path / name)

    def test_large_weights_are_held_once_and_small_ones_stay(self) -> None:
        model = models.bert_encoder(layers=1, hidden=64, heads=2, seq=8)
        network = import_model(model)
        originals = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        assert network.graph.initializers.keys() == originals.keys()
        for name, value in network.graph.initializers.items():
            assert value.const_value is not None
            np.testing.assert_array_equal(value.const_value.numpy(), originals[name])
        large = next(
            v for v in network.graph.initializers.values() if v.const_value and v.const_value.nbytes > 4096
        )
        assert large.const_value is not None
        assert np.shares_memory(large.const_value.numpy(), large.const_value.numpy())
        assert [v.name for v in network.graph.inputs] == [v.name for v in model.graph.input]

    def test_initializers_that_are_inputs_too_are_constants(self) -> None:
        model = parse(LINEAR, ir_version=3)
        weight = helper.make_tensor_value_info("w", TensorProto.FLOAT, [3, 4])
        model.graph.input.append(weight)
        network = import_model(model)
        assert [v.name for v in network.graph.inputs] == ["x"]
        assert list(network.graph.initializers) == ["w"]
        onnx.checker.check_model(ir.serde.serialize_model(network))

    def test_sparse_initializers_become_dense(self) -> None:
        model = parse("g (float[3, 4] x) => (float[3, 4] y) { y = Add(x, s) }")
        values = helper.make_tensor("s", TensorProto.FLOAT, [2], [5.0, 7.0])
        indices = helper.make_tensor("i", TensorProto.INT64, [2, 2], [0, 1, 2, 3])
        model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [3, 4]))
        expected = np.zeros((3, 4), np.float32)
        expected[0, 1], expected[2, 3] = 5, 7
        x = random(3, 4)
        np.testing.assert_array_equal(run(import_model(model), {"x": x})[0], x + expected)


class TestNames:
    def test_nodes_get_unique_names_that_depend_on_the_graph_alone(self) -> None:
        model = parse("g (float[3] x) => (float[3] y) { a = Relu(x)  b = Neg(a)  c = Relu(b)  y = Neg(c) }")
        model.graph.node[1].name = model.graph.node[2].name = "same"
        for _ in range(2):
            assert [n.name for n in import_model(model).graph] == ["Relu_0", "same", "same_2", "Neg_3"]

    def test_nodes_are_sorted_where_they_are_not(self) -> None:
        model = parse("g (float[3] x) => (float[3] y) { a = Relu(x)  b = Neg(a)  y = Abs(b) }")
        nodes = list(model.graph.node)[::-1]
        copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
        del model.graph.node[:]
        model.graph.node.extend(copies)
        assert [n.op_type for n in import_model(model).graph] == ["Relu", "Neg", "Abs"]

    def test_both_names_of_the_standard_domain_are_one(self) -> None:
        model = parse(RELU)
        model.graph.node[0].domain = model.opset_import[0].domain = "ai.onnx"
        assert [n.domain for n in import_model(model).graph] == [""]


class TestOpsets:
    @pytest.mark.parametrize("opset", [7, 9, 11, 13, 17])
    def test_old_models_are_converted_and_compute_the_same(self, opset: int) -> None:
        axes = "axes = Constant <value = int64[1] {1}> ()  u = Unsqueeze(s, axes)"
        body = "g (float[2, 3] x) => (float[2, 1, 3] y) { s = Softmax <axis = 1> (x)  %s  y = Relu(u) }"
        model = parse(body % ("u = Unsqueeze <axes = [1]> (s)" if opset < 13 else axes), opset=opset)
        network = import_model(model)
        assert network.graph.opset_imports[""] == 18
        assert types(network)["y"] == "float32[2, 1, 3]"
        x = random(2, 3)
        session = onnxruntime.InferenceSession(model.SerializeToString())
        np.testing.assert_allclose(run(network, {"x": x})[0], session.run(None, {"x": x})[0], rtol=1e-5)

    @pytest.mark.parametrize("opset", [18, 21, 23])
    def test_recent_models_keep_their_opset(self, opset: int) -> None:
        assert import_model(parse(RELU, opset=opset)).graph.opset_imports[""] == opset

    def test_what_the_converter_cannot_do_stays_with_a_note(self) -> None:
        model = parse(
            "g (float[1, 1, 2, 2] x) => (float[1, 1, 4, 4] y) <float[4] s = {1, 1, 2, 2}> { y = Upsample(x, s) }",
            opset=9,
        )
        network = import_model(model)
        x = random(1, 1, 2, 2)
        expected = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]
        proto = ir.serde.serialize_model(network)
        got = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"x": x})[0]
        np.testing.assert_array_equal(got, expected)
        kept = network.graph.opset_imports[""] == 9
        assert kept == ("tactician.opset" in network.metadata_props)

    def test_too_new_an_opset_is_refused(self) -> None:
        with pytest.raises(InvalidModelError, match=r"opset 999.*install a newer onnx"):
            import_model(parse(RELU, opset=999))

    def test_an_opset_imported_twice_is_refused(self) -> None:
        model = parse(RELU)
        model.opset_import.append(helper.make_opsetid("ai.onnx", 17))
        with pytest.raises(InvalidModelError, match="twice"):
            import_model(model)


class TestShapes:
    def test_symbols_are_bound_everywhere(self) -> None:
        body = "g (float[N, 3] x, float[N, M] z) => (float[N, K] y) { y = Concat <axis = 1> (x, z) }"
        network = import_model(parse(body), {"x": (5, 3), "z": (5, 4)})
        assert types(network) == {"y": "float32[5, 7]"}
        unbound = import_model(parse(body), {"x": (5, 3)})
        assert str(tensor_type(unbound.graph.inputs[1])) == "float32[5, M]"

    def test_without_bindings_symbols_stay(self) -> None:
        assert types(import_model(parse(RELU))) == {"y": "float32[N, 3]"}

    def test_an_input_of_unknown_rank_can_be_bound(self) -> None:
        model = parse("g (float[N] x) => (y) { y = Relu(x) }")
        model.graph.input[0].type.tensor_type.ClearField("shape")
        assert types(import_model(model, {"x": (2, 3)})) == {"y": "float32[2, 3]"}

    def test_a_declared_shape_that_is_wrong_does_not_count(self) -> None:
        model = parse("g (float[4, 3] x) => (float[4, 3] y) { h = Relu(x)  y = Neg(h) }")
        model.graph.value_info.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, [9, 9]))
        assert types(import_model(model))["y"] == "float32[4, 3]"

    def test_what_depends_on_data_is_not_believed_to_be_static(self) -> None:
        model = parse("g (float[2, 2] x) => (int64[2, 3] y) { h = NonZero(x)  y = Neg(h) }")
        assert types(import_model(model)) == {"h": "int64[2, ?]", "y": "int64[2, ?]"}

    def test_shapes_that_are_computed_become_static(self) -> None:
        body = """g (float[N, 4, 6] x) => (y) {
            s = Shape(x)  i = Constant <value = int64[1] {0}> ()  n = Gather(s, i)
            r = Constant <value = int64[1] {-1}> ()  t = Concat <axis = 0> (n, r)  y = Reshape(x, t) }"""
        assert types(import_model(parse(body), {"x": (2, 4, 6)}))["y"] == "float32[2, 24]"

    @pytest.mark.parametrize(
        ("shapes", "said"),
        [
            ({"images": (1, 3)}, r"'images'.*no such input; its inputs are x \[N, 3\]"),
            ({"x": (1, 3, 2)}, r"input 'x' has 2 dimensions, \[N, 3\], but 3 are given"),
            ({"x": (1, 4)}, r"\[1, 4\] is given: 3 is fixed; give --shapes x:Nx3"),
            ({"x": (-1, 3)}, "negative"),
        ],
    )
    def test_bindings_that_do_not_fit_are_explained(
        self, shapes: dict[str, tuple[int, ...]], said: str
    ) -> None:
        with pytest.raises(ShapeError, match=said):
            import_model(parse(RELU), shapes)

    def test_one_symbol_with_two_numbers_is_refused(self) -> None:
        model = parse("g (float[N] a, float[N] b) => (float[N] y) { y = Add(a, b) }")
        with pytest.raises(ShapeError, match=r"input 'b': 'N' is given as 3, but as 2 for input 'a'"):
            import_model(model, {"a": (2,), "b": (3,)})

    def test_a_tensor_larger_than_the_machine_is_refused(self) -> None:
        body = "g (float[N, M] x) => (y) { y = Relu(x) }"
        with pytest.raises(ShapeError, match=r"GiB; this machine has"):
            import_model(parse(body), {"x": (1 << 20, 1 << 20)})


CLASHES = [
    (
        "g (float[1, 4, 8, 8] x, float[64, 3, 7, 7] w) => (y) { [conv1] y = Conv(x, w) }",
        r"Conv 'conv1': weight is \[64, 3, 7, 7\] but input has 4 channels; it needs 3 \(input 'x'",
    ),
    (
        "g (float[1, 4, 8, 8] x, float[6, 3, 7, 7] w) => (y) { [c] y = Conv <group = 2> (x, w) }",
        r"Conv 'c': .* but input has 4 channels; it needs 6 in 2 groups",
    ),
    (
        "g (float[1, 4, 8, 8] x, float[6, 3, 7, 7] w) => (y) { [c] y = ConvTranspose(x, w) }",
        "ConvTranspose 'c': .* but input has 4 channels; it needs 6",
    ),
    (
        "g (float[2, 3] x, float[4, 5] w) => (y) { [m] y = MatMul(x, w) }",
        r"MatMul 'm': 3 columns of 'x' float32\[2, 3\] do not fit 4 rows of 'w' float32\[4, 5\]",
    ),
    (
        "g (float[3, 2, 3] x, float[2, 3, 5] w) => (y) { [m] y = MatMul(x, w) }",
        "MatMul 'm': 'x' .* and 'w' .* do not broadcast: 3 meets 2",
    ),
    (
        "g (float[2, 3] x, float[3, 5] w) => (y) { [f] y = Gemm <transB = 1> (x, w) }",
        "Gemm 'f': 3 columns of 'x' .* do not fit 5 rows of 'w' .* with transB",
    ),
    (
        "g (float[2, 3] x, float[2, 4] z) => (y) { [a] y = Add(x, z) }",
        r"Add 'a': 'x' float32\[2, 3\] and 'z' float32\[2, 4\] do not broadcast: 3 meets 4",
    ),
    (
        "g (float[2, 3] x, float[3, 4] z) => (y) { [c] y = Concat <axis = 1> (x, z) }",
        "Concat 'c': 'x' .* and 'z' .* do not fit along axis 1",
    ),
    (
        "g (float[2, 3] x) => (y) <int64[2] s = {4, 5}> { [r] y = Reshape(x, s) }",
        r"Reshape 'r': 'x' float32\[2, 3\] has 6 elements; they do not fill the shape \[4, 5\]",
    ),
    (
        "g (float[2, 3] x, int64[2, 3] z) => (y) { [a] y = Add(x, z) }",
        r"Add 'a': .*inconsistent type tensor\(int64\) \(inputs: 'x' float32\[2, 3\], 'z' int64\[2, 3\]\)",
    ),
    (
        "g (float[1, 4, 8] x, float[3] s) => (y) { [n] y = BatchNormalization(x, s, s, s, s) }",
        r"BatchNormalization 'n': .*mismatch.*\(inputs: 'x' float32\[1, 4, 8\], 's' float32\[3\]",
    ),
]


@pytest.mark.parametrize(("body", "said"), CLASHES)
def test_shapes_that_clash_name_node_values_and_dimensions(body: str, said: str) -> None:
    model = parse(body)
    with pytest.raises(ShapeError, match=said):
        import_model(model)


class TestStructure:
    @pytest.mark.parametrize(
        ("body", "said"),
        [
            (
                "g (float[3] x) => (float[3] y) { y = Relu(z) }",
                "Relu that computes 'y' reads 'z', which is no input",
            ),
            (
                "g (float[3] x) => (float[3] y) { h = Relu(x) }",
                "output 'y' of the graph is computed by no node",
            ),
            (
                "g (float[3] x) => (float[3] y) { y = Relu(x)  y = Neg(x) }",
                "value 'y' of the graph is defined twice",
            ),
            (
                "g (float[3] x) => (float[3] x) { x = Relu(x) }",
                "value 'x' of the graph is defined twice: by an input",
            ),
            (
                "g (float[3] x) => (float[3] y) { [p] a = Add(x, b)  [q] b = Neg(a)  y = Relu(b) }",
                "the graph has a cycle: Add 'p' -> Neg 'q' -> Add 'p'|the graph has a cycle: Neg 'q' -> Add 'p' -> Neg 'q'",
            ),
            (
                "g (float[3] x, float[3] x) => (float[3] y) { y = Relu(x) }",
                "two inputs of the graph are called 'x'",
            ),
        ],
    )
    def test_what_is_wrong_is_named(self, body: str, said: str) -> None:
        with pytest.raises(InvalidModelError, match=said):
            import_model(parse(body))

    def test_a_graph_without_outputs_is_refused(self) -> None:
        model = parse(RELU)
        del model.graph.output[:]
        with pytest.raises(InvalidModelError, match="no outputs"):
            import_model(model)

    def test_an_attribute_that_breaks_the_specification_is_named(self) -> None:
        model = parse("g (float[3] x) => (float[3] y) { [r] y = Relu <slope = 1> (x) }")
        with pytest.raises(InvalidModelError, match=r"breaks the ONNX specification: .*slope"):
            import_model(model)

    def test_values_read_in_a_subgraph_must_be_defined_around_it(self) -> None:
        body = """g (bool c, float[3] x) => (float[3] y) {
            [choose] y = If (c) <then_branch = t () => (float[3] a) { a = Neg(x) },
                                 else_branch = e () => (float[3] b) { b = Neg(nowhere) }> }"""
        with pytest.raises(InvalidModelError, match="Neg that computes 'b' reads 'nowhere'"):
            import_model(parse(body))


class TestOperators:
    @pytest.mark.parametrize(
        ("op", "imports", "said"),
        [
            (
                "Relux",
                "",
                "'ai.onnx::Relux': neither ONNX .* (did you mean 'Relu'|.*); install the plugin that",
            ),
            (
                "acme.Gelu",
                '"acme" : 1',
                "operator 'acme::Gelu': neither ONNX .* nor a loaded plugin defines it",
            ),
            ("acme.Gelu", "", "the model does not import an opset of 'acme'"),
            ("RMSNormalization", "", "opset 18 does not have it, opset 23 does"),
        ],
    )
    def test_an_unknown_operator_is_named_with_what_to_do(self, op: str, imports: str, said: str) -> None:
        model = parse(f"g (float[3] x) => (float[3] y) {{ [here] y = {op}(x) }}", imports=imports)
        with pytest.raises(UnknownOpError, match=said) as caught:
            import_model(model)
        assert "'here'" in str(caught.value)

    def test_a_plugins_operator_is_inferred_by_the_plugin(self) -> None:
        def infer(signature: OpSignature) -> Sequence[TensorType]:
            (tensor,) = (t for t in signature.inputs if t is not None)
            return [TensorType("float16", (*tensor.dims, signature.attribute("times")))]

        ops = {"acme::Repeat": Op("acme::Repeat", infer, lambda signature, x: x)}
        body = """g (float[N, 3] x) => (y) {
            a = acme.Repeat <times = 5> (x)  b = Transpose <perm = [2, 0, 1]> (a)
            c = acme.Repeat <times = 7> (b)  y = Relu(c) }"""
        network = import_model(parse(body, imports='"acme" : 1'), {"x": (2, 3)}, ops)
        assert types(network) == {
            "a": "float16[2, 3, 5]",
            "b": "float16[5, 2, 3]",
            "c": "float16[5, 2, 3, 7]",
            "y": "float16[5, 2, 3, 7]",
        }

    def test_a_plugin_that_fails_to_infer_is_named(self) -> None:
        def infer(signature: OpSignature) -> Sequence[TensorType]:
            raise ValueError("only even sizes")

        ops = {"acme::Fold": Op("acme::Fold", infer, lambda signature, x: x)}
        model = parse("g (float[3] x) => (y) { [f] y = acme.Fold(x) }", imports='"acme" : 1')
        with pytest.raises(
            ShapeError, match=r"Fold 'f': its plugin can't infer .*float32\[3\].*only even sizes"
        ):
            import_model(model, ops=ops)


class TestFunctions:
    def test_functions_are_inlined_at_any_depth(self) -> None:
        functions = """
            <opset_import: ["" : 18], domain: "local"> twice (a) => (b) { h = Add(a, a)  b = Relu(h) }
            <opset_import: ["" : 18, "local" : 1], domain: "local"> four (a) => (b) { h = local.twice(a)  b = local.twice(h) }"""
        model = parse(
            "g (float[3] x) => (float[3] y) { h = local.four(x)  y = local.four(h) }",
            imports='"local" : 1',
            functions=functions,
        )
        network = import_model(model)
        assert not network.functions
        assert [n.op_type for n in network.graph] == ["Add", "Relu"] * 4
        x = random(3)
        np.testing.assert_array_equal(run(network, {"x": x})[0], 16 * np.maximum(x, 0))

    def test_recursive_functions_are_refused(self) -> None:
        functions = """
            <opset_import: ["" : 18, "local" : 1], domain: "local"> f (a) => (b) { b = local.g(a) }
            <opset_import: ["" : 18, "local" : 1], domain: "local"> g (a) => (b) { b = local.f(a) }"""
        model = parse(
            "m (float[3] x) => (float[3] y) { y = local.f(x) }", imports='"local" : 1', functions=functions
        )
        with pytest.raises(InvalidModelError, match="functions call themselves: f -> g -> f"):
            import_model(model)

    def test_functions_that_grow_without_limit_are_refused(self) -> None:
        first = '<opset_import: ["" : 18], domain: "local"> f0 (a) => (b) { b = Add(a, a) }'
        rest = "\n".join(
            f'<opset_import: ["" : 18, "local" : 1], domain: "local"> f{i} (a) => (b) '
            f"{{ h = local.f{i - 1}(a)  b = local.f{i - 1}(h) }}"
            for i in range(1, 40)
        )
        model = parse(
            "m (float[3] x) => (float[3] y) { y = local.f39(x) }",
            imports='"local" : 1',
            functions=first + "\n" + rest,
        )
        with pytest.raises(InvalidModelError, match="would make 549755813888 nodes"):
            import_model(model)

    def test_a_call_with_too_many_inputs_is_named(self) -> None:
        model = parse(
            "m (float[3] x) => (float[3] y) { [call] y = local.f(x, x) }",
            imports='"local" : 1',
            functions='<opset_import: ["" : 18], domain: "local"> f (a) => (b) { b = Relu(a) }',
        )
        with pytest.raises(InvalidModelError, match="f 'call' calls function 'f' with 2 inputs"):
            import_model(model)


class TestExternalData:
    def save(self, folder: Path, location: str = "weights.bin", **entries: str) -> Path:
        model = parse("g (float[2, 30] x) => (float[2, 40] y) { y = MatMul(x, w) }")
        weight = model.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[30, 40])
        weight.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, **entries}.items():
            weight.external_data.add(key=key, value=value)
        path = folder / "model.onnx"
        path.write_bytes(model.SerializeToString())
        return path

    def test_weights_are_mapped_from_their_file(self, tmp_path: Path) -> None:
        weight = random(30, 40)
        (tmp_path / "weights.bin").write_bytes(b"\0" * 64 + weight.tobytes())
        network = import_model(self.save(tmp_path, offset="64", length=str(weight.nbytes)))
        tensor = network.graph.initializers["w"].const_value
        assert isinstance(tensor, ir.ExternalTensor)
        np.testing.assert_array_equal(tensor.numpy(), weight)
        assert tensor_type(network.graph.outputs[0]) == TensorType("float32", (2, 40))

    def test_constants_within_nodes_are_read(self, tmp_path: Path) -> None:
        model = parse(
            "g (float[4] x) => (float[4] y) { c = Constant <value = float[4] {1, 2, 3, 4}> ()  y = Add(x, c) }"
        )
        tensor = model.graph.node[0].attribute[0].t
        data = random(4)
        tensor.CopyFrom(TensorProto(name="c", data_type=TensorProto.FLOAT, dims=[4]))
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="c.bin")
        (tmp_path / "c.bin").write_bytes(data.tobytes())
        path = tmp_path / "model.onnx"
        path.write_bytes(model.SerializeToString())
        np.testing.assert_array_equal(run(import_model(path), {"x": data})[0], data + data)

    @pytest.mark.parametrize(
        "location",
        ["/etc/passwd", "../weights.bin", "sub/../../weights.bin", "", "a\\b", "C:\\weights.bin", "a\0b"],
    )
    def test_a_location_outside_of_the_folder_is_refused(self, tmp_path: Path, location: str) -> None:
        (tmp_path / "weights.bin").write_bytes(bytes(4800))
        inner = tmp_path / "inner"
        inner.mkdir()
        with pytest.raises(ExternalDataError, match="tensor 'w': location .* is not read"):
            import_model(self.save(inner, location))

    @pytest.mark.parametrize("inside", [False, True])
    def test_links_are_followed_within_the_folder_only(self, tmp_path: Path, inside: bool) -> None:
        folder = tmp_path / "model"
        folder.mkdir()
        target = (folder if inside else tmp_path) / "real.bin"
        target.write_bytes(random(30, 40).tobytes())
        (folder / "weights.bin").symlink_to(target)
        path = self.save(folder)
        if inside:
            assert import_model(path).graph.initializers["w"].const_value is not None
        else:
            with pytest.raises(ExternalDataError, match="a link that leads out of the model's folder"):
                import_model(path)

    def test_a_linked_folder_is_refused_too(self, tmp_path: Path) -> None:
        outside, folder = tmp_path / "outside", tmp_path / "model"
        outside.mkdir()
        folder.mkdir()
        (outside / "weights.bin").write_bytes(bytes(4800))
        (folder / "sub").symlink_to(outside)
        with pytest.raises(ExternalDataError, match="a link that leads out"):
            import_model(self.save(folder, "sub/weights.bin"))

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ExternalDataError, match=r"tensor 'w': its file 'weights.bin' is missing"):
            import_model(self.save(tmp_path))

    @pytest.mark.parametrize(
        ("size", "entries", "said"),
        [
            (4799, {}, "needs 4800 bytes at offset 0 of 'weights.bin', which has 4799"),
            (4800, {"offset": "1"}, "needs 4800 bytes at offset 1"),
            (4800, {"offset": "-4"}, "offset -4"),
            (4800, {"offset": str(1 << 70)}, "needs 4800 bytes"),
            (9600, {"length": "9600"}, r"of shape \[30, 40\] needs 4800 bytes, but the model says"),
            (4800, {"offset": "much"}, "is no number"),
        ],
    )
    def test_offset_and_length_are_held_against_the_file(
        self, tmp_path: Path, size: int, entries: dict[str, str], said: str
    ) -> None:
        (tmp_path / "weights.bin").write_bytes(bytes(size))
        with pytest.raises(ExternalDataError, match=said):
            import_model(self.save(tmp_path, **entries))

    def test_bytes_have_no_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ExternalDataError, match="pass the model's path"):
            import_model(self.save(tmp_path).read_bytes())


def test_control_flow_and_sequences_are_kept() -> None:
    body = """g (bool c, float[3] x) => (seq(float[3]) s) {
        y = If (c) <then_branch = t () => (float[3] a) { a = Neg(x) }, else_branch = e () => (float[3] b) { b = Abs(x) }>
        s = SequenceConstruct(x, y) }"""
    network = import_model(parse(body))
    assert [n.op_type for n in network.graph] == ["If", "SequenceConstruct"]
    assert types(network)["s"] == "sequence(float32)[...]"


def test_every_error_is_one_of_ours() -> None:
    """A model for which onnx's checker has words of its own."""
    model = parse(RELU)
    model.graph.input[0].type.Clear()
    with pytest.raises(TacticianError):
        import_model(model)
