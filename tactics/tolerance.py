"""How far a result may be from its reference: tolerance by type and length of the sums, and comparison.

With u(t) = 2**-p the unit roundoff of a type with p significant bits, K the length of the operator's longest
sum, and a the type that sums are kept in (fp32 where the output is narrower, else the output's own)::

    tolerance = 2 u(output) + min(16 u(a) sqrt(max(K, 4)), 2e-4)        for ‖out − ref‖ / ‖ref‖

Rounding errors of a sum of K terms add like a random walk, hence the root; the 4 leaves room for the usual
approximations of exp, tanh and the like. The cap keeps a product that was silently rounded to tf32 (about
3e-4) out of plain fp32. Declared marks widen it: ``"tf32"`` by 2**-9, ``"reduced-accumulator"`` sets a to
fp16, or to the output's type where that is wider still, and lifts the cap. A fused operator may round twice
as often, to any of its types. No single element may be off by more than ``ELEMENT_FACTOR`` tolerances of its
own size plus the output's root mean square.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tactician.signature import OpSignature, TensorType
from tactician.tactics.closeness import Yardstick
from tactician.tactics.reduction import reduction_length

Array = np.ndarray[Any, Any]

ELEMENT_FACTOR = 4.0
SUM_FACTOR, SUM_CAP = 16.0, 2e-4
MAX_ROUNDED_FRACTION = 0.05
"""Quantized integers may differ by one where rounding was a close call, in at most this part of places."""

_ROUNDOFF = {
    "complex128": 2.0**-53,
    "complex64": 2.0**-24,
    "float64": 2.0**-53,
    "float32": 2.0**-24,
    "float16": 2.0**-11,
    "bfloat16": 2.0**-8,
    "float8e4m3fn": 2.0**-4,
    "float8e4m3fnuz": 2.0**-4,
    "float8e5m2": 2.0**-3,
    "float8e5m2fnuz": 2.0**-3,
    "float4e2m1": 2.0**-2,
    "float8e8m0": 2.0**-1,
}


@dataclass(frozen=True)
class Comparison:
    """Outcome of comparing one output; ``error`` is relative, or the fraction of elements that are not equal.

    ``reason`` says in words what is wrong, None where nothing is.
    """

    error: float
    reason: str | None = None


def tolerance(signature: OpSignature, dtype: str, numerics: Collection[str] = ()) -> float:
    """Return the largest relative error that an output of type ``dtype`` may have; 0 for exact types."""
    own = _ROUNDOFF.get(dtype)
    if own is None:
        return 0.0
    if signature.body is not None:
        # a fused body may round to any of its types in between
        own = 2 * max([own, *(_ROUNDOFF.get(t.dtype, 0.0) for t in signature.inputs if t is not None)])
    length = math.sqrt(max(4, reduction_length(signature)))
    sums = min(SUM_FACTOR * min(own, _ROUNDOFF["float32"]) * length, SUM_CAP)
    if "reduced-accumulator" in numerics:
        sums = 2 * max(own, _ROUNDOFF["float16"]) * length
    return 2 * own + sums + (2.0**-9 if "tf32" in numerics else 0.0)


def compare(
    result: Any,
    reference: Any,
    tensor: TensorType | None,
    limit: float,
    *,
    quantized: bool,
    yardstick: Yardstick | None = None,
) -> Comparison:
    """Compare one output with its reference.

    Parameters
    ----------
    result, reference
        Arrays, or lists of arrays, or None. The reference may be in a wider floating-point type.
    tensor
        The output's type by the signature; its element type is compared where it is a tensor.
    limit
        From ``tolerance``.
    quantized
        Whether integers come out of a rounding and may differ by one in a few places.
    yardstick
        Of the reference, where it is compared with many results.
    """
    if reference is None or result is None:
        return (
            Comparison(0.0) if reference is result else _wrong("one is an empty optional, the other is not")
        )
    if isinstance(reference, list | tuple):
        return _compare_lists(result, reference, limit, quantized=quantized)
    result, reference = np.asarray(result), np.asarray(reference)
    if result.shape != reference.shape:
        return _wrong(f"has shape {list(result.shape)}, the reference has {list(reference.shape)}")
    if tensor is not None and tensor.is_tensor and tensor.dtype != "string":
        if result.dtype != tensor.numpy_dtype:
            return _wrong(f"has type {result.dtype.name}, the signature says {tensor.dtype}")
        if _ROUNDOFF.get(tensor.dtype) is not None:
            return _compare_floats(result, reference, limit, yardstick)
    elif result.dtype.kind in "fc" and reference.dtype.kind in "fc":
        return _compare_floats(result, reference, limit)
    return _compare_exact(result, reference, quantized=quantized)


def is_quantized(signature: OpSignature) -> bool:
    """Return whether integer outputs of the operator come out of a rounding of real numbers."""
    if signature.body is not None:
        return b"Quantize" in signature.body or b"QLinear" in signature.body
    return signature.op_type in ("QuantizeLinear", "DynamicQuantizeLinear") or signature.op_type.startswith(
        "QLinear"
    )


def _compare_lists(result: Any, reference: Sequence[Any], limit: float, *, quantized: bool) -> Comparison:
    if not isinstance(result, list | tuple) or len(result) != len(reference):
        return _wrong(f"is no sequence of {len(reference)} values")
    worst = Comparison(0.0)
    for mine, theirs in zip(result, reference, strict=True):
        found = compare(mine, theirs, None, limit, quantized=quantized)
        if found.reason is not None:
            return found
        worst = max(worst, found, key=lambda c: c.error)
    return worst


def _compare_exact(result: Array, reference: Array, *, quantized: bool) -> Comparison:
    if result.dtype == np.bool_ and result.size and np.ascontiguousarray(result).view(np.uint8).max() > 1:
        return _wrong("is boolean and holds bytes other than 0 and 1")
    if result.dtype.kind in "OUST" or reference.dtype.kind in "OUST" or result.dtype == np.bool_:
        differ = np.asarray(result != reference)
        distance = differ.astype(np.int64)
    else:
        wide = np.uint64 if result.dtype == np.uint64 else np.int64
        mine, theirs = result.astype(wide), reference.astype(wide)
        distance = np.where(mine > theirs, mine - theirs, theirs - mine)
        differ = distance != 0
    count = int(np.count_nonzero(differ))
    error = count / max(1, result.size)
    if count == 0:
        return Comparison(0.0)
    if quantized and distance.max() <= 1 and count <= max(1, MAX_ROUNDED_FRACTION * result.size):
        return Comparison(error)
    return Comparison(
        error, f"differs in {count} of {result.size} elements, {_example(result, reference, differ)}"
    )


def _compare_floats(
    result: Array, reference: Array, limit: float, yardstick: Yardstick | None = None
) -> Comparison:
    """Compare by norm, by element, and where either is not finite."""
    # a reference close to the largest number may be rounded to infinity
    if yardstick is not None and yardstick.largest < _largest(result.dtype) / 2:
        quick = yardstick.error(result, limit, ELEMENT_FACTOR)
        if quick is not None:
            return Comparison(quick)
    with np.errstate(all="ignore"):
        rounded = _as_double(reference.astype(result.dtype))
        mine, theirs = _as_double(result), _as_double(reference)
        finite = np.isfinite(mine) & np.isfinite(rounded)
        if not finite.all():
            largest = _largest(result.dtype)
            same = (mine == rounded) | (np.isnan(mine) & np.isnan(rounded))
            # a sum that ends within the tolerance of the largest number may overflow or not
            close = np.abs(theirs) >= largest * (1 - 4 * limit)
            odd = ~finite & ~same & ~(close & ~np.isnan(mine))
            if odd.any():
                count = int(np.count_nonzero(odd))
                return _wrong(
                    f"is not finite where the reference is, or the other way round, in {count} of "
                    f"{mine.size} elements, {_example(mine, theirs, odd)}"
                )
            mine, theirs = np.where(finite, mine, 0.0), np.where(finite, theirs, 0.0)
        return _compare_finite(mine, theirs, limit)


def _compare_finite(mine: Array, theirs: Array, limit: float) -> Comparison:
    if mine.size == 0:
        return Comparison(0.0)
    # a power of two keeps squares in range and changes no digit
    exponent = math.frexp(float(np.abs(theirs).max()) or 1.0)[1]
    scale = 2.0 ** -max(-1000, min(1000, exponent))
    difference, scaled = np.abs(mine * scale - theirs * scale), theirs * scale
    norm = float(np.linalg.norm(scaled))
    root = norm / math.sqrt(mine.size)
    error = float(np.linalg.norm(difference)) / (norm or math.sqrt(mine.size))
    if not error <= limit:
        worst = difference == difference.max()
        return Comparison(
            error if math.isfinite(error) else math.inf,
            f"relative error {error:.1e} exceeds {limit:.1e}, {_example(mine, theirs, worst, 'worst')}",
        )
    bound = ELEMENT_FACTOR * limit * (np.abs(scaled) + root) if norm else limit
    far = difference > bound
    if far.any():
        count = int(np.count_nonzero(far))
        return Comparison(
            error, f"{count} of {mine.size} elements are far off, {_example(mine, theirs, far)}"
        )
    return Comparison(error)


def _as_double(array: Array) -> Array:
    if array.dtype.kind == "c":
        pairs = np.ascontiguousarray(array.astype(np.complex128)).reshape(-1)
        return pairs.view(np.float64)
    return array.astype(np.float64).reshape(-1)


def _largest(dtype: np.dtype[Any]) -> float:
    import ml_dtypes

    return float(ml_dtypes.finfo(dtype).max)


def _example(result: Array, reference: Array, where: Array, which: str = "first") -> str:
    index = int(np.flatnonzero(where)[0])
    return f"{which} at {index}: {result.reshape(-1)[index]}, reference {reference.reshape(-1)[index]}"


def _wrong(reason: str) -> Comparison:
    return Comparison(math.inf, reason)
