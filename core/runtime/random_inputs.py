"""Random values for an engine's inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tactician.plan import TensorSpec


def random_input(
    spec: TensorSpec, rng: np.random.Generator, shape: Sequence[int] | None = None
) -> np.ndarray[Any, Any]:
    """Return an array for input ``spec``, of ``shape`` where that is given: standard normal floats, integers 0 and 1.

    Integers are small, so that indices and token numbers are likely to be valid.
    """
    shape, dtype = spec.type.dims if shape is None else shape, spec.type.numpy_dtype
    if spec.dtype == "string":
        texts = [f"text {n}" for n in rng.integers(1000, size=int(np.prod(shape)))]
        return np.array(texts, object).reshape(shape)
    if dtype.kind in "iub":
        return rng.integers(0, 2, shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)
