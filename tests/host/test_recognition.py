"""Recognition: how views lie in their sources, and attention found in all of its spellings, with reasons where it is none."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import tactician
from attention_spellings import (
    HIDDEN,
    JOIN,
    JOINED,
    SPELLINGS,
    SPLIT,
    TRANSPOSED_KEYS,
    B,
    D,
    H,
    S,
    Spelling,
    attention_model,
)
from hypothesis import given
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from tactician.config import BuilderConfig
from tactician.errors import ConfigError
from tactician.importer import import_model
from tactician.recognition import Missed, Recognised
from tactician.recognition.layout import Layout
from tactician.recognition.recognise import RECOGNISERS, recognise
from tactician.regions import apply, recognised_region
from tactician.report.explain import explain

PRODUCT = "[qk] s = MatMul (qh, ks)"
WEIGH = f"[pv] yh = MatMul (w, vh) {JOIN}"
Run = Callable[..., tuple[int, str, str]]
Step = tuple[str, tuple[int, ...]]


def offsets(layout: Layout) -> Any:
    """Return, for each element of a view, the element of its source."""
    found = np.zeros((), np.int64)
    for dim in layout.dims:
        along = np.zeros((), np.int64)
        for size, stride in dim:
            along = np.add.outer(along, np.arange(size) * stride)
        found = np.add.outer(found, along.reshape(-1))
    return found.reshape(layout.shape)


@st.composite
def chains(draw: st.DrawFn) -> tuple[tuple[int, ...], list[Step]]:
    """Draw a shape and views of it, one after the other."""
    sizes = st.sampled_from([1, 2, 3, 4, 6])
    start = shape = tuple(draw(st.lists(sizes, min_size=1, max_size=4)))
    steps: list[Step] = []
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["reshape", "transpose", "expand"]))
        if kind == "reshape":
            left, made = math.prod(shape), []
            while left > 1:
                made.append(draw(st.sampled_from([n for n in range(2, left + 1) if left % n == 0])))
                left //= made[-1]
            step: Step = kind, tuple(made)
            shape = step[1]
        elif kind == "transpose":
            step = kind, tuple(draw(st.permutations(range(len(shape)))))
            shape = tuple(shape[i] for i in step[1])
        else:
            step = kind, tuple(draw(sizes) if n == 1 else n for n in shape)
            shape = step[1]
        steps.append(step)
    return start, steps


@given(chains())
def test_a_layout_tells_where_each_element_lies(chain: tuple[tuple[int, ...], list[Step]]) -> None:
    shape, steps = chain
    array = np.arange(math.prod(shape)).reshape(shape)
    layout: Layout | None = Layout.contiguous(shape)
    for kind, argument in steps:
        assert layout is not None
        match kind:
            case "reshape":
                array, layout = array.reshape(argument), layout.reshaped(argument)
            case "transpose":
                array, layout = array.transpose(argument), layout.transposed(argument)
            case "expand":
                array, layout = np.broadcast_to(array, argument), layout.expanded(argument)
        if layout is None:
            return  # a digit would have to be cut unevenly: nothing is said
        assert layout.shape == array.shape
        assert np.array_equal(offsets(layout), array)


def test_layouts_of_equal_meaning_are_equal() -> None:
    rows = Layout.contiguous((2, 6, 32)).reshaped((2, 6, 4, 8))
    assert rows is not None
    assert rows.transposed((0, 2, 1, 3)).transposed((0, 2, 1, 3)).reshaped((2, 6, 32)) == Layout.contiguous(
        (2, 6, 32)
    )
    assert Layout.contiguous((1, 6, 1)).reshaped((6,)) == Layout.contiguous((6,))
    assert Layout.contiguous((6,)).reshaped((2, 3)) is not None
    cut = Layout.contiguous((2, 3)).transposed((1, 0)).reshaped((2, 3))
    assert cut is None
    assert Layout.contiguous((2, 3)).expanded((2, 4)) is None


def network(spelling: Spelling) -> ir.Model:
    return import_model(attention_model(spelling.nodes, spelling.inputs, spelling.output, spelling.opset))


def feeds(model: onnx.ModelProto) -> dict[str, Any]:
    rng = np.random.default_rng(5)
    shapes = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in model.graph.input}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def one_call(found: Recognised, inputs: Sequence[Any]) -> Any:
    """Run the call that something was recognised as by ONNX's reference."""
    signature = found.signature
    names = [f"i{i}" for i in range(len(inputs))]
    node = onnx.helper.make_node("Attention", names, ["y"], **dict(signature.attributes))
    values = [
        onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, a.shape)
        for n, a in zip(names, inputs, strict=True)
    ]
    result = onnx.helper.make_empty_tensor_value_info("y")
    graph = onnx.helper.make_graph([node], "g", values, [result])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", signature.version)])
    return ReferenceEvaluator(model).run(None, dict(zip(names, inputs, strict=True)))[0]


@pytest.mark.parametrize("name", list(SPELLINGS))
def test_attention_is_found(name: str) -> None:
    spelling = SPELLINGS[name]
    model = network(spelling)
    plain = ir.serde.serialize_model(model)
    given = feeds(plain)
    (wanted,) = ReferenceEvaluator(plain).run(None, given)
    (found,), missed = recognise(model, RECOGNISERS)
    assert missed == []
    shapes = tuple(t.dims for t in (*found.signature.inputs, *found.signature.outputs) if t is not None)
    assert shapes == spelling.shapes
    attributes = dict(found.signature.attributes)
    assert attributes.pop("scale") == pytest.approx(spelling.scale, rel=1e-6)
    assert attributes.items() >= spelling.attributes.items()
    assert attributes.keys() - spelling.attributes.keys() <= {"softcap"}
    # the call means what the nodes did, and so does the node that takes their place
    assert all(value.is_graph_input() for value in found.inputs)
    got = one_call(found, [given[str(v.name)] for v in found.inputs])
    assert np.allclose(got.reshape(wanted.shape), wanted, rtol=1e-5, atol=1e-6)
    apply(model, [recognised_region(model, found)])
    fused = ir.serde.serialize_model(model)
    onnx.checker.check_model(fused)
    assert len(fused.graph.node) <= 2
    assert np.allclose(ReferenceEvaluator(fused).run(None, given)[0], wanted, rtol=1e-6, atol=1e-7)


def test_what_others_read_stays() -> None:
    """A transposed query that is an output too: the call reads the query, the transpose stays for the output."""
    nodes = f"{SPLIT}{TRANSPOSED_KEYS} {PRODUCT} [sm] w = Softmax (s) {WEIGH}"
    output = f"float[{B}, {S}, {HIDDEN}] y, float[{B}, {H}, {S}, {D}] qh"
    model = import_model(attention_model(nodes, JOINED, output))
    plain = ir.serde.serialize_model(model)
    given = feeds(plain)
    (found,), _ = recognise(model, RECOGNISERS)
    region = recognised_region(model, found)
    assert not {"qr", "qt"} & set(region.names)
    assert {"qr", "qt"} < {node.name for node in found.nodes}
    apply(model, [region])
    assert [n.name for n in model.graph] == ["qr", "qt", region.name]
    fused = ir.serde.serialize_model(model)
    for got, wanted in zip(
        ReferenceEvaluator(fused).run(None, given), ReferenceEvaluator(plain).run(None, given), strict=True
    ):
        assert np.allclose(got, wanted, rtol=1e-6, atol=1e-7)


def test_queries_that_are_keys_and_values_too() -> None:
    split = SPLIT.replace("(k,", "(q,").replace("(v,", "(q,")
    nodes = f"{split}{TRANSPOSED_KEYS} {PRODUCT} [sm] w = Softmax (s) {WEIGH}"
    model = import_model(
        attention_model(nodes, f"float[{B}, {S}, {HIDDEN}] q", f"float[{B}, {S}, {HIDDEN}] y")
    )
    plain = ir.serde.serialize_model(model)
    given = feeds(plain)
    (found,), _ = recognise(model, RECOGNISERS)
    assert [v.name for v in found.inputs] == ["q"] * 3
    apply(model, [recognised_region(model, found)])
    fused = ir.serde.serialize_model(model)
    onnx.checker.check_model(fused)
    assert np.allclose(
        ReferenceEvaluator(fused).run(None, given)[0],
        ReferenceEvaluator(plain).run(None, given)[0],
        rtol=1e-6,
    )


def test_a_softmax_in_float32_of_halves() -> None:
    nodes = (
        f"{SPLIT}{TRANSPOSED_KEYS} [qk] s = MatMul (qh, ks) [up] f = Cast <to = 1> (s) [sm] w = Softmax (f) "
        f"[down] p = Cast <to = 10> (w) [pv] yh = MatMul (p, vh) {JOIN}"
    )
    model = import_model(
        attention_model(nodes, JOINED.replace("float", "float16"), f"float16[{B}, {S}, {HIDDEN}] y")
    )
    (found,), missed = recognise(model, RECOGNISERS)
    assert missed == []
    assert {"up", "down"} < {node.name for node in found.nodes}
    assert {t.dtype for t in found.signature.inputs if t} == {"float16"}


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        (f"{PRODUCT} [sm] w = Softmax <axis = 1> (s) {WEIGH}", "the softmax is not over the last dimension"),
        (f"{PRODUCT} [sm] w = Softmax (s) {WEIGH} [more] z = ReduceMax (w)", "'w' is read by others too"),
        (f"{PRODUCT} [n] n = Mul (s, negative) [sm] w = Softmax (n) {WEIGH}", "scores times -0.5, values times 1.0"),
        (
            f"{PRODUCT} [a] a = Add (s, later) [b] b = Add (a, zeros) [sm] w = Softmax (b) {WEIGH}",
            "Add 'a' stands between the product and the softmax",
        ),
        (
            f"{PRODUCT} [a] a = Add (s, later) [n] n = Mul (a, root) [sm] w = Softmax (n) {WEIGH}",
            "Add 'a' stands between the product and the softmax",
        ),
        (
            f"{PRODUCT} [where] m = Where (some, s, least) [sm] w = Softmax (m) {WEIGH}",
            "a mask by Where may leave a query without any key",
        ),
        (f"{PRODUCT} [exp] e = Exp (s) [sm] w = Softmax (e) {WEIGH}", None),
        ("[sm] w = Softmax (q) [y] y = Relu (w)", None),
        (
            f"[qk] s = MatMul (qh, turned) [sm] w = Softmax (s) {WEIGH}",
            "queries, keys or values are not heads of a tensor as Attention takes them",
        ),
    ],
)  # fmt: skip
def test_a_near_miss_has_a_reason(nodes: str, reason: str | None) -> None:
    if "vh" in nodes:
        nodes = f"{SPLIT}{TRANSPOSED_KEYS}{nodes}"
    inputs = f"{JOINED}, bool[{S}, {S}] some, float[{B}, {H}, {D}, {S}] turned"
    output = f"float[{B}, {S}, {HIDDEN}] y" + (", float[1, 1, 1, 1] z" if " z =" in nodes else "")
    found, missed = recognise(import_model(attention_model(nodes, inputs, output)), RECOGNISERS)
    assert found == []
    assert missed == ([] if reason is None else [Missed("attention", "sm", reason)])


def test_a_build_races_the_call_and_tells(tmp_path: Any) -> None:
    spelling = SPELLINGS["torch, masked"]
    proto = attention_model(spelling.nodes, spelling.inputs, spelling.output)
    config = BuilderConfig(target="cpu", plugins=("builtin",), timing_cache=tmp_path / "cache", isolate=False)
    engine = tactician.build(proto, config)
    fusion = next(f for f in engine.report.fusions if f.signature.startswith("Attention("))
    assert fusion.seconds is not None and fusion.seconds_apart is not None
    given = feeds(proto)
    (wanted,) = ReferenceEvaluator(proto).run(None, given)
    assert np.allclose(tactician.Session(engine).run(given)["y"], wanted, rtol=1e-4, atol=1e-5)
    plain = tactician.build(proto, BuilderConfig(**{**vars_of(config), "without": ("attention",)}))
    assert not any(f.signature.startswith("Attention(") for f in plain.report.fusions)
    with pytest.raises(ConfigError, match="did you mean 'attention'"):
        tactician.build(proto, BuilderConfig(**{**vars_of(config), "without": ("atention",)}))


def vars_of(config: BuilderConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in ("target", "plugins", "timing_cache", "isolate")}


def test_explain_says_why_there_is_no_attention(tmp_path: Any) -> None:
    nodes = f"{SPLIT}{TRANSPOSED_KEYS} {PRODUCT} [sm] w = Softmax <axis = 1> (s) {WEIGH}"
    config = BuilderConfig(target="cpu", plugins=("builtin",), timing_cache=tmp_path / "cache", isolate=False)
    engine = tactician.build(attention_model(nodes, JOINED, f"float[{B}, {S}, {HIDDEN}] y"), config)
    decision = next(d for d in engine.report.decisions if "sm" in d.nodes)
    text = explain(decision, "cpu", fusions=engine.report.fusions)
    assert "not fused: sm: no attention: the softmax is not over the last dimension" in text


def test_fusions_alone_are_told(run: Run, tmp_path: Path) -> None:
    nodes = f"{SPLIT}{TRANSPOSED_KEYS} {PRODUCT} [sm] w = Softmax <axis = 1> (s) {WEIGH}"
    config = BuilderConfig(target="cpu", plugins=("builtin",), timing_cache=tmp_path / "cache", isolate=False)
    path = tmp_path / "e.tactician"
    tactician.build(attention_model(nodes, JOINED, f"float[{B}, {S}, {HIDDEN}] y"), config).save(path)
    status, output, _ = run("explain", path, "sm", "--fusion")
    assert (status, output.strip()) == (
        0,
        "not fused: sm: no attention: the softmax is not over the last dimension",
    )
    status, output, _ = run("explain", path, "qt", "--fusion")
    assert (status, output.strip()) == (0, "nothing that could be one node was found at 'qt'")
    status, _, error = run("explain", path, "smm", "--fusion")
    assert status == 1
    assert "did you mean 'sm'" in error
