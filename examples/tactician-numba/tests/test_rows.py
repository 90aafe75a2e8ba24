"""Softmax, layer normalization, means, pooling and copies."""

import numpy as np
import pytest
from running import normal, relative, run, wide
from tactician_numba.movement import Copy, Transpose
from tactician_numba.reductions import MaxPool, Mean
from tactician_numba.rows import LayerNormalization, Softmax

SHAPES = [(1, 1), (3, 5), (7, 33), (2, 3, 4, 17), (5, 1000)]


def softmax(x, axis=-1):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_softmax(shape, parallel):
    x = 20 * normal(*shape)
    assert relative(run(Softmax(parallel), "Softmax", [x]), softmax(x.astype(np.float64))) < 1e-6


def test_softmax_before_opset_13_takes_the_last_axes_as_one():
    x = normal(3, 4, 5)
    exact = softmax(x.astype(np.float64).reshape(3, 20)).reshape(x.shape)
    assert relative(run(Softmax(), "Softmax", [x], version=11), exact) < 1e-6


def test_softmax_of_what_is_not_finite():
    x = normal(5, 9)
    x[1, 3], x[2, 4], x[3, 5] = np.nan, np.inf, -np.inf
    x[4] = -np.inf
    with np.errstate(all="ignore"):
        y = run(Softmax(), "Softmax", [x])
    assert np.isnan(y[[1, 2, 4]]).all()
    assert y[3, 5] == 0
    assert relative(y[[0, 3]], softmax(x[[0, 3]].astype(np.float64))) < 1e-6


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize(("shape", "axis"), [((3, 5), -1), ((2, 3, 4, 17), 2), ((4, 33), 0), ((7, 768), 1)])
def test_layer_normalization(shape, axis, parallel):
    x, scale, bias = (normal(*shape[i:], seed=n) for n, i in enumerate((0, axis, axis)))
    x = 3 * x + 2
    for given in ([x, scale, bias], [x, scale]):
        y, mean, inverse = run(
            LayerNormalization(parallel), "LayerNormalization", given, {"axis": axis}, outputs=3
        )
        v, w, b = wide(x, scale, bias if len(given) > 2 else 0 * scale)
        axes = tuple(range(axis % len(shape), len(shape)))
        middle = v.mean(axes, keepdims=True)
        deviation = 1 / np.sqrt(v.var(axes, keepdims=True) + 1e-5)
        assert relative(y, (v - middle) * deviation * w + b) < 1e-6
        assert relative(mean, middle) < 1e-5
        assert relative(inverse, deviation) < 1e-5


def test_layer_normalization_without_statistics():
    x, scale = normal(6, 40), normal(40)
    y = run(LayerNormalization(), "LayerNormalization", [x, scale])
    v, w = wide(x, scale)
    exact = (v - v.mean(1, keepdims=True)) / np.sqrt(v.var(1, keepdims=True) + 1e-5) * w
    assert relative(y, exact) < 1e-6


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("axes", [(2, 3), (-1,), (1,), (0,), (0, 1, 2, 3), (1, 2)], ids=str)
@pytest.mark.parametrize("keepdims", [0, 1])
def test_means(axes, keepdims, parallel):
    x = normal(3, 4, 5, 33)
    given = [x, np.array(axes)]
    y = run(Mean(parallel), "ReduceMean", given, {"keepdims": keepdims}, constants={1})
    assert relative(y, x.astype(np.float64).mean(axes, keepdims=bool(keepdims))) < 1e-6


def test_means_in_other_spellings():
    x = normal(2, 3, 7, 5)
    exact = x.astype(np.float64).mean((2, 3), keepdims=True)
    assert relative(run(Mean(), "GlobalAveragePool", [x]), exact) < 1e-6
    assert relative(run(Mean(), "ReduceMean", [x], {"axes": [2, 3]}, version=13), exact) < 1e-6
    assert relative(run(Mean(), "ReduceMean", [x]), x.astype(np.float64).mean(keepdims=True)) < 1e-5


def test_a_mean_that_nearly_cancels_is_exact():
    x = np.array([3e5, 1.25, -3e5, 2.5], np.float32)
    assert run(Mean(), "ReduceMean", [x], {"keepdims": 0}) == np.float32(3.75 / 4)


def max_pool(x, kernel, strides, dilations, pads):
    padded = np.pad(x, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])), constant_values=-np.inf)
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    views = np.lib.stride_tricks.sliding_window_view(padded, spans, (2, 3))
    views = views[:, :, :: strides[0], :: strides[1], :: dilations[0], :: dilations[1]]
    return views.max((-2, -1))


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize(
    ("kernel", "strides", "dilations", "pads"),
    [
        ((2, 2), (2, 2), (1, 1), (0, 0, 0, 0)),
        ((3, 3), (2, 1), (1, 1), (1, 1, 1, 1)),
        ((2, 3), (1, 2), (2, 1), (0, 2, 1, 0)),
        ((5, 5), (3, 3), (1, 1), (2, 2, 2, 2)),
    ],
)
def test_max_pool(kernel, strides, dilations, pads, parallel):
    x = normal(2, 3, 11, 13)
    attributes = {"kernel_shape": kernel, "strides": strides, "dilations": dilations, "pads": pads}
    y = run(MaxPool(parallel), "MaxPool", [x], attributes)
    np.testing.assert_array_equal(y, max_pool(x, kernel, strides, dilations, pads))


def test_max_pool_keeps_nan_and_infinities():
    x = normal(1, 1, 4, 6)
    x[0, 0, 0, 0], x[0, 0, 1, 3], x[0, 0, 2:, 4:] = np.nan, np.inf, -np.inf
    attributes = {"kernel_shape": (2, 2), "strides": (2, 2)}
    y = run(MaxPool(), "MaxPool", [x], attributes)
    np.testing.assert_array_equal(y, max_pool(x, (2, 2), (2, 2), (1, 1), (0, 0, 0, 0)))
    assert np.isnan(y[0, 0, 0, 0])
    assert y[0, 0, 0, 1] == np.inf
    assert y[0, 0, 1, 2] == -np.inf


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_automatic_padding(mode):
    x = normal(1, 2, 9, 8)
    total = {"SAME_UPPER": (1, 0, 1, 1), "SAME_LOWER": (1, 1, 1, 0), "VALID": (0, 0, 0, 0)}[mode]
    attributes = {"kernel_shape": (3, 3), "strides": (2, 2), "auto_pad": mode}
    exact = max_pool(x, (3, 3), (2, 2), (1, 1), total)
    np.testing.assert_array_equal(run(MaxPool(), "MaxPool", [x], attributes), exact)


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize(
    "order", [(0, 1, 2, 3), (3, 2, 1, 0), (0, 2, 1, 3), (0, 2, 3, 1), (1, 0, 3, 2)], ids=str
)
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 3, 1, 9)], ids=str)
def test_transpose(shape, order, parallel):
    x = normal(*shape)
    y = run(Transpose(parallel), "Transpose", [x], {"perm": order})
    np.testing.assert_array_equal(y, x.transpose(order))


@pytest.mark.parametrize("parallel", [False, True])
def test_copies(parallel):
    x = normal(3, 4, 5)
    y = run(Copy(parallel), "Reshape", [x, np.array([5, -1])], constants={1})
    np.testing.assert_array_equal(y, x.reshape(5, 12))
    np.testing.assert_array_equal(run(Copy(parallel), "Flatten", [x]), x.reshape(3, 20))
