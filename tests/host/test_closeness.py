"""The quick comparison of large results says what the careful one says, wherever it says anything."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tactician.signature import TensorType
from tactician.tactics import closeness
from tactician.tactics.closeness import Yardstick
from tactician.tactics.tolerance import ELEMENT_FACTOR, compare

LIMIT = 2e-3


def both(result: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> tuple[Any, Any]:
    """Return the verdicts of the careful and of the quick comparison."""
    kind = TensorType(result.dtype.name, result.shape)
    yardstick = Yardstick.of(wanted)
    return (
        compare(result, wanted, kind, LIMIT, quantized=False),
        compare(result, wanted, kind, LIMIT, quantized=False, yardstick=yardstick),
    )


@given(
    st.sampled_from(["float16", "bfloat16", "float32", "float64"]),
    st.integers(1, 40_000),
    st.sampled_from([1e-30, 1e-3, 1.0, 1e3, 60_000.0]),
    st.sampled_from([0.0, 1e-4, 1e-3, 1.9e-3, 1e-2]),
    st.sampled_from([None, math.nan, math.inf, 0.02, 1.0]),
    st.integers(0, 2**32 - 1),
)
def test_it_agrees_with_the_careful_one(
    dtype: str, size: int, scale: float, noise: float, odd: float | None, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    kind = TensorType(dtype, (size,))
    wanted = rng.standard_normal(size) * scale
    with np.errstate(all="ignore"):
        result = (wanted * (1 + noise * rng.standard_normal(size))).astype(kind.numpy_dtype)
        if odd is not None:
            result[rng.integers(size)] += odd * scale
    careful, quick = both(result, wanted)
    assert (quick.reason is None) == (careful.reason is None)
    assert quick.error == pytest.approx(careful.error, rel=1e-9, abs=1e-15, nan_ok=True)
    assert quick.reason == careful.reason, "words come from the careful one"


def test_one_element_far_off_among_many_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closeness, "SHARE", 1 << 14)  # on several threads
    wanted = np.random.default_rng(0).standard_normal((64, 4096))
    result = wanted.astype(np.float32)
    yardstick = Yardstick.of(wanted)
    assert yardstick is not None
    assert yardstick.error(result, LIMIT, ELEMENT_FACTOR) == pytest.approx(
        np.linalg.norm(result - wanted) / np.linalg.norm(wanted)
    )
    result[63, 4095] += 0.1
    assert yardstick.error(result, LIMIT, ELEMENT_FACTOR) is None
    _, quick = both(result, wanted)
    assert "1 of 262144 elements are far off" in quick.reason


@pytest.mark.parametrize(
    "wanted",
    [
        np.zeros(5),
        np.array([1.0, math.inf]),
        np.array([math.nan]),
        np.full(3, 1e200),
        np.full(3, 1e-200),
        np.zeros(0),
        np.array([1 + 2j]),
        np.array(["a"], object),
        np.array([True]),
    ],
    ids=str,
)
def test_there_is_none_where_squares_or_limits_mean_nothing(wanted: np.ndarray[Any, Any]) -> None:
    assert Yardstick.of(wanted) is None


def test_what_may_round_to_infinity_is_left_to_the_careful_one() -> None:
    wanted = np.array([65_000.0, 65_519.9, 1.0])
    careful, quick = both(wanted.astype(np.float16), wanted)
    assert (careful.reason, quick.reason) == (None, None)
    overflown = np.array([np.inf, 1.0, 1.0], np.float16)
    careful, quick = both(overflown, np.array([30_000.0, 1.0, 1.0]))
    assert careful.reason is not None
    assert quick.reason == careful.reason
