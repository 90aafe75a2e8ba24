"""Tensors that a session has seen: known again in the same place, and never taken for another."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import Any

from tactician.runtime.seen import Seen


@dataclass(frozen=True)
class Imported:
    pointer: int
    owner: Any = None


class Tensor:
    """What PyTorch's tensors have and is asked for."""

    def __init__(self, pointer: int, shape: tuple[int, ...]) -> None:
        self.pointer, self.shape, self.dtype, self.contiguous = pointer, shape, "float16", True

    def data_ptr(self) -> int:
        return self.pointer

    def is_contiguous(self) -> bool:
        return self.contiguous


def test_the_same_tensor_is_known_again() -> None:
    tensor = Tensor(16, (2, 3))
    seen = Seen.of(tensor, Imported(16, owner=tensor))
    assert seen is not None
    assert seen.is_same(tensor)
    assert seen.tensor == Imported(16)
    assert not seen.is_same(Tensor(16, (2, 3)))


def test_a_tensor_that_changed_is_another() -> None:
    for change in ({"pointer": 32}, {"shape": (3, 2)}, {"contiguous": False}, {"dtype": "int16"}):
        tensor = Tensor(16, (2, 3))
        seen = Seen.of(tensor, Imported(16))
        assert seen is not None
        vars(tensor).update(change)
        assert not seen.is_same(tensor), change


def test_the_callers_tensor_is_not_kept_alive() -> None:
    tensor = Tensor(16, (2,))
    seen = Seen.of(tensor, Imported(16, owner=tensor))
    assert seen is not None
    del tensor
    gc.collect()
    assert seen.caller() is None
    assert not seen.is_same(None)


def test_what_has_no_pointer_is_not_remembered() -> None:
    assert Seen.of([1, 2], Imported(1)) is None
    assert Seen.of(memoryview(b"ab"), Imported(1)) is None
