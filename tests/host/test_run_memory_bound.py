"""Every memory-bound kernel, run from its PTX on the CPU, against the ONNX reference."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
from memory_bound_cases import FAMILIES, Case, untested_rules

pytest.importorskip("cuda.bindings.nvrtc", reason="the compiler's package is not installed")

from ptx_device import PtxDevice, run_tactic
from signatures import make_signature
from tactician.builtin_kernels.cuda import pointwise
from tactician.builtin_kernels.cuda.pointwise import PointwiseChain
from tactician.plugins.reference import reference_for
from tactician.signature import OpSignature, TensorType, dtype_name, make_constant

MODULES = (
    "pointwise",
    "copy",
    "strided_copy",
    "transpose",
    "gather",
    "pad",
    "fill",
    "scan",
    "topk",
    "resize",
)
MODULES += ("reduce", "softmax", "layer_norm")
TACTICS = [
    tactic
    for name in MODULES
    for tactic in importlib.import_module(f"tactician.builtin_kernels.cuda.{name}").TACTICS
]
TOLERANCE = {"float16": 2e-3, "bfloat16": 2e-2, "float32": 2e-6, "float64": 1e-12}
KEEPS_TYPES = ("Cast", "CastLike", "QuantizeLinear", "DequantizeLinear", "Range", "Resize", "Round", "Mod")
"""Operators whose result jumps, so that a wider reference may differ."""

Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def device() -> PtxDevice:
    return PtxDevice()


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(c, id=f"{family}-{i}-{c.op}")
        for family, cases in FAMILIES.items()
        for i, c in enumerate(cases)
    ],
)
@pytest.mark.filterwarnings(
    "ignore::RuntimeWarning"
)  # NumPy warns of the NaN and infinities that some cases hold
def test_run(device: PtxDevice, case: Case) -> None:
    signature = make_signature(
        case.op, case.inputs, case.attributes, case.version, constants=case.constants, outputs=case.outputs
    )
    expected = reference_for(signature)([_wide(case, a) for a in case.inputs])
    accepted = 0
    for cls in TACTICS:
        if not cls.serves(signature.op):
            continue
        for tactic in cls.candidates(signature, device):
            if tactic.decline(signature, device) is None:
                accepted += 1
                compare(run_tactic(device, tactic, signature, case.inputs), expected, f"{tactic} on {case}")
    assert accepted, f"no tactic accepts {case}"


def compare(outputs: list[Array | None], expected: Any, what: str) -> None:
    """Check outputs against a reference that may be in a wider type."""
    for output, wanted in zip(outputs, expected, strict=True):
        assert output is not None
        assert output.shape == wanted.shape, what
        if output.dtype.kind in "iub":
            np.testing.assert_array_equal(output, wanted.astype(output.dtype), err_msg=what)
            continue
        tolerance = TOLERANCE[dtype_name(output.dtype)]
        found, wanted = output.astype(np.float64), wanted.astype(np.float64)
        finite = np.isfinite(wanted) & (np.abs(wanted) < 65000 if output.dtype == np.float16 else True)
        np.testing.assert_array_equal(
            found[~finite], wanted.astype(output.dtype).astype(np.float64)[~finite], err_msg=what
        )
        norm = np.linalg.norm(wanted[finite]) or 1.0
        error = np.linalg.norm(found[finite] - wanted[finite]) / norm
        assert error <= tolerance, f"{what}: relative error {error:.2e}"


def _wide(case: Case, array: Array | None) -> Array | None:
    if array is None or case.op in KEEPS_TYPES or dtype_name(array.dtype) not in TOLERANCE:
        return array
    return array.astype(np.float64)


def test_every_elementwise_operator_has_a_case() -> None:
    assert untested_rules() == set()


@pytest.mark.parametrize("dtype", ["string", "float32", "int4", "float8e5m2", "complex64"])
@pytest.mark.parametrize("shape", [(2, "N", 4), None, (2, 3, 4)])
def test_odd_types_are_declined_or_accepted_but_never_raise(
    device: PtxDevice, dtype: str, shape: tuple[int, ...] | None
) -> None:
    tensor = TensorType(dtype, shape)
    for cls in TACTICS:
        for op in cls.op if isinstance(cls.op, tuple) else (cls.op,):
            attributes = (("blocksize", 1), ("num_groups", 1), ("to", 1))
            signature = OpSignature(op, 20, attributes, (tensor,) * 3, (tensor,), (None,) * 3)
            for tactic in cls.candidates(signature, device):
                reason = tactic.decline(signature, device)
                assert reason is None or len(reason) > 8
                assert reason or shape == (2, 3, 4), f"{tactic} accepts {signature}"


HEAD = '<domain: "acme", opset_import: ["": 20]>'
TWO = "Constant<value_float = 2.5>()"
CHAINS = {
    "residual": (f"f (a, b, c) => (y) {{ s = Add(a, b) t = Relu(s) k = {TWO} u = Mul(t, k) y = Sub(u, c) }}",
                 [(4, 6, 10), (6, 1), (10,)]),
    "two outputs": ("f (a, b) => (y, z) { y = Sigmoid(a) z = Mul(y, b) }", [(3, 7), (3, 7)]),
    "rounding": ("f (a) => (y) { h = Cast<to = 10>(a) g = Cast<to = 1>(h) y = Sub(a, g) }", [(33,)]),
    "one operand twice": ("f (a) => (y) { y = Mul(a, a) }", [(2, 513)]),
    "mask": (f"f (a, b) => (y) {{ z = {TWO} m = Less(a, z) y = Where(m, b, a) }}", [(5, 4), (4,)]),
}  # fmt: skip


@pytest.mark.parametrize("name", CHAINS)
def test_chain(device: PtxDevice, name: str) -> None:
    text, shapes = CHAINS[name]
    rng = np.random.default_rng(7)
    inputs = [rng.standard_normal(s).astype(np.float32) for s in shapes]
    outputs = 2 if name == "two outputs" else 1
    signature = chain_signature(text, inputs, outputs)
    expected = reference_for(signature)(inputs)
    tactics = list(PointwiseChain.candidates(signature, device))
    assert tactics
    for tactic in tactics:
        compare(run_tactic(device, tactic, signature, inputs), expected, f"{tactic} on {name}")


def test_quantised_chain(device: PtxDevice) -> None:
    rng = np.random.default_rng(8)
    x = rng.integers(-100, 100, (2, 6, 8)).astype(np.int8)
    scale, zero = rng.random(6).astype(np.float32) + 0.1, rng.integers(-5, 5, 6).astype(np.int8)
    residual = rng.standard_normal((2, 6, 8)).astype(np.float32)
    text = "f (x, s, z, w) => (y) { d = DequantizeLinear<axis = 1>(x, s, z) e = Add(d, w) y = Relu(e) }"
    inputs = [x, scale, zero, residual]
    signature = chain_signature(text, inputs, 1)
    wanted = np.maximum((x.astype(np.float64) - zero[:, None]) * scale[:, None] + residual, 0)
    for tactic in PointwiseChain.candidates(signature, device):
        compare(run_tactic(device, tactic, signature, inputs), [wanted], str(tactic))


def test_chain_declines_other_operators(device: PtxDevice) -> None:
    a = np.ones((4, 4), np.float32)
    signature = chain_signature("f (a) => (y) { y = MatMul(a, a) }", [a], 1)
    reasons = {t.decline(signature, device) for t in PointwiseChain.candidates(signature, device)}
    assert reasons == {"MatMul is not an elementwise operator"}


def test_chain_loads_without_its_body(device: PtxDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program kept in the artifacts is enough: a loaded engine reads no ONNX."""
    a = np.random.default_rng(9).standard_normal((3, 5)).astype(np.float32)
    signature = chain_signature("f (a) => (y) { y = Exp(a) }", [a], 1)
    tactic = PointwiseChain(1, 128, 1)
    tactic.prepare(signature, device)
    monkeypatch.setattr(pointwise, "body_program", lambda signature: pytest.fail("the body was read again"))
    tactic.prepare(signature, device)


def chain_signature(text: str, inputs: list[Array], outputs: int) -> OpSignature:
    """Return the signature of a fused node whose body is the function ``text``."""
    from onnx import parser

    body = parser.parse_function(HEAD + text).SerializeToString()
    types = tuple(TensorType(dtype_name(a.dtype), a.shape) for a in inputs)
    constants = tuple(make_constant(a) if a.size == 1 else None for a in inputs)
    unknown = (TensorType("float32", None),) * outputs
    signature = OpSignature("acme::f", 20, (), types, unknown, constants, body)
    results = reference_for(signature)(inputs)
    return signature.bound(types, tuple(TensorType(dtype_name(r.dtype), r.shape) for r in results))
