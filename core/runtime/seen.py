"""A caller's tensor that a session has seen, to be known again without importing it."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, is_dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Seen:
    """A tensor with a ``data_ptr()`` (PyTorch's), and what a device made of it.

    An import by DLPack takes tens of microseconds; that the same object is where it was is known in one. The caller's
    tensor is not kept alive.
    """

    caller: weakref.ref[Any]
    pointer: int
    shape: Any
    dtype: Any
    tensor: Any

    @classmethod
    def of(cls, caller: Any, tensor: Any) -> Seen | None:
        """Return what is to be remembered of ``caller``, which became ``tensor``; None if it can't be known again."""
        pointer = getattr(caller, "data_ptr", None)
        if not callable(pointer) or not callable(getattr(caller, "is_contiguous", None)):
            return None
        try:
            return cls(weakref.ref(caller), pointer(), caller.shape, caller.dtype, _with_owner(tensor, None))
        except TypeError:
            return None

    def kept_by(self, caller: Any) -> Any:
        """Return ``tensor`` as one that keeps ``caller`` alive: for those that leave the session."""
        return _with_owner(self.tensor, caller)

    def is_same(self, caller: Any) -> bool:
        """Return whether ``caller`` is that tensor, in the same place, of the same shape and type."""
        if caller is None or id(self.caller()) != id(caller):
            return False
        return bool(
            caller.data_ptr() == self.pointer
            and caller.shape == self.shape
            and caller.dtype == self.dtype
            and caller.is_contiguous()
        )


def _with_owner(tensor: Any, owner: Any) -> Any:
    """Return ``tensor`` with another owner, where its kind has one."""
    if is_dataclass(tensor) and not isinstance(tensor, type) and hasattr(tensor, "owner"):
        return replace(tensor, owner=owner)
    return tensor
