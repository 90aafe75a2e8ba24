"""Pooling on a GPU, every candidate against the reference."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from convolution_cases import POOLING
from pooling_cases import CASES
from signatures import make_signature

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
@pytest.mark.parametrize("name", CASES)
def test_pooling(name, dtype, check):
    op, shape, attributes = CASES[name]
    x = np.random.default_rng(3).standard_normal(shape).astype(dtype)
    check(make_signature(op, [x], attributes), [x])


@pytest.mark.parametrize("case", [pytest.param(c, id=f"{i}-{c}") for i, c in enumerate(POOLING)])
def test_every_form(case, check):
    check(make_signature(case.op, case.inputs, case.attributes), case.inputs)
