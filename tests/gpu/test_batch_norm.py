"""BatchNormalization on a GPU, every candidate against the reference."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from signatures import make_signature

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (4, 6), (1, 64, 56, 56), (3, 5, 129)])
def test_batch_norm(shape, dtype, check):
    rng = np.random.default_rng(2)
    inputs = [
        rng.standard_normal(shape),
        *(rng.standard_normal(shape[1]) for _ in range(3)),
        rng.uniform(0.5, 2, shape[1]),
    ]
    inputs = [x.astype(dtype) for x in inputs]
    check(make_signature("BatchNormalization", inputs, {"epsilon": 1e-3}), inputs)
