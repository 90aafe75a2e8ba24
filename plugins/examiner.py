"""What a device can tell of results without copying them to the host."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np


class Examiner(ABC):
    """Compares tensors where they lie. All it does is done on ``stream``, and has ended when it returns."""

    TYPES: tuple[str, ...] = ()
    """Element types whose errors it can tell."""

    @abstractmethod
    def hold(self, values: np.ndarray[Any, Any]) -> Any:
        """Return a copy on the device of ``values``, flat and in double precision."""

    @abstractmethod
    def copy(self, tensor: Any, nbytes: int, stream: Any) -> Any:
        """Return a copy of the ``nbytes`` bytes of ``tensor``."""

    @abstractmethod
    def same(self, tensor: Any, other: Any, nbytes: int, stream: Any) -> bool:
        """Return whether ``nbytes`` bytes of both are equal."""

    @abstractmethod
    def square_error(self, tensor: Any, held: Any, allowed: float, root: float, stream: Any) -> float:
        """Return the sum of (x - h)^2 over all elements x of ``tensor`` and h of ``held``.

        It is infinite, or not a number, where an element is not finite or |x - h| exceeds ``allowed * (|h| + root)``.
        """
