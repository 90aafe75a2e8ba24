"""Decompositions mean the same as the operators that they take the place of: on random calls, and in ONNX's own tests."""

from __future__ import annotations

from typing import Any

import conformance
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from decomposing import (
    Feeds,
    check,
    decomposed,
    is_basic,
    model,
    run_onnxruntime,
    run_reference,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from tactician.decompositions.functions import has_function
from tactician.decompositions.rules import RULES
from tactician.signature import OpSignature

FEW = settings(max_examples=25, deadline=None, derandomize=True)
RANDOM = np.random.default_rng(0)


def normal(*shape: int) -> Any:
    return RANDOM.standard_normal(shape).astype(np.float32)


@st.composite
def equations(draw: st.DrawFn) -> tuple[str, list[tuple[int, ...]]]:
    sizes = dict(zip("abcdef", draw(st.permutations([1, 2, 3, 4, 5, 2])), strict=True))
    terms = draw(
        st.lists(st.lists(st.sampled_from("abcdef"), max_size=4, unique=True), min_size=1, max_size=3)
    )
    used = sorted({letter for term in terms for letter in term})
    output = draw(st.lists(st.sampled_from(used), unique=True)) if used else []
    texts = ["".join(term) for term in terms]
    return f"{','.join(texts)}->{''.join(output)}", [tuple(sizes[c] for c in term) for term in texts]


@FEW
@given(equations())
def test_einsum(case: tuple[str, list[tuple[int, ...]]]) -> None:
    equation, shapes = case
    feeds = {f"x{i}": normal(*shape) for i, shape in enumerate(shapes)}
    wanted = np.einsum(equation, *feeds.values())
    proto = model("Einsum", feeds, equation=equation)
    if decomposed(proto)[1]:
        check(proto, feeds, [wanted], run_reference)
    else:
        assert proto.graph.node[0].input[1:] == [] and equation.split("->")[0] == equation.split("->")[1]


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("bqhd,bkhd->bhqk", [(2, 3, 4, 5), (2, 6, 4, 5)]),
        ("bhqk,bkhd->bqhd", [(2, 4, 3, 6), (2, 6, 4, 5)]),
        ("...ij,...jk->...ik", [(4, 1, 2, 3), (1, 5, 3, 2)]),
        ("ij,jk", [(2, 3), (3, 4)]),
        ("ji,j", [(2, 3), (2,)]),
        ("b i , b j -> b i j", [(2, 3), (2, 4)]),
        ("ij,jk,kl->il", [(2, 3), (3, 4), (4, 5)]),
        ("ij,kj->ki", [(2, 3), (4, 3)]),
        ("i,i->", [(5,), (5,)]),
        ("...ii->...i", [(2, 3, 3)]),
        ("ii", [(3, 3)]),
        ("ij,jk->ik", [(2, 1), (3, 4)]),
        ("->", [()]),
    ],
)
def test_einsum_spellings(equation: str, shapes: list[tuple[int, ...]]) -> None:
    feeds = {f"x{i}": normal(*shape) for i, shape in enumerate(shapes)}
    check(
        model("Einsum", feeds, equation=equation),
        feeds,
        [np.einsum(equation, *feeds.values())],
        run_reference,
    )


def test_a_product_of_matrices_is_one_product() -> None:
    feeds = {"q": normal(2, 3, 4, 5), "k": normal(2, 6, 4, 5)}
    network, _ = decomposed(model("Einsum", feeds, equation="bqhd,bkhd->bhqk"))
    assert [n.op_type for n in network.graph if n.op_type != "Reshape"] == [
        "Transpose",
        "Transpose",
        "MatMul",
    ]


@st.composite
def transposed_convolutions(draw: st.DrawFn) -> tuple[Feeds, dict[str, Any]]:
    rank, groups = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    size = st.integers(1, 4)
    sizes, kernel = ([draw(size) for _ in range(rank)] for _ in range(2))
    strides, dilations = [draw(st.integers(1, 3)) for _ in sizes], [draw(st.integers(1, 2)) for _ in sizes]
    feeds = {
        "x": normal(draw(st.integers(1, 2)), groups * draw(size), *sizes),
        "w": normal(0),
        "b": normal(0) if draw(st.booleans()) else None,
    }
    outputs = draw(size)
    feeds["w"] = normal(feeds["x"].shape[1], outputs, *kernel)
    if feeds["b"] is not None:
        feeds["b"] = normal(groups * outputs)
    attributes = {"group": groups, "strides": strides, "dilations": dilations}
    whole = [
        s * (n - 1) + d * (k - 1) + 1 for s, n, d, k in zip(strides, sizes, dilations, kernel, strict=True)
    ]
    match draw(st.sampled_from(["pads", "auto_pad", "output_shape"])):
        case "pads":
            pads = [draw(st.integers(0, 2)) for _ in range(2 * rank)]
            assume(all(n > pads[i] + pads[i + rank] for i, n in enumerate(whole)))
            more = [draw(st.integers(0, max(s, d) - 1)) for s, d in zip(strides, dilations, strict=True)]
            attributes |= {"pads": pads, "output_padding": more}
        case "auto_pad":
            assume(all(n >= s * m for n, s, m in zip(whole, strides, sizes, strict=True)))
            attributes |= {"auto_pad": draw(st.sampled_from(["SAME_UPPER", "SAME_LOWER", "VALID"]))}
        case _:
            attributes |= {
                "output_shape": [draw(st.integers(m, max(m, n))) for m, n in zip(sizes, whole, strict=True)]
            }
    return feeds, attributes


@FEW
@given(transposed_convolutions(), st.booleans())
def test_conv_transpose(case: tuple[Feeds, dict[str, Any]], constant: bool) -> None:
    feeds, attributes = case
    inputs = {"x": feeds["x"]} if constant else feeds
    constants = {name: feeds[name] for name in "wb"} if constant else None
    check(
        model("ConvTranspose", inputs, constants, **attributes), inputs, run_onnxruntime, rtol=1e-4, atol=1e-5
    )


def test_the_phases_of_a_transposed_convolution_are_one_convolution() -> None:
    network, _ = decomposed(
        model("ConvTranspose", {"x": normal(1, 8, 5, 5)}, {"w": normal(8, 4, 2, 2)}, strides=[2, 2])
    )
    assert [n.op_type for n in network.graph] == ["Conv", "Reshape", "Transpose", "Reshape"]
    weights = next(iter(network.graph)).inputs[1]
    assert weights is not None and list(weights.shape or ()) == [16, 8, 1, 1]


@pytest.mark.parametrize("upper", [0, 1])
@pytest.mark.parametrize("k", [None, -7, -1, 0, 2, 9])
@pytest.mark.parametrize("constant", [True, False])
def test_trilu(upper: int, k: int | None, constant: bool) -> None:
    x, k_value = {"x": normal(2, 4, 5)}, {} if k is None else {"k": np.array(k)}
    proto = model("Trilu", x if constant else x | k_value, k_value if constant else None, upper=upper)
    wanted = (np.triu if upper else np.tril)(x["x"], k or 0)
    network = check(proto, x | k_value, [wanted])
    if constant or k is None:
        assert [n.op_type for n in network.graph] == ["Where"]


@st.composite
def recurrent_calls(draw: st.DrawFn) -> tuple[str, Feeds, dict[str, Any]]:
    op_type = draw(st.sampled_from(["RNN", "GRU", "LSTM"]))
    gates = {"RNN": 1, "GRU": 3, "LSTM": 4}[op_type]
    steps, batch, size, hidden = (draw(st.integers(1, 4)) for _ in range(4))
    direction = draw(st.sampled_from(["forward", "reverse", "bidirectional"]))
    n = 2 if direction == "bidirectional" else 1
    maybe = st.booleans()
    feeds: dict[str, Any] = {
        "x": normal(steps, batch, size),
        "w": normal(n, gates * hidden, size),
        "r": normal(n, gates * hidden, hidden),
        "b": normal(n, 2 * gates * hidden) if draw(maybe) else None,
        "lengths": RANDOM.integers(1, steps + 1, batch).astype(np.int32) if draw(maybe) else None,
        "h": normal(n, batch, hidden) if draw(maybe) else None,
    }
    attributes: dict[str, Any] = {"hidden_size": hidden, "direction": direction}
    if draw(maybe):
        attributes["clip"] = 0.5
    if op_type == "GRU":
        attributes["linear_before_reset"] = int(draw(maybe))
    if op_type == "LSTM":
        feeds["c"] = normal(n, batch, hidden) if draw(maybe) else None
        feeds["p"] = normal(n, 3 * hidden) if draw(maybe) else None
        attributes["input_forget"] = int(draw(maybe))
    if op_type == "RNN" and draw(maybe):
        attributes |= {"activations": ["LeakyRelu", "ScaledTanh"][:n], "activation_alpha": [0.3, 0.7][:n]}
        attributes |= {"activation_beta": [0.9]} if n > 1 else {}
    return op_type, feeds, attributes


@FEW
@given(recurrent_calls())
def test_recurrent(case: tuple[str, Feeds, dict[str, Any]]) -> None:
    op_type, feeds, attributes = case
    proto = model(op_type, feeds, outputs=3 if op_type == "LSTM" else 2, **attributes)
    check(proto, feeds, run_onnxruntime, rtol=1e-4, atol=1e-5)


def test_too_many_steps_stay_one_call() -> None:
    feeds = {"x": normal(129, 1, 2), "w": normal(1, 3, 2), "r": normal(1, 3, 3)}
    assert decomposed(model("RNN", feeds, hidden_size=3))[1] == 0


@FEW
@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(0, 1), st.sampled_from(["NOTSET", "VALID", "SAME_UPPER"])
)  # fmt: skip
def test_lp_pool(p: int, kernel: int, stride: int, pad: int, auto: str) -> None:
    feeds = {"x": normal(1, 2, 7, 6)}
    assume(pad < kernel)
    pads = {"pads": [pad, 0, 0, pad]} if auto == "NOTSET" else {"auto_pad": auto}
    proto = model("LpPool", feeds, p=p, kernel_shape=[kernel, kernel], strides=[stride, 1], **pads)
    check(proto, feeds, run_onnxruntime, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("rank", [3, 4, 5])
def test_local_response_normalization(size: int, rank: int) -> None:
    x = normal(2, 6, 3, 4, 2)[(..., *[0] * (5 - rank))]
    square = np.zeros_like(x)
    for c in range(6):
        square[:, c] = (x[:, max(0, c - (size - 1) // 2) : c + size // 2 + 1] ** 2).sum(1)
    proto = model("LRN", {"x": x}, size=size, alpha=0.5, beta=0.6, bias=2.0)
    check(proto, {"x": x}, [x / (2 + 0.5 / size * square) ** np.float32(0.6)])


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("axis", [-1, 1])
def test_lp_normalization(p: int, axis: int) -> None:
    x = normal(3, 4, 5)
    x[0, :, 1] = x[1, 2] = 0
    norm = np.linalg.norm(x, p, axis, keepdims=True)
    wanted = np.divide(x, norm, out=np.zeros_like(x), where=norm != 0)
    check(model("LpNormalization", {"x": x}, p=p, axis=axis), {"x": x}, [wanted])


@pytest.mark.parametrize("op_type", ["CumSum", "CumProd"])
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("flags", [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("constant", [True, False])
def test_scans(op_type: str, axis: int, flags: tuple[int, int], constant: bool) -> None:
    if op_type == "CumSum" and constant:
        return  # there is a kernel for it
    x, place = {"x": normal(3, 5)}, {"axis": np.array(axis, np.int64)}
    inputs = x if constant else x | place
    proto = model(
        op_type, inputs, place if constant else None, opset=26, exclusive=flags[0], reverse=flags[1]
    )
    check(proto, inputs, run_reference, run_reference)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_hardmax(axis: int) -> None:
    x = np.round(normal(4, 3, 5))  # with equals: the first counts
    check(model("Hardmax", {"x": x}, axis=axis), {"x": x}, run_onnxruntime)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_one_hot(axis: int) -> None:
    feeds = {
        "i": np.array([[0, 3, -1], [-4, 7, 2]]),
        "depth": np.array(4),
        "values": np.array([2, 5], np.float32),
    }
    proto = model("OneHot", feeds, axis=axis)
    shape = [2, 3]
    shape.insert(axis if axis >= 0 else 2, 4)
    proto.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y0", 1, shape))
    check(proto, feeds, run_onnxruntime)


def test_batch_normalization_in_training() -> None:
    feeds = {"x": normal(4, 3, 5), "s": normal(3), "b": normal(3), "m": normal(3), "v": np.abs(normal(3))}
    proto = model("BatchNormalization", feeds, outputs=3, training_mode=1, momentum=0.7, epsilon=1e-2)
    check(proto, feeds, run_reference, rtol=1e-4)


def names_of_cases() -> list[str]:
    """Return the tests of one standard node whose operator has an expansion; what is random has no test of values."""
    found = []
    for name in conformance.node_cases():
        proto = conformance.cases()[name].model()
        (node, *others), opset = proto.graph.node, proto.opset_import[0].version
        if others or node.domain or node.op_type == "Bernoulli":
            continue
        if node.op_type in RULES or has_function(node.op_type, max(18, opset)):
            found.append(name)
    return found


def with_constants(case: conformance.Case, feeds: Feeds) -> onnx.ModelProto:
    """Return the case's model with what is no data as constants: shapes, axes, scales."""
    proto = onnx.ModelProto.FromString(case.model().SerializeToString())
    first, *others = proto.graph.input
    is_resize = proto.graph.node[0].op_type == "Resize"
    data = [first, *(v for v in others if feeds[v.name].dtype.kind in "fV" and not is_resize)]
    kept = [onnx.ValueInfoProto.FromString(v.SerializeToString()) for v in data]
    names = {v.name for v in kept}
    proto.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in feeds.items() if k not in names)
    del proto.graph.input[:]
    proto.graph.input.extend(kept)
    return proto


def test_cases_of_onnx() -> None:
    """In ONNX's own tests, operators that are expanded give what they must."""
    expanded, wrong = set(), []
    for name in names_of_cases():
        case = conformance.cases()[name]
        feeds, wanted = next(iter(case.data(case.model())))
        if not all(isinstance(v, np.ndarray) for v in feeds.values()):
            continue
        proto = with_constants(case, feeds)
        op_type = proto.graph.node[0].op_type

        def accepts(call: OpSignature, op_type: str = op_type) -> bool:
            return is_basic(call) and (call.op_type != op_type or op_type in RULES)

        network, count = decomposed(proto, accepts)
        if not count:
            continue
        expanded.add(op_type)
        try:
            results = run_reference(ir.serde.serialize_model(network), feeds)
            for got, want in zip(results, wanted, strict=True):
                conformance.compare(got, want, case)
        except Exception as error:  # of an evaluator, too
            wrong.append(f"{name}: {type(error).__name__} {str(error)[:200]}")
    assert not wrong
    assert expanded >= {
        "AffineGrid", "Attention", "CenterCropPad", "NegativeLogLikelihoodLoss", "Resize", "RotaryEmbedding",
        "SoftmaxCrossEntropyLoss",
    }  # fmt: skip
