"""The NumPy tactics and the reference tactic, each against the reference in double precision."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from signatures import make_signature
from tactician.builtin_kernels import cpu
from tactician.builtin_kernels.cpu.onnx_reference import Reference
from tactician.builtin_kernels.cpu.target import CpuDevice
from tactician.plugins.op import Op
from tactician.plugins.reference import ops_in_use, reference_for, set_ops
from tactician.signature import OpSignature, TensorType
from tactician.tactics.registry import PluginRef, Registry
from tactician.tactics.tactic import Tactic

DEVICE = CpuDevice()
REGISTRY = Registry()
for tactic_class in cpu.tactics():
    REGISTRY.add(PluginRef("builtin", "1", ""), tactic_class)

TOLERANCE = {"float64": 1e-12, "float32": 2e-6, "float16": 2e-3, "bfloat16": 2e-2}
GUARD = 64
Array = np.ndarray[Any, Any]


def random(*shape: int, dtype: Any = np.float32, seed: int = 3, low: float | None = None) -> Array:
    rng = np.random.default_rng([seed, *shape])
    values = rng.standard_normal(shape) if low is None else rng.uniform(low, low + 2, shape)
    return (values * 10 if np.dtype(dtype).kind in "iu" else values).astype(dtype)


def tactics_for(signature: OpSignature, library: str = "numpy") -> Iterator[Tactic]:
    """Yield the accepting tactics of ``library``."""
    accepted, refused = REGISTRY.candidates(signature, DEVICE)
    assert not [r for r in refused if r.outcome == "failed"], refused
    yield from (c.tactic for c in accepted if c.source == library)


def run(tactic: Tactic, signature: OpSignature, inputs: list[Any]) -> list[Array]:
    """Run on poisoned outputs and a workspace of exactly the size asked for, with guards around them."""
    guarded = []

    def place(tensor: TensorType) -> Array:
        raw = np.full(tensor.nbytes + 2 * GUARD, 0xA5, np.uint8)
        guarded.append(raw)
        return raw[GUARD : GUARD + tensor.nbytes].view(tensor.numpy_dtype).reshape(tensor.dims)

    outputs = [None if t is None else place(t) for t in signature.outputs]
    nbytes = tactic.workspace(signature, DEVICE)
    workspace = place(TensorType("uint8", (nbytes,))) if nbytes else None
    before = [None if x is None else x.copy() for x in inputs]
    launch = tactic.prepare(signature, DEVICE)
    for _ in range(2):  # the second call must not depend on what the first one left
        assert launch(inputs, outputs, workspace, None) is None
    for raw in guarded:
        assert set(raw[:GUARD]) == set(raw[-GUARD:]) == {0xA5}, "wrote outside of its memory"
    for x, old in zip(inputs, before, strict=True):
        assert x is None or x.tobytes() == old.tobytes(), "wrote to an input"
    return [o for o in outputs if o is not None]


def run_dynamic(tactic: Tactic, signature: OpSignature, inputs: list[Any]) -> list[Array] | None:
    """Run with no dimension known beforehand; None if the tactic declines that."""

    def unknown(tensor: TensorType | None) -> TensorType | None:
        return None if tensor is None else TensorType(tensor.dtype, (None,) * len(tensor.dims))

    inner = [t if signature.constants[i] else unknown(t) for i, t in enumerate(signature.inputs)]
    dynamic = signature.bound(tuple(inner), tuple(unknown(t) for t in signature.outputs))
    if tactic.decline(dynamic, DEVICE):
        return None
    results = tactic.prepare(dynamic, DEVICE)(inputs, [None] * len(signature.outputs), None, None)
    assert results is not None
    return [r for r, t in zip(results, signature.outputs, strict=False) if t is not None]


def check(actual: list[Array], expected: list[Array], signature: OpSignature) -> None:
    types = [t for t in signature.outputs if t is not None]
    for result, reference, tensor in zip(actual, expected, types, strict=True):
        assert (result.dtype, result.shape) == (tensor.numpy_dtype, tensor.dims)
        if tensor.dtype not in TOLERANCE:
            np.testing.assert_array_equal(result, reference)
            continue
        a, b = result.astype(np.float64), reference.astype(np.float64)
        np.testing.assert_array_equal(np.isfinite(a), np.isfinite(b))
        finite = np.isfinite(b)
        error = np.linalg.norm(a[finite] - b[finite]) / max(np.linalg.norm(b[finite]), 1e-30)
        # ONNX's own reference of this one computes its statistics in single precision
        tolerance = 1e-7 if signature.op_type == "GroupNormalization" else 0
        assert error < max(TOLERANCE[tensor.dtype], tolerance), f"{signature}: relative error {error}"


def check_all(signature: OpSignature, inputs: list[Any], library: str = "numpy") -> int:
    """Check all accepting tactics, static and dynamic, and return how many there are."""
    wide = [x.astype(np.float64) if x is not None and x.dtype.kind in "fV" else x for x in inputs]
    expected = [
        r for r, t in zip(reference_for(signature)(wide), signature.outputs, strict=True) if t is not None
    ]
    found = 0
    for tactic in tactics_for(signature, library):
        found += 1
        check(run(tactic, signature, inputs), expected, signature)
        results = run_dynamic(tactic, signature, inputs)
        if results is not None:
            check(results, expected, signature)
    return found


X = random(2, 6, 5, 4)
POSITIVE = random(3, 4, low=0.1)
UNIT = random(3, 4, low=-1) * 0.45
CHANNEL = random(6)
INTEGERS = random(3, 4, dtype=np.int32)
FLAGS = INTEGERS > 0

ANY_NUMBER = ("Abs", "Neg", "Ceil", "Floor", "Round", "Sign", "Exp", "Sin", "Cos", "Tanh")
ANY_POSITIVE = ("Sqrt", "Log", "Reciprocal", "Tan", "Sinh", "Cosh", "Asinh", "Atan")
PLAIN_ACTIVATIONS = ("Relu", "Sigmoid", "Softplus", "Softsign", "Mish", "HardSwish", "Erf")
ACTIVATIONS_WITH_ALPHA = ("LeakyRelu", "Elu", "Celu", "ThresholdedRelu", "HardSigmoid", "Selu")
REDUCTIONS = ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceProd", "ReduceSumSquare")

CASES: dict[str, tuple[str, list[Any], dict[str, Any], int | None, int]] = {
    **{op: (op, [X], {}, 22, 1) for op in ANY_NUMBER},
    **{op: (op, [POSITIVE], {}, 22, 1) for op in ANY_POSITIVE},
    **{op: (op, [UNIT], {}, 22, 1) for op in ("Acos", "Asin", "Atanh")},
    "Acosh": ("Acosh", [POSITIVE + 1], {}, 22, 1),
    "IsNaN": ("IsNaN", [np.array([1, np.nan, np.inf], np.float32)], {}, 20, 1),
    "Not": ("Not", [FLAGS], {}, 1, 1),
    "BitwiseNot": ("BitwiseNot", [INTEGERS], {}, 18, 1),
    **{op: (op, [X, CHANNEL[:, None, None]], {}, 14, 1) for op in ("Add", "Sub", "Mul", "Div")},
    "Pow": ("Pow", [POSITIVE, random(4)], {}, 15, 1),
    "Pow integers": ("Pow", [POSITIVE, np.array(2, np.int64)], {}, 15, 1),
    "Div integers": ("Div", [INTEGERS, np.array([3, -3, 7, -7], np.int32)], {}, 14, 1),
    "Mod": ("Mod", [INTEGERS, np.array([3, -3, 7, -7], np.int32)], {}, 13, 1),
    "Mod floats": ("Mod", [X, np.array(0.7, np.float32)], {"fmod": 1}, 13, 1),
    "BitShift": ("BitShift", [np.array([7, 1], "u1"), np.array([2, 3], "u1")], {"direction": "LEFT"}, 11, 1),
    "BitwiseAnd": ("BitwiseAnd", [INTEGERS, INTEGERS[0]], {}, 18, 1),
    **{op: (op, [INTEGERS, INTEGERS[:1]], {}, 16, 1) for op in ("Equal", "Greater", "LessOrEqual")},
    **{op: (op, [FLAGS, ~FLAGS[0]], {}, 7, 1) for op in ("And", "Or", "Xor")},
    **{op: (op, [X, X[:1] + 1, CHANNEL[:, None, None]], {}, 13, 1) for op in ("Sum", "Mean", "Max", "Min")},
    "Sum of one": ("Sum", [X], {}, 13, 1),
    "Where": ("Where", [FLAGS, POSITIVE, random(4)], {}, 16, 1),
    **{op: (op, [X], {}, 22, 1) for op in PLAIN_ACTIVATIONS},
    **{op: (op, [X], {"alpha": 0.3}, 22, 1) for op in ACTIVATIONS_WITH_ALPHA},
    "Gelu": ("Gelu", [X], {}, 20, 1),
    "Gelu tanh": ("Gelu", [X], {"approximate": "tanh"}, 20, 1),
    "Swish": ("Swish", [X], {"alpha": 0.7}, 24, 1),
    "PRelu": ("PRelu", [X, CHANNEL[:, None, None]], {}, 16, 1),
    "Clip": ("Clip", [X, np.array(-0.5, np.float32), np.array(0.7, np.float32)], {}, 13, 1),
    "Clip above": ("Clip", [X, None, np.array(0.7, np.float32)], {}, 13, 1),
    "Clip not": ("Clip", [X], {}, 13, 1),
    "Clip attributes": ("Clip", [X], {"min": -0.5, "max": 0.7}, 6, 1),
    "Softmax": ("Softmax", [X], {"axis": 1}, 13, 1),
    "Softmax of old": ("Softmax", [X], {"axis": 2}, 11, 1),
    "LogSoftmax": ("LogSoftmax", [X * 30], {}, 13, 1),
    "MatMul": ("MatMul", [random(2, 3, 4, 5), random(3, 5, 6)], {}, 13, 1),
    "MatMul rows": ("MatMul", [random(2, 3, 4, 5), random(5, 6)], {}, 13, 1),
    "MatMul vectors": ("MatMul", [random(5), random(5)], {}, 13, 1),
    "Gemm": ("Gemm", [random(5, 3), random(4, 5), random(4)], {"transA": 1, "transB": 1, "beta": 2.0}, 13, 1),
    "Gemm alpha": ("Gemm", [random(3, 5), random(5, 4), random(3, 1)], {"alpha": 0.5}, 13, 1),
    "Gemm without C": ("Gemm", [random(3, 5), random(5, 4)], {}, 13, 1),
    "GlobalAveragePool": ("GlobalAveragePool", [X], {}, 22, 1),
    "GlobalMaxPool": ("GlobalMaxPool", [X], {}, 22, 1),
    "BatchNormalization": ("BatchNormalization", [X, *[CHANNEL] * 3, random(6, low=0.5)], {}, 15, 1),
    "LayerNormalization": ("LayerNormalization", [X, random(5, 4), random(5, 4)], {"axis": 2}, 17, 1),
    "LayerNormalization statistics": ("LayerNormalization", [X, random(4)], {}, 17, 3),
    "RMSNormalization": ("RMSNormalization", [X, random(4)], {"epsilon": 1e-3}, 23, 1),
    "InstanceNormalization": ("InstanceNormalization", [X, CHANNEL, CHANNEL], {}, 22, 1),
    "GroupNormalization": ("GroupNormalization", [X, CHANNEL, CHANNEL], {"num_groups": 3}, 21, 1),
    "Attention": ("Attention", [random(2, 3, 4, 8), *[random(2, 3, 6, 8)] * 2], {"is_causal": 1}, 23, 1),
    "Attention grouped": (
        "Attention",
        [random(2, 4, 24), random(2, 6, 8), random(2, 6, 8), random(4, 6)],
        {"q_num_heads": 3, "kv_num_heads": 1, "scale": 0.3},
        23,
        1,
    ),
    "Transpose": ("Transpose", [X], {"perm": [0, 2, 3, 1]}, 21, 1),
    "Transpose all": ("Transpose", [X], {}, 21, 1),
    "Concat": ("Concat", [X, X[:, :2], X[:, 1:]], {"axis": 1}, 13, 1),
    "Split": ("Split", [X, np.array([1, 3, 2], np.int64)], {"axis": 1}, 13, 3),
    "Split unevenly": ("Split", [X], {"axis": 2, "num_outputs": 2}, 18, 2),
    "Slice": ("Slice", [X, *(np.array(v, np.int64) for v in ([1, -1], [5, -9], [1, 2], [2, -1]))], {}, 13, 1),
    "Slice attributes": ("Slice", [X], {"starts": [1], "ends": [-1], "axes": [1]}, 9, 1),
    "Pad": ("Pad", [X, np.array([0, 1, 2, 0, 0, 0, 1, 3], np.int64), np.array(0.5, np.float32)], {}, 13, 1),
    "Pad reflected": ("Pad", [X, np.array([0, 1, 2, 0, 0, 0, 1, 3], np.int64)], {"mode": "reflect"}, 13, 1),
    "Pad axes": ("Pad", [X, np.array([1, 2], np.int64), None, np.array([-2], np.int64)], {}, 18, 1),
    "Expand": ("Expand", [X[:, :1], np.array([6, 1, 4], np.int64)], {}, 13, 1),
    "Tile": ("Tile", [POSITIVE, np.array([2, 3], np.int64)], {}, 13, 1),
    "Reshape": ("Reshape", [X, np.array([0, -1, 4], np.int64)], {}, 21, 1),
    "Flatten": ("Flatten", [X], {"axis": 2}, 21, 1),
    "Squeeze": ("Squeeze", [X[:1, :, :1], np.array([0, -2], np.int64)], {}, 13, 1),
    "Unsqueeze": ("Unsqueeze", [POSITIVE, np.array([0, -1], np.int64)], {}, 13, 1),
    "Unsqueeze attributes": ("Unsqueeze", [POSITIVE], {"axes": [1]}, 11, 1),
    "Identity": ("Identity", [X], {}, 21, 1),
    "Shape": ("Shape", [X], {"start": 1, "end": -1}, 21, 1),
    "Size": ("Size", [X], {}, 21, 1),
    "Cast": ("Cast", [X * 5], {"to": 7}, 19, 1),
    "Cast to bfloat16": ("Cast", [X], {"to": 16}, 19, 1),
    "Gather": ("Gather", [X, np.array([[2, -1], [0, 3]], np.int64)], {"axis": 2}, 13, 1),
    "GatherElements": ("GatherElements", [POSITIVE, np.array([[2, 0, -1, 1]], np.int64)], {"axis": 0}, 13, 1),
    **{op: (op, [POSITIVE, np.array([1], np.int64)], {}, 18, 1) for op in REDUCTIONS},
    "ReduceMean": ("ReduceMean", [X, np.array([-1, 1], np.int64)], {"keepdims": 0}, 18, 1),
    "ReduceMean attributes": ("ReduceMean", [X], {"axes": [2, 3]}, 13, 1),
    "ReduceSum integers": ("ReduceSum", [INTEGERS.astype(np.int8)], {"keepdims": 0}, 13, 1),
    "ReduceSum nothing": ("ReduceSum", [X], {"noop_with_empty_axes": 1}, 13, 1),
    "ReduceMax": ("ReduceMax", [X, np.array([0], np.int64)], {}, 18, 1),
    "ReduceMin": ("ReduceMin", [X], {}, 18, 1),
    "ArgMax": ("ArgMax", [INTEGERS % 2], {"axis": 1, "select_last_index": 1}, 13, 1),
    "ArgMin": ("ArgMin", [X], {"axis": 2, "keepdims": 0}, 13, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_tactics_against_the_reference(name: str) -> None:
    op, inputs, attributes, version, outputs = CASES[name]
    constants = [i for i, x in enumerate(inputs) if i and x is not None and x.dtype == np.int64]
    signature = make_signature(op, inputs, attributes, version, constants, outputs)
    assert check_all(signature, inputs) >= 1
    assert check_all(signature, inputs, "reference") == 1


NARROW_CASES = ["Add", "Mean", "Relu", "Gelu", "Erf", "Softmax", "MatMul rows", "Gemm", "LayerNormalization"]
NARROW_CASES += [
    "BatchNormalization",
    "GroupNormalization",
    "ReduceMean",
    "GlobalAveragePool",
    "Attention",
    "Transpose",
]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("name", NARROW_CASES)
def test_other_floats(name: str, dtype: str) -> None:
    op, inputs, attributes, version, outputs = CASES[name]
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    inputs = [x.astype(kind) if x.dtype == np.float32 else x for x in inputs]
    signature = make_signature(op, inputs, attributes, version, (), outputs)
    products = dtype == "bfloat16" and op in ("MatMul", "Gemm", "Attention")
    expected = 0 if products or (dtype == "float64" and op in ("Erf", "Gelu")) else 1
    assert check_all(signature, inputs) == expected


@st.composite
def windows(draw: st.DrawFn) -> tuple[tuple[int, ...], dict[str, Any]]:
    """Image size and the attributes of windows over it."""
    rank = draw(st.integers(1, 3))
    several: dict[str, Any] = {"min_size": rank, "max_size": rank}
    kernel = draw(st.lists(st.integers(1, 3), **several))
    attributes: dict[str, Any] = {
        "kernel_shape": kernel,
        "strides": draw(st.lists(st.integers(1, 3), **several)),
    }
    padding = draw(st.sampled_from(["pads", "VALID", "SAME_UPPER", "SAME_LOWER"]))
    if padding == "pads":
        attributes["dilations"] = draw(st.lists(st.integers(1, 2), **several))
        attributes["pads"] = [draw(st.integers(0, k - 1)) for k in kernel * 2]
    else:
        attributes["auto_pad"] = padding
    return tuple(draw(st.lists(st.integers(5, 8), **several))), attributes


@given(
    windows(),
    st.sampled_from([(1, 3, 4), (2, 2, 3), (3, 1, 2), (4, 1, 1)]),
    st.booleans(),
    st.sampled_from(["float32", "float16"]),
)
@settings(max_examples=60, deadline=None)
def test_every_way_to_convolve(
    geometry: tuple[tuple[int, ...], dict[str, Any]], sizes: tuple[int, int, int], with_bias: bool, dtype: str
) -> None:
    size, attributes = geometry
    group, channels, filters = sizes
    inputs = [
        random(2, group * channels, *size),
        random(group * filters, channels, *attributes["kernel_shape"]),
    ]
    inputs = [x.astype(dtype) for x in [*inputs, random(group * filters)][: 3 if with_bias else 2]]
    signature = make_signature("Conv", inputs, attributes | {"group": group}, version=22)
    found = {type(t).__name__ for t in tactics_for(signature)}
    assert {"NumpyConvIm2col", "NumpyConvShift"} <= found
    assert ("NumpyConvDepthwise" in found) == (channels == 1)
    check_all(signature, inputs)


@given(windows(), st.sampled_from(["MaxPool", "AveragePool"]), st.booleans(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_every_way_to_pool(
    geometry: tuple[tuple[int, ...], dict[str, Any]], op: str, ceil_mode: bool, count_pads: bool
) -> None:
    size, attributes = geometry
    if "auto_pad" not in attributes:
        attributes = attributes | {"ceil_mode": int(ceil_mode)}
    if op == "AveragePool":
        attributes = attributes | {"count_include_pad": int(count_pads)}
    inputs = [random(2, 3, *size)]
    assert check_all(make_signature(op, inputs, attributes, version=22), inputs) == 2


def test_pointwise_convolution_is_a_product_of_its_own() -> None:
    inputs = [random(2, 8, 6, 6), random(4, 8, 1, 1), random(4)]
    for strides in ([1, 1], [2, 3]):
        signature = make_signature("Conv", inputs, {"strides": strides}, version=22)
        assert "NumpyConvPointwise" in {type(t).__name__ for t in tactics_for(signature)}
        check_all(signature, inputs)


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "outputs", "reason"),
    [
        ("MaxPool", [X], {"kernel_shape": [2, 2]}, 2, "indices of maxima"),
        ("MatMul", [INTEGERS, INTEGERS.T.copy()], {}, 1, "type int32 of input 0"),
        ("Erf", [X.astype(np.float64)], {}, 1, "single precision"),
        ("Cast", [X], {"to": 17}, 1, "float8e4m3fn of the output"),
    ],
)
def test_declines_say_why(
    op: str, inputs: list[Any], attributes: dict[str, Any], outputs: int, reason: str
) -> None:
    signature = make_signature(op, inputs, attributes, 22 if op != "Erf" else 13, (), outputs)
    _, refused = REGISTRY.candidates(signature, DEVICE)
    mine = [r.reason for r in refused if "numpy" in r.tactic]
    assert mine
    assert all(reason in r for r in mine)


def test_reference_tactic_serves_custom_operators() -> None:
    signature = OpSignature(
        "acme::Half", 1, (), (TensorType("float32", (4,)),), (TensorType("float32", (4,)),), (None,)
    )
    tactic = Reference()
    assert "no reference" in (tactic.decline(signature, DEVICE) or "")
    before = ops_in_use()
    try:
        set_ops({"acme::Half": Op("acme::Half", lambda s: [TensorType("float32", (4,))], lambda s, x: x / 2)})
        assert tactic.decline(signature, DEVICE) is None
        (out,) = run(tactic, signature, [np.arange(4, dtype=np.float32)])
        assert out.tolist() == [0, 0.5, 1, 1.5]
    finally:
        set_ops(before)
