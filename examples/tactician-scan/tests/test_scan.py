"""Both tactics compute what CumSum means, or say why they don't run it."""

import numpy as np
import pytest
import tactician_scan as scan
from tactician import OpSignature, TensorType
from tactician.signature import make_constant


def signature_of(shape, axis=-1, dtype="float32", known=True, **attributes):
    kind, axis = TensorType(dtype, shape), np.array(axis)
    constants = (None, make_constant(axis) if known else None)
    types = (kind, TensorType("int64", ()))
    return OpSignature(scan.CUM_SUM, 14, tuple(sorted(attributes.items())), types, (kind,), constants)


def run(tactic, x):
    signature = signature_of(x.shape)
    y = np.full_like(x, np.nan)
    workspace = np.full(tactic.workspace(signature, None), 0xFF, np.uint8)
    tactic.prepare(signature, None)([x, np.array(-1)], [y], workspace, None)
    return y


@pytest.mark.parametrize("block", [16, 32, 64])
@pytest.mark.parametrize("shape", [(128,), (1, 1000), (3, 5, 257), (7, 129), (2, 4096)])
def test_blas_scan_adds_up(shape, block):
    x = np.random.default_rng(block).standard_normal(shape).astype(np.float32)
    before = x.copy()
    exact = np.cumsum(x.astype(np.float64), axis=-1)
    y = run(scan.BlasScan(block), x)
    assert np.linalg.norm(y - exact) <= 2e-6 * np.linalg.norm(exact)
    assert np.array_equal(x, before)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("position", [0, 77, 199])
def test_what_stands_before_an_infinity_stays_finite(bad, position):
    x = np.random.default_rng(0).standard_normal((3, 200)).astype(np.float32)
    x[1, position] = bad
    with np.errstate(invalid="ignore"):
        expected = np.cumsum(x, axis=-1, dtype=np.float32)
    assert np.allclose(run(scan.BlasScan(32), x), expected, rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize(
    ("signature", "reason"),
    [
        (signature_of((2, 100), dtype="float64"), "float32 only, not float64"),
        (signature_of((2, 100), axis=0), "the last axis only"),
        (signature_of((2, 100), known=False), "the axis is not a constant"),
        (signature_of((2, "n")), "needs static shapes"),
        (signature_of((0, 100)), "nothing to sum"),
        (signature_of((2, 100), reverse=1), "neither exclusive nor reverse sums"),
        (signature_of((2, 60)), "rows of 60 elements are shorter than two blocks of 32"),
    ],
)
def test_blas_scan_says_why_not(signature, reason):
    assert scan.BlasScan(32).decline(signature, None) == reason


def test_the_last_axis_may_be_named_from_the_front():
    assert scan.BlasScan(32).decline(signature_of((2, 100), axis=1), None) is None


def test_block_scan_takes_exclusive_and_reverse():
    assert scan.BlockScan().decline(signature_of((2, 100), exclusive=1, reverse=1), None) is None
