"""The walk of TMA's im2col over an input: it comes to the pixels that the windows of a convolution begin at."""

from __future__ import annotations

from typing import Any

import numpy as np
from conv_nhwc_cases import ConvCase, signature_of
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from im2col_walk import im2col, problem_of, standard
from tactician.builtin_kernels.cuda.conv_problem import GeometryError, window_of
from tactician.builtin_kernels.cuda.im2col import Im2col

Array = np.ndarray[Any, Any]


@st.composite
def geometries(draw: st.DrawFn) -> ConvCase:
    """Draw a convolution that a tensor map can walk over."""

    def pair(low: int, high: int) -> tuple[int, int]:
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    kernel = pair(1, 4)
    attributes = {
        "strides": pair(1, 4),
        "dilations": pair(1, 3),
        "pads": (*pair(0, 4), *pair(0, 4)),
    }
    case = ConvCase((draw(st.integers(1, 3)), *pair(1, 9), 8), (8, *kernel, 8), attributes, bias=False)
    try:
        window_of(signature_of(case, (1, 1, 1, 1)), kernel, case.shape[1:3])
    except GeometryError:
        assume(False)
    return case


@given(geometries(), st.integers(1, 40), st.integers(0, 200))
@settings(deadline=None, max_examples=150)
def test_the_walk_sees_what_the_windows_see(case: ConvCase, pixels: int, first: int) -> None:
    _, problem = problem_of(case)
    walk = Im2col.of(problem)
    assert walk.decline() is None
    (rows, columns), window = walk.out, problem.window
    assert walk.out == window.out[1:]
    first %= problem.pixels
    x, w = (a.astype(np.float64) for a in case.inputs())
    n, p, q = first // (rows * columns), first // columns % rows, first % columns
    start = (0, q * walk.strides[1] + walk.lower[1], p * walk.strides[0] + walk.lower[0], n)
    total = np.zeros((pixels, problem.filters))
    for r, s in np.ndindex(*window.kernel[1:]):
        offsets = (s * window.dilations[2], r * window.dilations[1])
        total += im2col(x, walk, start, offsets, (pixels, problem.channels)) @ w[:, r, s].T
    expected = standard(case, [x, w]).reshape(-1, problem.filters)[first : first + pixels]
    np.testing.assert_allclose(total[: len(expected)], expected, atol=1e-9)
    if problem.is_pointwise:
        assert (total[len(expected) :] == 0).all()
