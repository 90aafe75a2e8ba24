"""Sampled inputs are legal, random and never zeros: every operator's reference takes them."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from fakes import reference as affine_reference
from hypothesis import given, settings
from hypothesis import strategies as st
from signatures import make_signature
from tactician.plugins.reference import reference_for
from tactician.signature import Constant, OpSignature, TensorType, make_constant
from tactician.tactics.reduction import reduction_length
from tactician.tactics.sampling import CannotSample, hard_inputs, representative, sample_inputs
from tactician.tactics.tolerance import tolerance

Array = np.ndarray[Any, Any]
F = np.float32


def f(*shape: int) -> Array:
    return np.ones(shape, F)


def i64(*values: int) -> Array:
    return np.array(values, np.int64)


def call(
    op: str, *inputs: Array | None, outputs: int = 1, constants: tuple[int, ...] = (), **attributes: Any
) -> OpSignature:
    return make_signature(op, inputs, attributes, constants=constants, outputs=outputs)


U8, I8 = np.zeros((4, 6), np.uint8), np.zeros((6, 5), np.int8)
SCALE = np.full((), 0.02, F)
Z = np.zeros((), np.uint8)

CALLS: dict[str, OpSignature] = {
    "relu": call("Relu", f(3, 4)),
    "matmul": call("MatMul", f(5, 7), f(7, 3), constants=(1,)),
    "conv": call("Conv", f(1, 4, 8, 8), f(6, 4, 3, 3), f(6)),
    "log": call("Log", f(50)),
    "sqrt": call("Sqrt", f(50)),
    "div": call("Div", f(50), f(50)),
    "int div": call("Div", np.ones(50, np.int32), np.ones(50, np.int32)),
    "mod": call("Mod", np.ones(50, np.int64), np.ones(50, np.int64)),
    "pow": call("Pow", f(50), f(50)),
    "acosh": call("Acosh", f(50)),
    "atanh": call("Atanh", f(50)),
    "asin": call("Asin", f(50)),
    "shift": call("BitShift", np.ones(50, np.uint8), np.ones(50, np.uint8), direction="LEFT"),
    "batch norm": call("BatchNormalization", f(2, 3, 4), f(3), f(3), f(3), f(3)),
    "prod": call("ReduceProd", f(1000), keepdims=0),
    "gather": call("Gather", f(5, 6), np.zeros((40,), np.int64), axis=1),
    "gather elements": call("GatherElements", f(5, 6), np.zeros((5, 9), np.int32), axis=1),
    "gather nd": call("GatherND", f(5, 6, 7), np.zeros((8, 2), np.int64)),
    "scatter": call("ScatterElements", f(5, 6), np.zeros((5, 4), np.int64), f(5, 4), axis=1),
    "scatter nd": call("ScatterND", f(5, 6), np.zeros((3, 1), np.int64), f(3, 6)),
    "one hot": call("OneHot", np.zeros((9,), np.int64), np.array(7), f(2), constants=(1,)),
    "loss": call("NegativeLogLikelihoodLoss", f(6, 5), np.zeros(6, np.int64)),
    "reverse": call("ReverseSequence", f(5, 4, 2), np.array([5, 5, 5, 5])),
    "reshape": call("Reshape", f(4, 6), i64(8, 3), constants=(1,)),
    "unknown reshape": call("Reshape", f(4, 6), i64(8, 3)),
    "expand": call("Expand", f(4, 1), i64(4, 6)),
    "tile": call("Tile", f(4, 6), i64(2, 3)),
    "top k": call("TopK", f(4, 60), i64(3), outputs=2),
    "clip": call("Clip", f(40), f(), f()),
    "resize": call("Resize", f(1, 1, 4, 6), None, np.array([1, 1, 2, 1.5], F)),
    "roi": call("RoiAlign", f(2, 3, 8, 8), np.array([[0, 0, 4, 4]] * 5, F), i64(0, 0, 1, 1, 1)),
    "quantize": call("QuantizeLinear", f(4, 60), SCALE, Z),
    "dequantize": call("DequantizeLinear", U8, SCALE, Z),
    "integer matmul": call("MatMulInteger", U8, I8, Z),
    "q matmul": call("QLinearMatMul", U8, SCALE, Z, I8, SCALE, np.zeros((), np.int8), SCALE, Z),
    "lstm": call(
        "LSTM", f(5, 2, 3), f(1, 16, 3), f(1, 16, 4), None, np.array([5, 3], np.int32), hidden_size=4
    ),
    "where": call("Where", np.ones((4, 5), bool), f(4, 5), f(4, 5)),
    "text": call("Cast", np.array(["1", "2"], object), to=1),
    "softmax": call("Softmax", f(3, 200)),
    "layer norm": call("LayerNormalization", f(3, 200), f(200), f(200)),
    "einsum": call("Einsum", f(3, 4), f(4, 5), equation="ij,jk->ik"),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("sample", [sample_inputs, hard_inputs])
def test_every_reference_takes_what_is_sampled(name: str, sample: Any) -> None:
    signature = CALLS[name]
    for seed in range(5):
        inputs = sample(signature, np.random.default_rng(seed))
        for values, tensor in zip(inputs, signature.inputs, strict=True):
            assert (values is None) == (tensor is None)
            if values is not None and tensor is not None:
                assert values.dtype == tensor.numpy_dtype
                assert values.shape == tensor.dims
                assert tensor.size < 20 or values.dtype == object or np.any(values)
        for result, tensor in zip(reference_for(signature)(inputs), signature.outputs, strict=True):
            assert tensor is not None
            assert result.shape == tensor.dims
            if sample is sample_inputs and result.dtype.kind == "f":
                assert np.isfinite(result).all()
                assert np.linalg.norm(result) > 0


@pytest.mark.parametrize("name", CALLS)
def test_sampling_repeats_by_seed(name: str) -> None:
    def sampled(seed: int) -> list[Any]:
        inputs = sample_inputs(CALLS[name], np.random.default_rng(seed))
        return [None if v is None else v.tolist() for v in inputs]

    assert sampled(3) == sampled(3)
    assert sampled(3) != sampled(4) or "shape" in name or name in ("expand", "tile", "one hot", "text")


def test_known_constants_keep_their_value() -> None:
    inputs = sample_inputs(CALLS["reshape"], np.random.default_rng(0))
    np.testing.assert_array_equal(inputs[1], [8, 3])  # type: ignore[arg-type]  # not None: the input is there


def test_scattered_indices_never_meet() -> None:
    for seed in range(20):
        _, indices, _ = sample_inputs(CALLS["scatter"], np.random.default_rng(seed))
        assert indices is not None
        assert all(len(set(row)) == 4 for row in indices.tolist())
        _, rows, _ = sample_inputs(CALLS["scatter nd"], np.random.default_rng(seed))
        assert rows is not None
        assert len(set(rows.ravel().tolist())) == 3


def test_integers_of_a_fused_operator_index_any_of_its_tables() -> None:
    tables = (TensorType("float32", (4, 8)), TensorType("float32", (3, 8)), TensorType("int64", (100,)))
    signature = OpSignature(
        "tactician::Embed", 1, (), tables, (None,), (Constant(), Constant(), None), b"body"
    )
    indices = sample_inputs(signature, np.random.default_rng(0))[2]
    assert indices is not None
    assert indices.max() < 3
    assert indices.min() >= -2


def signature(
    op: str, version: int, *inputs: TensorType | None, known: dict[int, Array] | None = None
) -> OpSignature:
    """Return a call with one unknown output."""
    constants = tuple(make_constant(known[i]) if known and i in known else None for i in range(len(inputs)))
    return OpSignature(f"ai.onnx::{op}", version, (), inputs, (None,), constants)


VECTOR, FLAG = TensorType("float32", (3,)), TensorType("bool", ())
SEQUENCE = TensorType("sequence(float32)", None)

REFUSED = {
    "random": (signature("RandomNormalLike", 22, VECTOR), "random"),
    "dynamic": (signature("Relu", 14, TensorType("float32", ("N",))), r"\[N\]"),
    "sequence": (signature("SequenceLength", 11, SEQUENCE), "sequence"),
    "pads": (signature("Pad", 21, VECTOR, TensorType("int64", (2,))), "input 1 says what to compute"),
    "loop": (signature("Loop", 21, None, FLAG), "never end"),
    "dropout": (signature("Dropout", 13, VECTOR, None, FLAG, known={2: np.array(True)}), "training mode"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_be_sampled_says_why(name: str) -> None:
    refused, reason = REFUSED[name]
    with pytest.raises(CannotSample, match=reason):
        sample_inputs(refused, np.random.default_rng(0))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64", "float8e5m2"])
def test_hard_values_are_there(dtype: str) -> None:
    tensor = TensorType(dtype, (4000,))
    signature = OpSignature("ai.onnx::Relu", 14, (), (tensor,), (tensor,), (None,))
    (hard,) = hard_inputs(signature, np.random.default_rng(0))
    assert hard is not None
    wide = hard.astype(np.float64)
    info = ml_dtypes.finfo(hard.dtype)
    assert np.abs(wide).max() > 10, "large"
    assert np.isfinite(wide).all()
    assert np.any(np.signbit(wide) & (wide == 0)), "negative zero"
    assert np.any((wide != 0) & (np.abs(wide) < float(info.tiny))), "subnormal"
    assert len(np.unique(wide)) < 3600, "ties"


def test_long_sums_of_hard_values_stay_finite_in_fp16() -> None:
    signature = call("MatMul", np.ones((4, 4096), np.float16), np.ones((4096, 4), np.float16))
    inputs = hard_inputs(signature, np.random.default_rng(0))
    (exact,) = reference_for(signature)([v.astype(np.float64) for v in inputs if v is not None])
    assert np.isfinite(exact.astype(np.float16)).all()


def test_a_representative_size_that_the_reference_runs_at() -> None:
    x = TensorType("float32", ("N", 4))
    signature = OpSignature("ai.onnx::Relu", 14, (), (x,), (x,), (None,))
    found = representative(signature, reference_for)
    assert [t and t.shape for t in (*found.inputs, *found.outputs)] == [(8, 4), (8, 4)]
    assert representative(found) is found

    weight = TensorType("float32", (64, 5))
    unknown = TensorType("float32", ("N", None))
    product = OpSignature(
        "ai.onnx::MatMul", 13, (), (unknown, weight), (TensorType("float32", None),), (None, Constant())
    )
    found = representative(product, reference_for)
    assert found.inputs[0] == TensorType("float32", (64, 64)), "8 and 1 do not fit"
    assert found.outputs[0] == TensorType("float32", (64, 5))


def test_a_shape_that_is_computed_is_sampled_to_fit_the_output() -> None:
    x, shape, y = (
        TensorType("float32", ("N", 64, 1)),
        TensorType("int64", (2,)),
        TensorType("float32", ("N", 64)),
    )
    found = representative(
        OpSignature("ai.onnx::Reshape", 21, (), (x, shape), (y,), (None, None)), reference_for
    )
    assert found.outputs == (TensorType("float32", (8, 64)),)
    values = sample_inputs(found, np.random.default_rng(0))[1]
    np.testing.assert_array_equal(values, [8, 64])  # type: ignore[arg-type]  # not None: the input is there


def test_no_representative_size() -> None:
    a, b = TensorType("float32", (3, None)), TensorType("float32", (7, None))
    with pytest.raises(CannotSample, match="ran at no size"):
        representative(OpSignature("ai.onnx::Add", 14, (), (a, b), (None,), (None, None)), reference_for)
    rankless = OpSignature("test::Affine", 1, (), (TensorType("float32", None),), (None,), (None,))
    with pytest.raises(CannotSample, match="no values"):
        representative(rankless, affine_reference)


@pytest.mark.parametrize(
    ("name", "length"),
    [
        ("matmul", 7),
        ("conv", 36),
        ("relu", 1),
        ("softmax", 200),
        ("prod", 1000**2),
        ("lstm", 35),
        ("q matmul", 6),
    ],
)
def test_reduction_lengths(name: str, length: int) -> None:
    assert reduction_length(CALLS[name]) == length


def test_tolerances() -> None:
    relu, matmul = CALLS["relu"], call("MatMul", f(4, 4096), f(4096, 4))
    assert tolerance(relu, "int8") == 0
    assert tolerance(relu, "float64") < 1e-14
    assert 1e-6 < tolerance(relu, "float32") < 3e-6
    assert 1e-5 < tolerance(matmul, "float32") < 2.1e-4, "a product in tf32 is off by 3e-4"
    assert 1e-3 < tolerance(matmul, "float32", {"tf32"}) < 5e-3
    assert tolerance(matmul, "float16") < 1.5e-3
    assert tolerance(matmul, "float16", {"reduced-accumulator"}) > 0.02


@settings(deadline=None)
@given(k=st.integers(1, 600), seed=st.integers(0, 2**32 - 1), dtype=st.sampled_from(["float32", "float16"]))
def test_honest_sums_pass_and_halved_digits_do_not(k: int, seed: int, dtype: str) -> None:
    """Sums in sequence, in the accumulator that the formula assumes, stay within; fewer digits do not."""
    random = np.random.default_rng(seed)
    a, b = (random.standard_normal(s).astype(dtype) for s in ((16, k), (k, 16)))
    exact = a.astype(np.float64) @ b.astype(np.float64)
    limit = tolerance(call("MatMul", a, b), dtype)
    total = np.zeros((16, 16), F)
    for i in range(k):
        total += np.outer(a[:, i].astype(F), b[i].astype(F)).astype(F)

    def error(result: Array) -> float:
        return float(np.linalg.norm(result.astype(np.float64) - exact) / np.linalg.norm(exact))

    assert error(total.astype(dtype)) < 0.7 * limit
    coarse = total.astype(np.float16 if dtype == "float32" else ml_dtypes.float8_e4m3fn)
    assert error(coarse) > limit
