"""Functions of one element, and arithmetic with broadcasting."""

import math

import numpy as np
import pytest
from running import normal, relative, run, wide
from tactician_numba.elementwise import Arithmetic, Clip, Elementwise

erf = np.vectorize(math.erf, otypes=[np.float64])

FUNCTIONS = {
    "Erf": (erf, {}),
    "Exp": (np.exp, {}),
    "Gelu": (lambda x: x * (1 + erf(x / np.sqrt(2))) / 2, {}),
    "HardSigmoid": (lambda x: np.clip(0.3 * x + 0.4, 0, 1), {"alpha": 0.3, "beta": 0.4}),
    "HardSwish": (lambda x: x * np.clip(x / 6 + 0.5, 0, 1), {}),
    "LeakyRelu": (lambda x: np.where(x < 0, 0.07 * x, x), {"alpha": 0.07}),
    "Relu": (lambda x: np.maximum(x, 0), {}),
    "Sigmoid": (lambda x: 1 / (1 + np.exp(-x)), {}),
    "Tanh": (np.tanh, {}),
}


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("op", FUNCTIONS)
def test_functions(op, parallel):
    function, attributes = FUNCTIONS[op]
    x = 3 * normal(7, 5, 61)
    x.flat[::3] *= 1e-3  # where tanh and erf are nearly linear, and must be as exact
    y = run(Elementwise(parallel), op, [x], attributes)
    assert relative(y, function(x.astype(np.float64))) < 1e-6
    near = np.abs(x) < 0.01
    assert relative(y[near], function(x.astype(np.float64))[near]) < 1e-6


def test_gelu_by_tanh():
    x = 2 * normal(3, 100)
    (v,) = wide(x)
    exact = v / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (v + 0.044715 * v**3)))
    assert relative(run(Elementwise(), "Gelu", [x], {"approximate": "tanh"}), exact) < 1e-6


def test_square_roots():
    x = np.abs(normal(5, 33))
    assert relative(run(Elementwise(), "Sqrt", [x]), np.sqrt(x.astype(np.float64))) < 1e-7


SPECIAL = np.array([np.nan, np.inf, -np.inf, -0.0, 0.0, 1e-42, 88.9, -104.0, 3e38, -3e38], np.float32)


@pytest.mark.parametrize("op", [*FUNCTIONS, "Sqrt"])
def test_what_is_not_finite_comes_out_as_in_numpy(op):
    function, attributes = FUNCTIONS.get(op, (np.sqrt, {}))
    with np.errstate(all="ignore"):
        exact = function(SPECIAL.astype(np.float64)).astype(np.float32)
        y = run(Elementwise(), op, [SPECIAL], attributes)
    assert np.isnan(y[0])
    np.testing.assert_array_equal(np.isnan(y), np.isnan(exact))
    np.testing.assert_array_equal(np.isinf(y), np.isinf(exact))


@pytest.mark.parametrize(("low", "high"), [(-0.5, 0.7), (None, 0.2), (-0.1, None), (None, None), (2.0, 1.0)])
def test_clip(low, high):
    x = normal(3, 41)
    limits = [None if v is None else np.float32(v) for v in (low, high)]
    exact = np.minimum(np.maximum(x, -np.inf if low is None else low), np.inf if high is None else high)
    y = run(Clip(), "Clip", [x, *(None if v is None else np.array(v) for v in limits)])
    np.testing.assert_array_equal(y, exact.astype(np.float32))


def test_clip_by_attributes_and_with_nan():
    x = np.append(normal(8), np.float32(np.nan))
    y = run(Clip(), "Clip", [x], {"min": -0.3, "max": 0.3}, version=6)
    np.testing.assert_allclose(y[:-1], np.clip(x[:-1], -0.3, 0.3), rtol=1e-6)
    assert np.isnan(y[-1])
    limit = np.array(np.nan, np.float32)
    assert np.isnan(run(Clip(), "Clip", [x, limit])).all()


ARITHMETIC = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}
SHAPES = [
    ((3, 5, 7), (3, 5, 7)),
    ((3, 5, 7), ()),
    ((), (3, 5, 7)),
    ((3, 5, 7), (7,)),
    ((3, 5, 7), (5, 1)),
    ((5, 1), (3, 5, 7)),
    ((3, 1, 7), (1, 5, 1)),
    ((2, 3, 1, 5, 1), (3, 4, 1, 6)),
    ((1,), (1,)),
    ((), ()),
    ((4, 1, 3), (1, 1, 3)),
]


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("op", ARITHMETIC)
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_arithmetic_broadcasts(op, shapes, parallel):
    a, b = (normal(*shape, seed=i) + np.float32(3 * i) for i, shape in enumerate(shapes))
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    y = run(Arithmetic(parallel), op, [a, b])
    assert relative(y, ARITHMETIC[op](*wide(a, b))) < 1e-6


def test_division_by_zero_is_no_error():
    a, b = np.array([1, -1, 0, np.nan], np.float32), np.zeros(4, np.float32)
    with np.errstate(all="ignore"):
        y = run(Arithmetic(), "Div", [a, b])
    np.testing.assert_array_equal(y, np.array([np.inf, -np.inf, np.nan, np.nan], np.float32))
