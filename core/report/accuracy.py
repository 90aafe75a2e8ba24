"""How far outputs are from expected ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from tactician.signature import dtype_name

_TOLERANCES = {"float64": 1e-9, "float32": 1e-4, "float16": 5e-3, "bfloat16": 4e-2}
_LOWER_PRECISION = 2e-1


class OutputError(msgspec.Struct, frozen=True):
    """One output against what was expected.

    ``relative`` is ‖out − expected‖ / ‖expected‖, ``max_absolute`` and ``max_relative`` the largest of single
    elements; of integers, booleans and strings all three are the fraction of elements that differ. A
    difference in shape or type, or of where NaN stands, is infinite.
    """

    name: str
    type: str
    relative: float
    max_absolute: float
    max_relative: float
    tolerance: float

    @property
    def is_within(self) -> bool:
        """Whether the error is not over the tolerance."""
        return self.relative <= self.tolerance


def compare_outputs(
    outputs: Mapping[str, Any], expected: Mapping[str, Any], tolerance: float | None = None
) -> list[OutputError]:
    """Return the error of each output, sequences element by element; ``tolerance`` None: by element type."""
    errors = []
    for name, output in outputs.items():
        for suffix, out, reference in _pairs(output, expected[name]):
            errors.append(_compare(name + suffix, out, reference, tolerance))
    return errors


def _pairs(output: Any, expected: Any) -> list[tuple[str, Any, Any]]:
    if (
        isinstance(output, list | tuple)
        and isinstance(expected, list | tuple)
        and len(output) == len(expected)
    ):
        return [(f"[{i}]", a, b) for i, (a, b) in enumerate(zip(output, expected, strict=True))]
    return [("", output, expected)]


def _compare(name: str, output: Any, expected: Any, tolerance: float | None) -> OutputError:
    if output is None and expected is None:
        return OutputError(name, "none", 0.0, 0.0, 0.0, 0.0)
    out, ref = np.asarray(output), np.asarray(expected)
    kind = f"{dtype_name(out.dtype)}{list(out.shape)}"
    exact = dtype_name(out.dtype) == "string" or out.dtype.kind in "iub"
    limit = _tolerance(out.dtype, exact) if tolerance is None else tolerance
    if out.shape != ref.shape or dtype_name(out.dtype) != dtype_name(ref.dtype):
        distances = (np.inf, np.inf, np.inf)
    elif exact:
        distances = (float(np.mean(out != ref)) if out.size else 0.0,) * 3
    else:
        wide = np.complex128 if out.dtype.kind == "c" else np.float64
        distances = _distances(out.astype(wide), ref.astype(wide))
    return OutputError(name, kind, *distances, limit)


def _tolerance(dtype: np.dtype[Any], exact: bool) -> float:
    return 0.0 if exact else _TOLERANCES.get(dtype_name(dtype), _LOWER_PRECISION)


def _distances(out: np.ndarray[Any, Any], ref: np.ndarray[Any, Any]) -> tuple[float, float, float]:
    """Return relative error of the whole, and the largest absolute and relative error of an element."""
    same = (out == ref) | (
        np.isnan(out) & np.isnan(ref)
    )  # infinities and NaN have no difference that is a number
    if same.all():
        return 0.0, 0.0, 0.0
    norm = float(np.linalg.norm(ref[np.isfinite(ref)]))
    out, ref = out[~same], ref[~same]
    if (
        not np.isfinite(out).all() or not np.isfinite(ref).all() or not norm
    ):  # of a zero reference no error is small
        return np.inf, np.inf, np.inf
    difference = np.abs(out - ref)
    with np.errstate(divide="ignore", over="ignore"):
        relative = float((difference / np.abs(ref)).max())
    return float(np.linalg.norm(difference)) / norm, float(difference.max()), relative
