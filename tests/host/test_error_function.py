"""The error function against the standard library's, element by element."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tactician.plugins.error_function import BLOCK, erf


@settings(deadline=None)
@given(st.floats())
def test_every_double(x: float) -> None:
    found, wanted = float(erf(np.array(x))), math.erf(x)
    assert math.isnan(found) if math.isnan(x) else abs(found - wanted) <= 1e-15 * abs(wanted)
    assert math.copysign(1, found) == math.copysign(1, wanted) or math.isnan(x)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_arrays_of_every_type_and_size(dtype: str) -> None:
    x = (np.random.default_rng(0).standard_normal((3, BLOCK // 2 + 7)) * 2).astype(dtype)
    wanted = np.vectorize(math.erf)(x.astype(np.float64)).astype(dtype)
    assert erf(x).dtype == x.dtype
    np.testing.assert_allclose(erf(x).astype(float), wanted.astype(float), rtol=2 * np.finfo(dtype).eps)
    assert erf(np.zeros((0, 4), dtype)).shape == (0, 4)
