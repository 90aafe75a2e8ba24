"""Convolutions on a GPU, every candidate of every library against the reference."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from conv_cases import LARGE, SMALL
from signatures import make_signature

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("name", [*SMALL, *LARGE])
def test_conv(name, dtype, check):
    shape, filters, attributes, bias = (SMALL | LARGE)[name]
    rng = np.random.default_rng(5)
    inputs = [rng.standard_normal(shape), rng.standard_normal(filters) / np.sqrt(np.prod(filters[1:]))]
    if bias:
        inputs.append(rng.standard_normal(filters[0]))
    inputs = [x.astype(dtype) for x in inputs]
    check(make_signature("Conv", inputs, attributes), inputs)
