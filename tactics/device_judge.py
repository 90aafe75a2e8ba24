"""Judging results on the device: large ones that are right need not come to the host."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tactician.signature import OpSignature
from tactician.tactics.expected import Expected
from tactician.tactics.tolerance import ELEMENT_FACTOR

if TYPE_CHECKING:
    from tactician.plugins.examiner import Examiner

FEWEST = 1 << 15
"""Elements of an output from which on it costs less to look at it on the device."""


class DeviceJudge:
    """Tells results of one call that are right; whatever is not goes to the host, which finds words for it."""

    def __init__(self, examiner: Examiner, signature: OpSignature, expected: Expected) -> None:
        self.examiner = examiner
        self._types, self._expected = signature.outputs, expected
        self._held: dict[int, list[Any] | None] = {}

    def can_judge(self, number: int) -> bool:
        """Return whether all outputs for set ``number`` of the inputs can be judged on the device."""
        if number not in self._held:
            self._held[number] = self._hold(number)
        return self._held[number] is not None

    def error(
        self, number: int, outputs: Sequence[Any], numerics: frozenset[str], stream: Any
    ) -> tuple[float, float] | None:
        """Return the largest relative error of ``outputs``, and the widest tolerance; None where one may be wrong."""
        held, yardsticks = self._held[number], self._expected.yardsticks(number)
        limits = self._expected.limits(numerics)
        assert held is not None
        worst = 0.0
        for tensor, values, yardstick, limit in zip(outputs, held, yardsticks, limits, strict=True):
            assert yardstick is not None
            root = yardstick.norm / math.sqrt(yardstick.values.size)
            square = self.examiner.square_error(tensor, values, ELEMENT_FACTOR * limit, root, stream)
            error = math.sqrt(square) / yardstick.norm if math.isfinite(square) else math.inf
            if not error <= limit:
                return None
            worst = max(worst, error)
        return worst, max(limits)

    def _hold(self, number: int) -> list[Any] | None:
        kinds = [t.dtype if t is not None and t.is_static else "" for t in self._types]
        if not kinds or any(kind not in self.examiner.TYPES for kind in kinds):
            return None
        if max(t.size for t in self._types if t is not None) < FEWEST:
            return None
        yardsticks = self._expected.yardsticks(number)
        found = [y for y in yardsticks if y is not None]
        return [self.examiner.hold(y.values) for y in found] if len(found) == len(kinds) else None
