"""Fused forms: which subgraphs are found, what a fused call knows of itself, and that one node means what many did."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from fakes import make_tactic, plugin
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from tactician import FusedForm, Network
from tactician.errors import PluginError
from tactician.fusion import shortest_and_longest
from tactician.importer import import_model
from tactician.network import signatures
from tactician.plugins.reference import reference_for
from tactician.regions import Region, apply, find_regions
from tactician.signature import OpSignature
from tactician.tactics.operand_rules import first_reader, rule_for
from tactician.tactics.reduction import reduction_length
from tactician.tactics.registry import Registry
from tactician.tactics.sampling import sample_inputs
from tactician.testing import fused_signatures

ELEMENTWISE = tuple(f"ai.onnx::{name}" for name in ("Relu", "Add", "Mul", "Neg", "Cast", "Sqrt"))
PRODUCT = FusedForm("ai.onnx::MatMul", epilogue=ELEMENTWISE, prologue=ELEMENTWISE)


def network(
    nodes: str, inputs: str = "float[4, 4] x, float[4, 4] w", outputs: str = "float[4, 4] y"
) -> ir.Model:
    text = f'<ir_version: 9, opset_import: ["" : 21]> g ({inputs}) => ({outputs}) {{ {nodes} }}'
    return import_model(onnx.parser.parse_model(text))


def found(nodes: str, form: FusedForm = PRODUCT, **values: str) -> list[tuple[str, ...]]:
    return [region.names for region in find_regions(network(nodes, **values), form)]


def test_an_epilogue_is_offered_in_every_length():
    assert found("[m] a = MatMul (x, w) [r] b = Relu (a) [s] y = Add (b, w)") == [("m", "r"), ("m", "r", "s")]


def test_a_prologue_is_offered_with_and_without_what_follows():
    chain = "[n] a = Neg (x) [m] b = MatMul (a, w) [r] y = Relu (b)"
    assert found(chain) == [("m", "r"), ("n", "m"), ("n", "m", "r")]


def test_only_the_shortest_and_the_longest_around_an_anchor_are_measured():
    nodes = "[n] a = Neg (x) [m] b = MatMul (a, w) [r] c = Relu (b) [s] d = Add (c, w) [t] y = Mul (d, w)"
    regions = shortest_and_longest(find_regions(network(nodes), PRODUCT))
    assert sorted(region.names for region in regions) == [
        ("m", "r"),
        ("m", "r", "s", "t"),
        ("n", "m"),
        ("n", "m", "r", "s", "t"),
    ]


def test_a_prologue_may_be_of_both_operands_and_of_several_operators():
    nodes = "[a] a = Neg (x) [b] b = Relu (w) [c] c = Relu (a) [m] y = MatMul (c, b)"
    assert found(nodes) == [("a", "b", "c", "m")]


@pytest.mark.parametrize(
    ("nodes", "values"),
    [
        ("[m] a = MatMul (x, w) [r] y = Relu (a) [s] z = Neg (a)", {"outputs": "float[4, 4] y, float[4, 4] z"}),
        ("[m] a = MatMul (x, w) [r] y = Relu (a)", {"outputs": "float[4, 4] y, float[4, 4] a"}),
        ("[m] a = MatMul (x, w) [s] y = Add (a, t)", {"inputs": "float[1, 4] x, float[4, 4] w, float[4, 4] t"}),
        ("[m] a = MatMul (x, w) [r] y = Relu (a)", {"inputs": "float[n, 4] x, float[4, 4] w", "outputs": "float[n, 4] y"}),
        ("[m] a = MatMul (x, w) [r] y = Tanh (a)", {}),
        ("[n] a = Neg (x) [m] b = MatMul (a, w) [s] y = Tanh (b) [t] z = Tanh (a)", {"outputs": "float[4, 4] y, float[4, 4] z"}),
    ],
    ids=["read twice", "an output", "another shape", "dynamic", "not of the form", "prologue read twice"],
)  # fmt: skip
def test_what_is_no_region(nodes: str, values: dict[str, str]) -> None:
    assert found(nodes, **values) == []


def test_a_subgraph_that_reads_a_value_keeps_it_outside():
    body = "g2 () => (float[4, 4] o) { o = Relu (a) }"
    nodes = f"""[m] a = MatMul (x, w) [c] c = ReduceSum <keepdims = 0> (x) [d] d = Cast <to = 9> (c)
                [i] y = If (d) <then_branch = {body}, else_branch = {body.replace("g2", "g3")}>"""
    assert found(nodes) == []


def test_a_value_may_split_and_join():
    swish = "[m] a = MatMul (x, w) [n] b = Neg (a) [r] c = Relu (a) [s] d = Add (b, c) [t] y = Mul (a, d)"
    assert found(swish) == [("m", "n", "r", "s", "t")]
    leaves = swish.replace("[t] y = Mul (a, d)", "[t] y = Mul (a, d) [u] z = Neg (c)")
    assert found(leaves, outputs="float[4, 4] y, float[4, 4] z") == []
    tail = swish.replace("y = Mul (a, d)", "e = Mul (a, d) [u] y = Relu (e)")
    assert found(tail) == [("m", "n", "r", "s", "t"), ("m", "n", "r", "s", "t", "u")]


def test_what_follows_the_longest_region_has_one_of_its_own():
    nodes = "[a] a = Relu (x) [b] b = Neg (a) [c] c = Relu (b) [d] y = Neg (c)"
    form = FusedForm(ELEMENTWISE, epilogue=ELEMENTWISE, longest=2)
    assert found(nodes, form) == [("a", "b"), ("c", "d")]


def test_no_region_is_longer_than_its_form():
    nodes = "[m] a = MatMul (x, w) [r] b = Relu (a) [s] c = Neg (b) [t] y = Relu (c)"
    short = FusedForm("ai.onnx::MatMul", epilogue=ELEMENTWISE, longest=3)
    assert found(nodes, short) == [("m", "r"), ("m", "r", "s")]


def test_of_a_chain_of_anchors_the_first_one_has_all():
    nodes = "[a] a = Relu (x) [b] b = Neg (a) [c] y = Relu (b)"
    assert found(nodes, FusedForm(ELEMENTWISE, epilogue=ELEMENTWISE)) == [("a", "b"), ("a", "b", "c")]


def one(nodes: str, **values: str) -> OpSignature:
    """Return the call of the last region, which has the most nodes."""
    return list(find_regions(network(nodes, **values), PRODUCT))[-1].signature


def test_a_fused_call_knows_its_parts_and_where_their_inputs_come_from():
    call = one("[n] a = Neg (x) [m] b = MatMul (a, w) [s] c = Add (x, b) [t] y = Mul (c, c)")
    assert str(call) == "Neg+MatMul+Add+Mul(float32[4, 4], float32[4, 4]) -> float32[4, 4]"
    assert [(p.role, p.signature.op_type, p.inputs) for p in call.parts] == [
        ("prologue", "Neg", (0,)),
        ("anchor", "MatMul", (-1, 1)),
        ("epilogue", "Add", (0, -2)),
        ("epilogue", "Mul", (-3, -3)),
    ]
    assert call.anchor.op == "ai.onnx::MatMul" and call.anchor.anchor is call.anchor
    assert reduction_length(call) == reduction_length(call.anchor) == 4


def test_a_fused_call_survives_its_json_form():
    call = one("[m] a = MatMul (x, w) [s] y = Cast <to = 1> (a)")
    again = OpSignature.from_plain(json.loads(json.dumps(call.to_plain())))
    assert again == call and again.key == call.key
    assert "parts" not in call.anchor.to_plain()  # keys of single operators stay what they were


def test_equal_subgraphs_are_one_call_and_others_are_not():
    same, other = "[m] a = MatMul (x, w) [r] y = Relu (a)", "[p] q = MatMul (w, x) [s] y = Relu (q)"
    assert one(same).key == one(other).key
    assert one(same).key != one("[m] a = MatMul (x, w) [r] y = Neg (a)").key
    assert (
        one("[m] a = MatMul (x, w) [r] y = Cast <to = 10> (a)", outputs="float16[4, 4] y").key
        != one("[m] a = MatMul (x, w) [r] y = Cast <to = 11> (a)", outputs="double[4, 4] y").key
    )


def test_types_of_a_fused_call_are_fixed():
    call = one("[m] a = MatMul (x, w) [r] y = Relu (a)")
    with pytest.raises(ValueError, match="made of parts, whose types are fixed"):
        call.bound(call.inputs, call.outputs)


def test_inputs_have_the_values_that_their_readers_need():
    call = one(
        "[m] a = MatMul (x, w) [s] b = Sqrt (t) [d] y = Add (a, b)",
        inputs="float[4, 4] x, float[4, 4] w, float[4, 4] t",
    )
    assert [p.signature.op_type for p in call.parts] == ["MatMul", "Add"]
    form = FusedForm("ai.onnx::Sqrt", epilogue=ELEMENTWISE)
    (root,) = (r.signature for r in find_regions(network("[s] a = Sqrt (x) [d] y = Add (a, w)"), form))
    assert first_reader(root, 0) == (root.parts[0].signature, 0)
    assert first_reader(root, 1) == (root.parts[1].signature, 1)
    assert rule_for(root, 1) is None
    values = sample_inputs(root, np.random.default_rng(0))
    assert np.min(values[0]) > 0 > np.min(values[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"anchor": "ai.onnx::MatMul"}, "absorbs nothing"),
        ({"anchor": "ai.onnx::MatMul", "epilogue": ("ai.onnx::Relu",), "longest": 1}, "absorbs nothing"),
        ({"anchor": "MatMul", "epilogue": ("ai.onnx::Relu",)}, "write 'ai.onnx::MatMul'"),
        ({"anchor": "ai.onnx::MatMul", "prologue": ("Relu",)}, "write 'ai.onnx::Relu'"),
    ],
)
def test_a_form_that_can_never_match_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FusedForm(**arguments)


def test_forms_of_another_type_are_refused():
    registry = Registry()
    with pytest.raises(PluginError, match="fused_forms is .*; write a tuple of FusedForm objects"):
        registry.add(plugin(), make_tactic("Odd", fused_forms=[PRODUCT]))


def test_a_call_goes_to_tactics_of_its_form_alone():
    registry = Registry()
    narrow = FusedForm("ai.onnx::MatMul", epilogue=("ai.onnx::Relu",))
    registry.add(plugin(), make_tactic("Wide", op="acme::Other", fused_forms=(PRODUCT,)))
    registry.add(plugin(), make_tactic("Narrow", op="ai.onnx::MatMul", fused_forms=(narrow,)))
    registry.add(plugin(), make_tactic("Alone", op="ai.onnx::MatMul"))
    from fakes import FakeDevice

    def offered(call: OpSignature) -> list[str]:
        return [c.tactic.name() for c in registry.candidates(call, FakeDevice())[0]]

    assert registry.forms("fake") == [narrow, PRODUCT] and registry.forms("cpu") == []
    relu, negative = "[m] a = MatMul (x, w) [r] y = Relu (a)", "[m] a = MatMul (x, w) [r] y = Neg (a)"
    assert offered(one(relu)) == ["narrow", "wide"]
    assert offered(one(negative)) == ["wide"]
    assert offered(one(relu).anchor) == ["alone", "narrow"]


def test_signatures_for_tests_are_those_of_a_build():
    net = Network()
    x = net.input("x", "float32", (4, 4))
    net.output(net.op("Relu", x @ np.eye(4, dtype=np.float32)), "y")
    (call,) = fused_signatures(net, PRODUCT)
    assert call.op_type == "MatMul_Relu" and call.constants[1] is not None
    wanted = np.maximum(np.arange(16, dtype=np.float32).reshape(4, 4) - 8, 0)
    feeds = [np.arange(16, dtype=np.float32).reshape(4, 4) - 8, np.eye(4, dtype=np.float32)]
    assert np.array_equal(reference_for(call)(feeds)[0], wanted)


OPERATORS = {"Relu": 1, "Neg": 1, "Add": 2, "Mul": 2, "MatMul": 2}


@st.composite
def graphs(draw: st.DrawFn) -> onnx.ModelProto:
    """Draw a graph of products and elementwise operators in which values are read at random, some of them outputs."""
    names, nodes = ["x", "w"], []
    for number in range(draw(st.integers(1, 12))):
        op = draw(st.sampled_from(sorted(OPERATORS)))
        recent = st.sampled_from(names[-3:] if draw(st.booleans()) else names)
        read = [draw(recent) for _ in range(OPERATORS[op])]
        nodes.append(onnx.helper.make_node(op, read, [f"v{number}"], f"n{number}"))
        names.append(f"v{number}")
    kind = onnx.helper.make_tensor_type_proto(onnx.TensorProto.DOUBLE, (3, 3))
    outputs = {names[-1], *draw(st.lists(st.sampled_from(names[2:]), max_size=2))}
    infos = [[onnx.helper.make_value_info(n, kind) for n in group] for group in (names[:2], sorted(outputs))]
    graph = onnx.helper.make_graph(nodes, "g", *infos)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)


def disjoint(regions: Sequence[Region], order: Sequence[int]) -> list[Region]:
    taken: set[str] = set()
    kept = []
    for region in (regions[i] for i in order):
        if taken.isdisjoint(region.names):
            taken.update(region.names)
            kept.append(region)
    return kept


@settings(max_examples=150, deadline=None)
@given(graphs(), st.randoms(use_true_random=False))
def test_one_node_means_what_many_did(model: onnx.ModelProto, random: Any) -> None:
    rng = np.random.default_rng(0)
    feeds = {name: rng.standard_normal((3, 3)) for name in ("x", "w")}
    before = ReferenceEvaluator(model).run(None, feeds)
    graph = import_model(model)
    forms = (PRODUCT, FusedForm(ELEMENTWISE, epilogue=ELEMENTWISE, prologue=ELEMENTWISE, longest=4))
    regions = list({r.names: r for form in forms for r in find_regions(graph, form)}.values())
    order = list(range(len(regions)))
    random.shuffle(order)
    kept = disjoint(regions, order)
    count = graph.graph.num_nodes()
    for region in kept:
        assert 2 <= len(region.nodes) <= 6
    apply(graph, kept)
    assert graph.graph.num_nodes() == count - sum(len(r.nodes) - 1 for r in kept)
    proto = ir.serde.serialize_model(graph)
    onnx.checker.check_model(proto)
    for mine, wanted in itertools.zip_longest(ReferenceEvaluator(proto).run(None, feeds), before):
        np.testing.assert_array_equal(mine, wanted)
    calls = signatures(graph)
    for region in kept:
        assert calls[region.name].inputs == region.signature.inputs
        assert calls[region.name].body == region.signature.body
