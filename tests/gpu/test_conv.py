"""Convolutions on a GPU, every candidate of every library against the reference."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from conv_cases import LARGE, SMALL
from convolution_cases import CONVOLUTIONS
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


@pytest.mark.parametrize("case", [pytest.param(c, id=f"{i}-{c}") for i, c in enumerate(CONVOLUTIONS)])
def test_every_form(case, check):
    check(make_signature(case.op, case.inputs, case.attributes), case.inputs)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_cudnn_has_plans(dtype, check):
    pytest.importorskip("cudnn", reason="nvidia-cudnn-frontend is not installed")
    rng = np.random.default_rng(6)
    inputs = [rng.standard_normal(s).astype(dtype) for s in ((2, 64, 14, 14), (128, 64, 3, 3), (128,))]
    signature = make_signature("Conv", inputs, {"pads": [1, 1, 1, 1]})
    plans = check(signature, inputs, tactics=["CudnnConv"])
    assert len(plans) > 1
    assert any("tf32=True" in p for p in plans) == (dtype == np.float32)
