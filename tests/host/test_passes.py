"""Passes: after each one the network is valid ONNX and computes what it computed before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from tactician import passes
from tactician.config import BuilderConfig
from tactician.errors import ConfigError, PluginError
from tactician.importer import import_model
from tactician.network import Network, signatures, tensor_type

Array = np.ndarray[Any, Any]


def parse(body: str, opset: int = 18) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>\n{body}')


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def random_feeds(network: ir.Model) -> dict[str, Array]:
    feeds = {}
    for i, value in enumerate(network.graph.inputs):
        known = tensor_type(value)
        assert known is not None
        array = random(*[d if isinstance(d, int) else 2 for d in known.shape or ()], seed=i)
        feeds[value.name or ""] = array > 0 if known.dtype == "bool" else array.astype(known.numpy_dtype)
    return feeds


def compute(network: ir.Model, feeds: dict[str, Array]) -> list[Any]:
    return list(ReferenceEvaluator(ir.serde.serialize_model(network)).run(None, feeds))


def optimize(
    network: ir.Model, *names: str, feeds: dict[str, Array] | None = None, tolerance: float = 1e-5
) -> list[str]:
    """Run the passes (all, or those named), check the network after each, and return the operators left."""
    steps = [s for s in passes.pipeline(BuilderConfig()) if not names or passes.pass_name(s) in names]
    feeds = random_feeds(network) if feeds is None else feeds
    expected = compute(network, feeds)
    interface = [[v.name for v in values] for values in (network.graph.inputs, network.graph.outputs)]
    for step in steps:
        passes.run(network, [step])
        onnx.checker.check_model(ir.serde.serialize_model(network), full_check=True)
        assert [[v.name for v in vs] for vs in (network.graph.inputs, network.graph.outputs)] == interface
        assert len({n.name for n in network.graph}) == network.graph.num_nodes()
        for result, wanted in zip(compute(network, feeds), expected, strict=True):
            compare(result, wanted, tolerance, passes.pass_name(step))
        for name, signature in signatures(network).items():
            assert None not in signature.outputs or name
    return [n.op_type for n in network.graph]


def compare(result: Any, wanted: Any, tolerance: float, where: str) -> None:
    if isinstance(wanted, list):
        assert len(result) == len(wanted)
        for r, w in zip(result, wanted, strict=True):
            compare(r, w, tolerance, where)
        return
    assert result.dtype == wanted.dtype, where
    assert result.shape == wanted.shape, where
    if wanted.dtype.kind in "biu":
        np.testing.assert_array_equal(result, wanted, err_msg=where)
    else:
        error = np.linalg.norm(np.float64(result - wanted)) / (np.linalg.norm(np.float64(wanted)) or 1)
        assert error <= tolerance, where


def optimized(
    body: str, *names: str, opset: int = 18, **bindings: tuple[int, ...]
) -> tuple[ir.Model, list[str]]:
    network = import_model(parse(body, opset), bindings)
    return network, optimize(network, *names)


class TestFolding:
    def test_constants_are_computed(self) -> None:
        body = """g (float[2, 3] x) => (y) <float[2, 3] a = {1,2,3,4,5,6}> {
            b = Transpose <perm = [1, 0]> (a)  c = Neg(b)  d = MatMul(a, c)  y = MatMul(d, x) }"""
        network, left = optimized(body)
        assert left == ["MatMul"]
        assert len(network.graph.initializers) == 1

    def test_shapes_of_static_tensors_are_constants(self) -> None:
        body = """g (float[N, 4, 6] x) => (y, s, n) {
            s = Shape(x)  n = Size(x)  e = Shape <start = -2, end = 9> (x)  i = Constant <value = int64[1] {0}> ()
            b = Gather(s, i)  t = Concat <axis = 0> (b, e)  r = Relu(x)  y = Reshape(r, t) }"""
        network, left = optimized(body, x=(2, 4, 6))
        assert left == ["Relu"]
        assert [str(tensor_type(v)) for v in network.graph.outputs] == [
            "float32[2, 4, 6]",
            "int64[3]",
            "int64[]",
        ]

    def test_a_shape_that_becomes_constant_makes_what_follows_static(self) -> None:
        body = """g (float[2, 12] x) => (y) <int64[2] a = {9, 16}, float two = {2}> {
            f = Cast <to = 1> (a)  r = Pow(f, h)  t = Cast <to = 7> (r)  v = Reshape(x, t)  y = Relu(v) }"""
        network = import_model(parse(body.replace("two = {2}", "h = {0.5}").replace("12] x", "6] x")))
        assert tensor_type(network.graph.outputs[0]) != tensor_type(network.graph.inputs[0])
        assert optimize(network) == ["Reshape", "Relu"]
        assert str(tensor_type(network.graph.outputs[0])) == "float32[3, 4]"

    @pytest.mark.parametrize("condition", [0, 1])
    def test_a_branch_on_a_constant_replaces_its_if(self, condition: int) -> None:
        body = f"""g (float[3] x) => (float[3] y) <bool c = {{{condition}}}> {{
            h = Neg(x)
            b = If (c) <then_branch = t () => (float[3] p) {{ k = Add(h, x)  p = Exp(k) }},
                        else_branch = e () => (float[3] q) {{ k = Mul(h, h)  q = Sqrt(k) }}>
            y = Add(b, h) }}"""
        _, left = optimized(body)
        assert "If" not in left
        assert ("Exp" in left) == bool(condition)

    def test_a_branch_on_data_stays(self) -> None:
        body = """g (bool c, float[3] x) => (float[3] y) {
            y = If (c) <then_branch = t () => (float[3] p) { one = Constant <value = float {1}> ()  p = Add(one, x) },
                        else_branch = e () => (float[3] q) { q = Sqrt(x) }> }"""
        assert optimized(body)[1] == ["If"]

    def test_loops_with_constants_inside(self) -> None:
        body = """g (float[3] x) => (float[3] y) <int64 n = {4}, bool go = {1}> {
            y = Loop (n, go, x) <body = b (int64 i, bool c, float[3] s) => (bool d, float[3] t) {
                d = Identity(c)  two = Constant <value = float {2}> ()  four = Mul(two, two)  t = Add(s, four) }> }"""
        assert optimized(body)[1] == ["Loop"]

    def test_random_numbers_are_not_constants(self) -> None:
        body = "g (float[3] x) => (y) { r = RandomNormal <shape = [3], seed = 1.0> ()  y = Add(x, r) }"
        network = import_model(parse(body))
        passes.run(network, passes.pipeline(BuilderConfig()))
        assert [n.op_type for n in network.graph] == ["RandomNormal", "Add"]

    def test_quantized_constants_stay_small(self) -> None:
        body = """g (float[3] x) => (y) <int8[3] w = {1, 2, 3}, float s = {0.5}, int8 z = {0}> {
            d = DequantizeLinear(w, s, z)  y = Add(x, d) }"""
        assert optimized(body, opset=21)[1] == ["DequantizeLinear", "Add"]

    def test_a_cast_keeps_what_it_does_out_of_range(self) -> None:
        body = """g (float[4] x, float8e4m3fn[1] like) => (y) { y = CastLike <saturate = 0> (x, like) }"""
        network = import_model(parse(body, 19))
        passes.run(network, passes.pipeline(BuilderConfig()))
        (node,) = network.graph
        assert node.op_type == "Cast"
        assert node.attributes["saturate"].as_int() == 0

    def test_outputs_that_are_constants_keep_their_names(self) -> None:
        body = "g (float[3] x) => (a, b, y) { a = Constant <value = float[2] {1, 2}> ()  b = Neg(a)  y = Relu(x) }"
        network, left = optimized(body)
        assert left == ["Relu"]
        assert [v.name for v in network.graph.outputs] == ["a", "b", "y"]

    def test_sequences(self) -> None:
        body = """g (float[4, 2] x) => (y) <int64 i = {1}> {
            s = SplitToSequence <axis = 0, keepdims = 1> (x)  y = SequenceAt(s, i) }"""
        optimized(body)


NO_OPS = {
    "Identity": "h = Identity(a)",
    "Dropout": "h = Dropout(a, ratio)",
    "Cast": "h = Cast <to = 1> (a)",
    "Reshape": "h = Reshape(a, same)",
    "Transpose": "h = Transpose <perm = [0, 1, 2]> (a)",
    "Pad": "h = Pad(a, zeros)",
    "Slice": "h = Slice(a, start, stop, axes)",
    "Concat": "h = Concat <axis = 1> (a)",
    "Sum": "h = Sum(a)",
    "Expand": "h = Expand(a, ones)",
    "Tile": "h = Tile(a, ones)",
}
CHANGES = {
    "Dropout in training": "h, mask = Dropout <seed = 3> (a, none, training)",
    "Cast": "k = Cast <to = 11> (a)  h = Cast <to = 1> (k)",
    "Reshape": "h = Reshape(a, flat)",
    "Transpose": "h = Transpose <perm = [0, 2, 1]> (a)",
    "Transpose by default": "h = Transpose(a)",
    "Pad": "h = Pad(a, some)",
    "Slice that reverses": "h = Slice(a, last, first, axes, back)",
    "Concat": "h = Concat <axis = 1> (a, a)",
}
CONSTANTS = """<int64[3] same = {2, 3, 3}, int64[2] flat = {2, 9}, int64[6] zeros = {0, 0, 0, 0, 0, 0},
    int64[6] some = {0, 1, 0, 0, 0, 0}, int64[1] start = {0}, int64[1] stop = {9223372036854775807}, int64[1] axes = {1},
    int64[1] last = {-1}, int64[1] first = {-9223372036854775807}, int64[1] back = {-1}, int64[3] ones = {1, 1, 1},
    float ratio = {0.5}, float none = {0.5}, bool training = {1}>"""


class TestNoOps:
    @pytest.mark.parametrize("node", NO_OPS.values(), ids=NO_OPS)
    @pytest.mark.parametrize("end", ["y = Neg(h)", ""])
    def test_what_changes_nothing_goes(self, node: str, end: str) -> None:
        body = node if end else node.replace("h = ", "y = ")
        _, left = optimized(f"g (float[2, 3, 3] x) => (y) {CONSTANTS} {{ a = Relu(x)  {body}  {end} }}")
        assert left == ["Relu", "Neg"] if end else ["Relu"]

    @pytest.mark.parametrize("node", CHANGES.values(), ids=CHANGES)
    def test_what_changes_something_stays(self, node: str) -> None:
        network = import_model(
            parse(f"g (float[2, 3, 3] x) => (y) {CONSTANTS} {{ a = Relu(x)  {node}  y = Neg(h) }}")
        )
        before = network.graph.num_nodes()
        passes.run(network, passes.pipeline(BuilderConfig()))
        assert network.graph.num_nodes() == before

    def test_an_output_keeps_a_value_of_its_own(self) -> None:
        body = "g (float[3] x) => (a, b, c, d) { a = Identity(x)  h = Relu(x)  b = Identity(h)  c = Identity(h)  d = Identity(b) }"
        network, _ = optimized(body)
        assert len({id(v) for v in network.graph.outputs}) == 4

    def test_a_mask_that_is_read_stays_all_true(self) -> None:
        network, _ = optimized("g (float[3] x) => (y, m) { h, m = Dropout(x)  y = Neg(h) }")
        assert compute(network, {"x": random(3)})[1].tolist() == [True] * 3

    def test_readers_in_subgraphs_follow(self) -> None:
        body = """g (bool c, float[3] x) => (float[3] y) { r = Relu(x)  h = Identity(r)
            y = If (c) <then_branch = t () => (float[3] p) { p = Neg(h) }, else_branch = e () => (float[3] q) { q = Abs(h) }> }"""
        assert optimized(body)[1] == ["Relu", "If"]


class TestBatchNorm:
    def model(
        self,
        op: str,
        x: Array,
        weight: Array,
        bias: Array | None = None,
        dtype: str = "float32",
        shared: bool = False,
        **attributes: Any,
    ) -> ir.Model:
        net = Network(opset=18)
        kind = np.dtype(dtype)
        source = net.input("x", dtype, x.shape)
        w = net.constant(weight.astype(kind), "w")
        inputs = [source, w] if bias is None else [source, w, net.constant(bias.astype(kind), "b")]
        y = net.op(op, *inputs, name="linear", **attributes)
        channels = y.shape[1]
        scale, shift, mean = (random(channels, seed=s).astype(kind) for s in (1, 2, 3))
        variance = np.random.default_rng(4).uniform(0.3, 2, channels).astype(kind)
        normal = net.op("BatchNormalization", y, scale, shift, mean, variance, epsilon=1e-3)
        net.output(net.op("Relu", normal), "y")
        if shared:
            net.output(net.op(op, *inputs, **attributes), "other")
        return import_model(net)

    @pytest.mark.parametrize("bias", [None, 4])
    @pytest.mark.parametrize("shared", [False, True])
    def test_conv(self, bias: int | None, shared: bool) -> None:
        x, w = random(2, 6, 7, 7), random(4, 3, 3, 3)
        network = self.model(
            "Conv", x, w, None if bias is None else random(bias), shared=shared, group=2, pads=[1] * 4
        )
        assert optimize(network) == ["Conv", "Relu"] + ["Conv"] * shared
        assert network.graph[0].name == "linear"

    @pytest.mark.parametrize("group", [1, 2])
    def test_conv_transpose(self, group: int) -> None:
        network = self.model(
            "ConvTranspose", random(1, 4, 5, 5), random(4, 3, 3, 3), group=group, strides=[2, 2]
        )
        expected = compute_by_onnxruntime(network)
        passes.run(network, passes.pipeline(BuilderConfig()))
        assert [n.op_type for n in network.graph] == ["ConvTranspose", "Relu"]
        np.testing.assert_allclose(compute_by_onnxruntime(network), expected, rtol=1e-3, atol=1e-4)

    @pytest.mark.parametrize("transposed", [0, 1])
    @pytest.mark.parametrize("bias", [None, (5,), (1,), ()])
    def test_gemm(self, transposed: int, bias: tuple[int, ...] | None) -> None:
        w = random(5, 6) if transposed else random(6, 5)
        b = None if bias is None else random(*bias)
        network = self.model("Gemm", random(3, 6), w, b, transB=transposed, alpha=0.7, beta=0.3)
        assert optimize(network) == ["Gemm", "Relu"]

    def test_half_precision_is_rounded_once(self) -> None:
        x, w = random(1, 16, 6, 6), random(8, 16, 3, 3)
        network = self.model("Conv", x, w, random(8), dtype="float16")
        feeds = {"x": x.astype(np.float16)}
        assert optimize(network, feeds=feeds, tolerance=3e-3) == ["Conv", "Relu"]
        assert all(v.dtype == ir.DataType.FLOAT16 for v in network.graph.initializers.values())

    @pytest.mark.parametrize(
        "body",
        [
            "y, m, v = BatchNormalization <training_mode = 1> (c, s, s, s, s)",
            "h = BatchNormalization(c, s, s, s, s)  y = Add(h, c)",
            "y = BatchNormalization(c, s, t, s, s)",
        ],
    )
    def test_what_can_not_be_folded_stays(self, body: str) -> None:
        outputs = "y, m, v" if "m, v" in body else "y"
        network = import_model(
            parse(
                f"g (float[1, 2, 4, 4] x, float[2] t) => ({outputs}) <float[2, 2, 1, 1] w = {{1, 2, 3, 4}}, float[2] s = {{1, 2}}> "
                f"{{ c = Conv(x, w)  {body} }}"
            )
        )
        optimize(network)
        assert "BatchNormalization" in [n.op_type for n in network.graph]


def compute_by_onnxruntime(network: ir.Model) -> Array:
    session = onnxruntime.InferenceSession(ir.serde.serialize_model(network).SerializeToString())
    return np.asarray(session.run(None, random_feeds(network))[0])


class TestMerging:
    def test_what_computes_the_same_is_computed_once(self) -> None:
        body = """g (float[3] x) => (y) { a = Relu(x)  b = Relu(x)  c = Mul(a, a)  d = Mul(b, b)  y = Add(c, d) }"""
        assert optimized(body)[1] == ["Relu", "Mul", "Add"]

    def test_equal_small_constants_are_one(self) -> None:
        body = "g (float[3] x) => (y) <float a = {2}, float b = {2}> { p = Mul(x, a)  q = Mul(x, b)  y = Add(p, q) }"
        network, left = optimized(body)
        assert left == ["Mul", "Add"]
        assert len(network.graph.initializers) == 1

    def test_outputs_that_are_the_same_keep_their_names(self) -> None:
        _, left = optimized("g (float[3] x) => (a, b) { a = Relu(x)  b = Relu(x) }")
        assert sorted(left) == ["Identity", "Relu"]

    def test_an_output_that_only_one_of_two_has_is_kept(self) -> None:
        body = """g (float[1, 1, 4, 4] x) => (y) {
            a = MaxPool <kernel_shape = [2, 2]> (x)  b, i = MaxPool <kernel_shape = [2, 2]> (x)
            c, = MaxPool <kernel_shape = [2, 2]> (x)  j = Cast <to = 1> (i)  p = Add(a, b)  q = Add(p, c)  y = Add(q, j) }"""
        optimized(body.replace("c, =", "c ="))

    def test_random_numbers_are_not_the_same(self) -> None:
        body = "g (float[3] x) => (y) { a = RandomNormalLike(x)  b = RandomNormalLike(x)  y = Sub(a, b) }"
        network = import_model(parse(body))
        passes.run(network, passes.pipeline(BuilderConfig()))
        assert network.graph.num_nodes() == 3


class TestDeadCode:
    def test_what_nobody_reads_goes(self) -> None:
        body = "g (float[3] x, float[3] unused) => (y) <float[3] w = {1, 2, 3}> { a = Relu(x)  b = Add(a, w)  y = Neg(a) }"
        network, left = optimized(body)
        assert left == ["Relu", "Neg"]
        assert not network.graph.initializers
        assert len(network.graph.inputs) == 2

    def test_outputs_of_nodes_that_nobody_reads_go(self) -> None:
        body = "g (float[1, 1, 4, 4] x) => (y) { y, i = MaxPool <kernel_shape = [2, 2]> (x) }"
        network, _ = optimized(body)
        assert len(network.graph[0].outputs) == 1


class TestPipeline:
    def test_passes_are_left_out_by_name(self) -> None:
        names = [passes.pass_name(s) for s in passes.pipeline(BuilderConfig())]
        left = [
            passes.pass_name(s)
            for s in passes.pipeline(BuilderConfig(without=("fold_batch_norm", "merge_common")))
        ]
        assert left == [n for n in names if n not in ("fold_batch_norm", "merge_common")]

    def test_an_unknown_name_lists_the_passes(self) -> None:
        with pytest.raises(
            ConfigError,
            match=r"fold_constant: there is no such pass \(did you mean 'fold_constants'\?\); the passes are lift_",
        ):
            passes.pipeline(BuilderConfig(without=("fold_constant",)))

    def test_stages_are_written_and_reported(self, tmp_path: Path) -> None:
        model = models.resnet50(image=32, width=4, blocks=(1, 1, 1, 1), batch_norm=True)
        seen: list[str] = []
        network = import_model(model)
        reports = passes.run(
            network,
            passes.pipeline(BuilderConfig()),
            tmp_path / "stages",
            lambda report: seen.append(report.name),
        )
        files = sorted(tmp_path.joinpath("stages").iterdir())
        assert [f.name for f in files] == [f"{i:02d}_{r.name}.onnx" for i, r in enumerate(reports)]
        assert seen == [r.name for r in reports]
        fold = next(r for r in reports if r.name == "fold_batch_norm")
        assert fold.nodes_before - fold.nodes_after == sum(
            n.op_type == "BatchNormalization" for n in model.graph.node
        )
        x = random(1, 3, 32, 32)
        expected = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"image": x})[0]
        for file in files:
            result = onnxruntime.InferenceSession(file).run(None, {"image": x})[0]
            assert np.linalg.norm(result - expected) / np.linalg.norm(expected) < 1e-5, file

    def test_stages_of_networks_with_external_weights_are_whole(self, tmp_path: Path) -> None:
        model = parse("g (float[2, 40] x) => (float[2, 40] y) { y = MatMul(x, w) }")
        model.graph.initializer.append(onnx.numpy_helper.from_array(random(40, 40), "w"))
        path = tmp_path / "model" / "model.onnx"
        path.parent.mkdir()
        onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
        network = import_model(path)
        passes.run(network, passes.pipeline(BuilderConfig()), tmp_path / "stages")
        x = random(2, 40, seed=1)
        last = sorted((tmp_path / "stages").glob("*.onnx"))[-1]
        result = onnxruntime.InferenceSession(last).run(None, {"x": x})[0]
        np.testing.assert_allclose(result, x @ random(40, 40), rtol=1e-4, atol=1e-5)
        assert isinstance(network.graph.initializers["w"].const_value, ir.ExternalTensor)

    def test_a_plugins_pass_runs_last_and_a_failing_one_is_named(self) -> None:
        class Swap(ir.passes.InPlacePass):
            name = "acme_swap"

            def call(self, model: ir.Model) -> ir.passes.PassResult:
                for node in model.graph:
                    if node.op_type == "Relu":
                        raise ValueError("no Relu, please")
                return ir.passes.PassResult(model, modified=False)

        steps = passes.pipeline(BuilderConfig(), [Swap()])
        assert passes.pass_name(steps[-1]) == "acme_swap"
        passes.run(import_model(parse("g (float[3] x) => (y) { y = Neg(x) }")), steps)
        with pytest.raises(
            PluginError, match=r"pass 'acme_swap' of .* failed: ValueError: no Relu.*--without acme_swap"
        ):
            passes.run(import_model(parse("g (float[3] x) => (y) { y = Relu(x) }")), steps)


def test_whole_models_keep_their_meaning() -> None:
    for model in (
        models.resnet50(image=32, width=8, blocks=(1, 1, 1, 1), batch_norm=True),
        models.bert_encoder(layers=1, hidden=32, heads=2, seq=6),
    ):
        optimize(import_model(model))


Build = Callable[[st.DataObject, Network, list[Any]], Any]


def build_network(data: st.DataObject) -> Network:
    """Draw a small network out of what the passes look for, and of what they must leave alone."""
    net = Network(opset=18)
    shape = data.draw(st.sampled_from([(2, 3), (1, 4, 2), (3,)]), "shape")
    values = [net.input("x", "float32", shape), net.input("z", "float32", shape)]
    values.append(net.constant(random(*shape, seed=5), "k"))
    for step in range(data.draw(st.integers(1, 10), "nodes")):
        kind = data.draw(st.sampled_from(sorted(STEPS)), f"node {step}")
        values.append(STEPS[kind](data, net, values))
    for i, index in enumerate(
        data.draw(st.lists(st.integers(0, len(values) - 1), min_size=1, max_size=3), "outputs")
    ):
        net.output(values[index], f"out{i}")
    return net


def pick(data: st.DataObject, values: list[Any]) -> Any:
    return values[data.draw(st.integers(0, len(values) - 1), "value")]


def shaped(op: str, *rest: Any, **attributes: Any) -> Build:
    return lambda data, net, values: net.op(op, pick(data, values), *rest, **attributes)


def _binary(data: st.DataObject, net: Network, values: list[Any]) -> Any:
    op = data.draw(st.sampled_from(["Add", "Mul", "Sub", "Max"]), "operator")
    return net.op(op, pick(data, values), pick(data, values))


def _reshaped(data: st.DataObject, net: Network, values: list[Any]) -> Any:
    x = pick(data, values)
    flat = net.op("Reshape", x, np.array([-1]))
    return net.op("Reshape", net.op("Tanh", flat), net.op("Shape", x))


def _transposed_twice(data: st.DataObject, net: Network, values: list[Any]) -> Any:
    x = pick(data, values)
    order = data.draw(st.permutations(range(len(x.shape))), "order")
    back = [order.index(i) for i in range(len(order))]
    return net.op("Transpose", net.op("Transpose", x, perm=list(order)), perm=back)


def _split(data: st.DataObject, net: Network, values: list[Any]) -> Any:
    x = pick(data, values)
    twice = net.op("Concat", x, pick(data, values), axis=0)
    first, second = net.op("Split", twice, axis=0, num_outputs=2, outputs=2)
    return data.draw(st.sampled_from([first, second]), "half")


def _sliced(data: st.DataObject, net: Network, values: list[Any]) -> Any:
    step = data.draw(st.sampled_from([1, -1]), "step")
    start, end = (0, np.iinfo(np.int64).max) if step == 1 else (-1, np.iinfo(np.int64).min)
    return net.op("Slice", pick(data, values), *(np.array([v]) for v in (start, end, 0, step)))


def _expanded(data: st.DataObject, net: Network, values: list[Any]) -> Any:
    x = pick(data, values)
    filled = net.op(
        "ConstantOfShape", net.op("Shape", x), value=onnx.numpy_helper.from_array(np.float32([2.5]))
    )
    return net.op("Where", net.op("Greater", x, filled), x, filled)


def _casts(data: st.DataObject, net: Network, values: list[Any]) -> Any:
    kind = data.draw(st.sampled_from([1, 11, 10, 7]), "type")
    return net.op("CastLike", net.op("Cast", pick(data, values), to=kind), values[0])


STEPS: dict[str, Build] = {
    "relu": shaped("Relu"),
    "neg": shaped("Neg"),
    "sigmoid": shaped("Sigmoid"),
    "identity": shaped("Identity"),
    "dropout": shaped("Dropout"),
    "cast": shaped("Cast", to=1),
    "concat of one": shaped("Concat", axis=0),
    "softmax": shaped("Softmax", axis=-1),
    "binary": _binary,
    "reshape": _reshaped,
    "transpose": _transposed_twice,
    "split": _split,
    "slice": _sliced,
    "expand": _expanded,
    "casts": _casts,
}


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_random_networks_keep_their_meaning(data: st.DataObject) -> None:
    network = import_model(build_network(data))
    left = optimize(network)
    assert not {"Dropout", "CastLike", "Shape", "ConstantOfShape"} & set(left)
