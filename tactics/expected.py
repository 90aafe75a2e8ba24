"""What a call must compute: references in higher precision, computed once for all candidates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tactician.signature import OpSignature, TensorType
from tactician.tactics.closeness import Yardstick
from tactician.tactics.sampling import CannotSample
from tactician.tactics.tolerance import Comparison, compare, is_quantized, tolerance

Inputs = Sequence[Any]
Reference = Callable[[OpSignature], Callable[[Inputs], Sequence[Any]]]

_WIDENED = ("float16", "bfloat16", "float32")


class Expected:
    """Reference results, each computed once: in double precision and, where need be, in the given types.

    A step function (rounding, comparing) of a computed value may rightly jump elsewhere in the given
    precision than in double; so a result that agrees with either is right.
    """

    def __init__(self, signature: OpSignature, reference: Reference, inputs_sets: Sequence[Inputs]) -> None:
        self._signature = signature
        self._make = reference
        self._sets = inputs_sets
        self._results: dict[tuple[int, bool], Sequence[Any] | Exception] = {}
        self._yardsticks: dict[tuple[int, bool], list[Yardstick | None]] = {}
        self._quantized = is_quantized(signature)

    def require(self, number: int) -> None:
        """Make sure that there is a reference for a set of inputs.

        Raises
        ------
        CannotSample
            If the reference raises on them, in every precision.
        """
        if isinstance(self._compute(number, True), Exception):
            error = self._compute(number, False)
            if isinstance(error, Exception):
                raise CannotSample(f"the reference raised {type(error).__name__}: {str(error).strip()[:300]}")

    def judge(
        self, number: int, results: Sequence[Any], numerics: frozenset[str]
    ) -> tuple[list[Comparison], float]:
        """Compare all outputs, and return the comparisons and the widest tolerance among them."""
        self.require(number)
        limits = [tolerance(self._signature, _dtype(t, r), numerics) for t, r in self._outputs(results)]
        found = self._compare(number, True, results, limits)
        if found is None or any(c.reason is not None for c in found):
            narrow = self._compare(number, False, results, limits)
            if narrow is not None and (found is None or all(c.reason is None for c in narrow)):
                found = narrow
        return found or [], max(limits, default=0.0)

    def yardsticks(self, number: int) -> list[Yardstick | None]:
        """Return what large results are compared with for a set of inputs, by output; empty without a reference."""
        self._compute(number, True)
        return self._yardsticks.get((number, True), [])

    def limits(self, numerics: frozenset[str]) -> list[float]:
        """Return the tolerance of each output, by its type in the signature."""
        return [tolerance(self._signature, _dtype(t, None), numerics) for t in self._signature.outputs]

    def _compare(
        self, number: int, wide: bool, results: Sequence[Any], limits: Sequence[float]
    ) -> list[Comparison] | None:
        reference = self._compute(number, wide)
        if isinstance(reference, Exception):
            return None
        return [
            compare(result, expected, kind, limit, quantized=self._quantized, yardstick=yardstick)
            for (kind, result), expected, limit, yardstick in zip(
                self._outputs(results), reference, limits, self._yardsticks[number, wide], strict=True
            )
            if kind is not None
        ]

    def _compute(self, number: int, wide: bool) -> Sequence[Any] | Exception:
        if (number, wide) not in self._results:
            inputs = self._sets[number]
            try:
                function = self._make(self._signature)
                results = function([_widen(x) for x in inputs] if wide else list(inputs))
                checked = self._checked(results)
                self._yardsticks[number, wide] = [_yardstick(x) for x in checked]
                self._results[number, wide] = checked
            except Exception as error:
                self._results[number, wide] = error
        return self._results[number, wide]

    def _checked(self, results: Sequence[Any]) -> Sequence[Any]:
        expected = len(self._signature.outputs)
        if len(results) != expected:
            raise ValueError(f"it returned {len(results)} outputs where the signature has {expected}")
        return results

    def _outputs(self, results: Sequence[Any]) -> list[tuple[TensorType | None, Any]]:
        return list(zip(self._signature.outputs, results, strict=True))


def _yardstick(reference: Any) -> Yardstick | None:
    return Yardstick.of(reference) if isinstance(reference, np.ndarray) else None


def _widen(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.name in _WIDENED:
        return value.astype(np.float64)
    return value


def _dtype(tensor: TensorType | None, result: Any) -> str:
    if tensor is not None and tensor.is_tensor:
        return tensor.dtype
    return result.dtype.name if isinstance(result, np.ndarray) else "float32"
