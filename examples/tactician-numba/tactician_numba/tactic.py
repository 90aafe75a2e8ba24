"""What the tactics of this target have in common: the field ``parallel``, and reasons to decline."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self, cast

import numpy as np
from tactician import Device, OpSignature, Tactic

from tactician_numba.device import NumbaDevice

FLOAT_BYTES = 4
LEAST_PARALLEL_ELEMENTS = 1 << 13
"""Fewer elements than this are done before a second thread has woken up, about 20 us."""


@dataclass(frozen=True)
class NumbaTactic(Tactic):
    """A tactic whose kernel was compiled by Numba. float32 only, static shapes.

    Parameters
    ----------
    parallel
        Whether the work is cut into a piece for each of the device's threads.
    """

    target: ClassVar[str] = "numba"
    float_inputs: ClassVar[tuple[int, ...]] = (0,)
    """Inputs that must be float32 where they are there; others say what to compute."""

    parallel: bool = False

    @classmethod
    def candidates(cls, signature: OpSignature, device: Device) -> Iterable[Self]:
        """Yield one thread and, where it may pay, all of them."""
        return [cls(parallel=parallel) for parallel in parallel_choices(signature, device)]

    def decline(self, signature: OpSignature, device: Device) -> str | None:
        """Decline dynamic shapes, other types, nothing to compute, and what ``decline_call`` does."""
        if not signature.is_static:
            return "needs static shapes"
        for index in self.float_inputs:
            tensor = signature.input(index)
            if tensor is not None and tensor.dtype != "float32":
                return f"float32 only, and input {index} is {tensor.dtype}"
        tensors = [*(signature.input(i) for i in self.float_inputs), *signature.outputs]
        if any(tensor is not None and tensor.size == 0 for tensor in tensors):
            return "an empty tensor: nothing to compute"
        return self.decline_call(signature)

    def decline_call(self, signature: OpSignature) -> str | None:
        """Return why a static float32 call is not served, in words, or None."""
        return None


def parallel_choices(signature: OpSignature, device: Device, work: int | None = None) -> Sequence[bool]:
    """Return the values of ``parallel`` worth timing; ``work`` defaults to the largest tensor's elements."""
    sizes = [t.size for t in (*signature.inputs, *signature.outputs) if t is not None and t.is_static]
    elements = max(sizes, default=0) if work is None else work
    many = int(device.facts["threads"]) > 1 and elements >= LEAST_PARALLEL_ELEMENTS
    return (True, False) if many else (False,)


def own_device(device: Device) -> NumbaDevice:
    """Return ``device`` as what it is: tactics of target ``numba`` are given no other."""
    return cast(NumbaDevice, device)


def dims_of(signature: OpSignature, index: int) -> tuple[int, ...]:
    """Return the extents of input ``index``, which must be there."""
    tensor = signature.input(index)
    if tensor is None:
        raise ValueError(f"{signature} has no input {index}")
    return tensor.dims


def text_attribute(signature: OpSignature, name: str, default: str) -> str:
    """Return a text attribute, which may be stored as bytes."""
    value = signature.attribute(name, default)
    return value.decode() if isinstance(value, bytes) else str(value)


def int64(values: Sequence[int]) -> np.ndarray:
    """Return ``values`` as kernels take lists: int64[n]."""
    return np.array(values, np.int64)


def size_of(extents: Sequence[int]) -> int:
    """Return the product of ``extents``."""
    return math.prod(extents)
