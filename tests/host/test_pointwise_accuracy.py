"""The short functions of pointwise kernels against float64: 16-bit types at each of their numbers, float32 densely.

The interpreter rounds ex2, rcp and the like exactly, where a GPU errs by up to two units in float's last place.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("cuda.bindings.nvrtc", reason="the compiler's package is not installed")

from ptx_device import PtxDevice, run_tactic
from signatures import make_signature
from tactician.builtin_kernels.cuda.pointwise import Pointwise

Array = np.ndarray[Any, Any]

BF16 = np.dtype(ml_dtypes.bfloat16)
FLUSHED = 2.0**-126
"""Factors below the smallest normal float may become 0."""
RELATIVE = {"float16": 3e-5, "bfloat16": 2e-4}
"""Errors on top of rounding: a tenth of it."""

_erf, _erfc = np.vectorize(math.erf, otypes=[float]), np.vectorize(math.erfc, otypes=[float])


def _sigmoid(x: Array) -> Array:
    return np.where(x < 0, np.exp(x) / (1 + np.exp(x)), 1 / (1 + np.exp(-x)))


def _softplus(x: Array) -> Array:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def _gelu_tanh(x: Array) -> Array:
    # 1 + tanh(u) cancels, even in float64
    return x * _sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))


def _elu(x: Array) -> Array:
    return np.where(x < 0, np.expm1(np.minimum(x, 0)), x)


_ALPHA, _GAMMA = 1.67326319217681884765625, 1.05070102214813232421875
CASES: list[tuple[str, dict[str, Any], Callable[[Array], Array]]] = [
    ("Gelu", {}, lambda x: 0.5 * x * _erfc(-x * math.sqrt(0.5))),
    ("Gelu", {"approximate": "tanh"}, _gelu_tanh),
    ("Erf", {}, _erf),
    ("Tanh", {}, np.tanh),
    ("Sigmoid", {}, _sigmoid),
    ("Swish", {}, lambda x: x * _sigmoid(x)),
    ("Swish", {"alpha": 1.5}, lambda x: x * _sigmoid(1.5 * x)),
    ("Softplus", {}, _softplus),
    ("Mish", {}, lambda x: x * np.tanh(_softplus(x))),
    ("Elu", {}, _elu),
    ("Celu", {"alpha": 0.75}, lambda x: np.where(x < 0, 0.75 * _elu(x / 0.75), x)),
    ("Selu", {}, lambda x: _GAMMA * np.where(x > 0, x, _ALPHA * _elu(x))),
    ("Sqrt", {}, np.sqrt),
    ("Reciprocal", {}, lambda x: 1 / x),
    ("Softsign", {}, lambda x: x / (1 + np.abs(x))),
]


@pytest.fixture(scope="module")
def device() -> PtxDevice:
    return PtxDevice()


def run(device: PtxDevice, op: str, attributes: dict[str, Any], *inputs: Array) -> Array:
    """Return what the pointwise kernel makes of ``inputs``."""
    constants = tuple(i for i, a in enumerate(inputs) if a.size == 1)
    signature = make_signature(op, inputs, attributes, 24 if op == "Swish" else None, constants=constants)
    (output,) = run_tactic(device, Pointwise(8, 256, 1), signature, inputs)
    assert output is not None
    return output


def check_rounding(found: Array, wanted: Array, what: str, factor: Array | float = 1.0) -> None:
    """Check that ``found`` is ``wanted`` rounded to its type, up to ``RELATIVE``; NaN and infinities as they are.

    Results may be off by ``factor`` times what is flushed to zero.
    """
    kind = found.dtype
    rounded = wanted.astype(kind)
    with np.errstate(all="ignore"):
        spacing = np.spacing(np.abs(rounded)).astype(np.float64)
    x = found.astype(np.float64)
    np.testing.assert_array_equal(np.isnan(x), np.isnan(wanted), err_msg=what)
    finite = np.isfinite(rounded.astype(np.float64)) & np.isfinite(x)
    # next to the largest number, an error may tip the rounding to infinity
    largest = float(ml_dtypes.finfo(kind).max)
    unlike = ~finite & ~np.isnan(wanted) & (x != rounded.astype(np.float64))
    assert (np.abs(wanted[unlike]) > largest * (1 - RELATIVE[kind.name])).all(), what
    slack = RELATIVE[kind.name] * np.abs(wanted) + (FLUSHED * np.maximum(factor, 1) if kind == BF16 else 0)
    error = np.abs(x - wanted)
    wrong = finite & ~(error <= spacing / 2 + slack)
    assert not wrong.any(), f"{what}: {wrong.sum()} results, the first {x[wrong][0]} for {wanted[wrong][0]}"


@pytest.mark.parametrize("dtype", [np.dtype(np.float16), BF16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize(
    ("op", "attributes", "formula"),
    [pytest.param(*c, id="-".join([c[0], *map(str, c[1].values())])) for c in CASES],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_every_number_of_16_bits(
    device: PtxDevice,
    op: str,
    attributes: dict[str, Any],
    formula: Callable[[Array], Array],
    dtype: np.dtype[Any],
) -> None:
    x = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    wide = x.astype(np.float64)
    check_rounding(run(device, op, attributes, x), formula(wide), f"{op} of {dtype}", np.abs(wide))


@pytest.mark.parametrize("dtype", [np.dtype(np.float16), BF16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("divisor", [None, 3.0, -0.7, 1e-38, 0.0, np.inf])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_quotients_of_16_bits(device: PtxDevice, divisor: float | None, dtype: np.dtype[Any]) -> None:
    x = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    y = np.random.default_rng(3).permutation(x) if divisor is None else np.array([divisor]).astype(dtype)
    check_rounding(run(device, "Div", {}, x, y), x.astype(np.float64) / y.astype(np.float64), "Div")


@pytest.mark.parametrize(("op", "attributes", "formula"), CASES[:3], ids=["Gelu", "Gelu-tanh", "Erf"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_float32(
    device: PtxDevice, op: str, attributes: dict[str, Any], formula: Callable[[Array], Array]
) -> None:
    """Within 3.5 units in the last place; in GELU's negative tail, where the exponent's errors grow, 3 for each unit of it."""
    dense = np.linspace(-14, 14, 60001)
    small = np.geomspace(1e-45, 1, 2000)
    x = np.concatenate([dense, small, -small, [np.inf, -np.inf, np.nan, 1e30, -1e30, 3e38]]).astype(
        np.float32
    )
    found, wanted = run(device, op, attributes, x).astype(np.float64), formula(x.astype(np.float64))
    normal = np.isfinite(wanted)
    np.testing.assert_array_equal(found[~normal], wanted[~normal])
    spacing = np.abs(np.spacing(wanted.astype(np.float32))).astype(np.float64)
    exponent = np.abs(np.log(np.maximum(wanted / x, 1e-45))) if op == "Gelu" else 0
    bound = (3.5 + 3 * exponent) * spacing + np.where(np.abs(x) > 1, FLUSHED * np.abs(x), 0)
    worst = np.nanmax(np.where(normal, np.abs(found - wanted) / bound, 0))
    assert worst <= 1, f"{op}: {worst:.2f} of the bound"
