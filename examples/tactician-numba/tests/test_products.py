"""Matrix products and convolutions, in each order of the loops."""

import itertools

import numpy as np
import pytest
from running import normal, relative, run, wide
from tactician_numba.convolution import DirectConv, PatchConv
from tactician_numba.products import DotProducts, RowUpdates

PRODUCTS = [
    tactic(parallel, tile)
    for tactic, tiles in ((DotProducts, (3, 32)), (RowUpdates, (5, 512)))
    for parallel in (False, True)
    for tile in tiles
]
SHAPES = [
    ((1, 1), (1, 1)),
    ((3, 5), (5, 7)),
    ((17, 33), (33, 9)),
    ((64, 31), (31, 65)),
    ((5,), (5, 4)),
    ((4, 5), (5,)),
    ((6,), (6,)),
    ((2, 3, 4), (2, 4, 5)),
    ((2, 3, 4), (4, 5)),
    ((3, 4), (2, 4, 5)),
    ((3, 1, 3, 4), (1, 2, 4, 6)),
    ((3,), (2, 3, 4)),
]


@pytest.mark.parametrize("tactic", PRODUCTS, ids=str)
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_matmul(tactic, shapes):
    a, b = (normal(*shape, seed=i) for i, shape in enumerate(shapes))
    assert relative(run(tactic, "MatMul", [a, b]), np.matmul(*wide(a, b))) < 2e-6


BIASES = [None, (), (1,), (6,), (7, 1), (1, 6), (7, 6)]


@pytest.mark.parametrize("tactic", PRODUCTS, ids=str)
@pytest.mark.parametrize("bias", BIASES, ids=str)
def test_gemm(tactic, bias):
    for turn_a, turn_b in itertools.product((0, 1), repeat=2):
        if turn_b and isinstance(tactic, RowUpdates):
            continue
        a, b = normal(*(5, 7)[:: 1 if turn_a else -1]), normal(*(6, 5)[:: 1 if turn_b else -1], seed=1)
        c = None if bias is None else np.asarray(normal(*bias, seed=2), np.float32)
        attributes = {"alpha": 0.7, "beta": 1.3, "transA": turn_a, "transB": turn_b}
        y = run(tactic, "Gemm", [a, b] if c is None else [a, b, c], attributes)
        u, v = wide(a.T if turn_a else a, b.T if turn_b else b)
        assert relative(y, 0.7 * u @ v + (0 if c is None else 1.3 * c.astype(np.float64))) < 2e-6


@pytest.mark.parametrize("tactic", PRODUCTS, ids=str)
def test_infinities_and_nan_stay_in_their_rows(tactic):
    a, b = normal(9, 21), np.abs(normal(21, 10))
    a[2, 3], a[5, 20] = np.inf, np.nan
    with np.errstate(all="ignore"):
        y = run(tactic, "MatMul", [a, b])
    assert (y[2] == np.inf).all()
    assert np.isnan(y[5]).all()
    others = [i for i in range(9) if i not in (2, 5)]
    assert relative(y[others], np.matmul(*wide(a[others], b))) < 2e-6


def test_rows_do_not_depend_on_how_the_work_is_cut():
    a, b = normal(29, 300), normal(300, 31)
    for tactic in (DotProducts, RowUpdates):
        results = {run(tactic(p, t), "MatMul", [a, b]).tobytes() for p in (False, True) for t in (8, 64)}
        assert len(results) == 1


def conv(x, w, bias, strides=(1, 1), dilations=(1, 1), pads=(0, 0, 0, 0), group=1):
    x = np.pad(x, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
    spans = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], dilations, strict=True)]
    views = np.lib.stride_tricks.sliding_window_view(x, spans, (2, 3))
    views = views[:, :, :: strides[0], :: strides[1], :: dilations[0], :: dilations[1]]
    pairs = zip(np.split(views, group, 1), np.split(w, group), strict=True)
    y = np.concatenate([np.einsum("nchwij,ocij->nohw", v, f) for v, f in pairs], 1)
    return y if bias is None else y + bias[:, None, None]


CONVOLUTIONS = [
    ((2, 3, 8, 9), (5, 3, 3, 3), {"pads": (1, 1, 1, 1)}),
    ((1, 3, 11, 7), (4, 3, 3, 3), {"strides": (2, 2), "pads": (1, 0, 1, 2)}),
    ((3, 4, 5, 5), (7, 4, 1, 1), {}),
    ((1, 6, 9, 10), (6, 1, 3, 3), {"group": 6, "pads": (1, 1, 1, 1)}),
    ((2, 4, 9, 9), (6, 2, 2, 3), {"group": 2, "dilations": (2, 3), "pads": (1, 3, 0, 2)}),
    ((1, 1, 3, 3), (1, 1, 3, 3), {}),
    ((1, 2, 4, 1), (3, 2, 1, 5), {"pads": (0, 2, 0, 2)}),
    ((1, 2, 6, 20), (3, 2, 3, 7), {"strides": (1, 3), "pads": (0, 6, 0, 6)}),
]
CONV_TACTICS = [PatchConv(p, t) for p in (False, True) for t in (3, 64)] + [
    DirectConv(p) for p in (False, True)
]


@pytest.mark.parametrize("tactic", CONV_TACTICS, ids=str)
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_conv(tactic, case):
    x_shape, w_shape, attributes = case
    x, w, bias = normal(*x_shape), normal(*w_shape, seed=1), normal(w_shape[0], seed=2)
    for given in ([x, w], [x, w, bias]):
        exact = conv(*wide(x, w), bias.astype(np.float64) if len(given) > 2 else None, **attributes)
        assert relative(run(tactic, "Conv", given, attributes), exact) < 2e-6


@pytest.mark.parametrize("tactic", [PatchConv(), DirectConv()], ids=str)
def test_a_nan_reaches_the_windows_that_hold_it(tactic):
    x, w = normal(1, 2, 6, 7), normal(3, 2, 3, 3)
    x[0, 1, 2, 3] = np.nan
    y = run(tactic, "Conv", [x, w])
    expected = np.zeros(y.shape, bool)
    expected[:, :, 0:3, 1:4] = True
    np.testing.assert_array_equal(np.isnan(y), expected)
