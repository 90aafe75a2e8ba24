"""Tensor maps: what the tensor memory accelerator has to know of a tensor, passed to kernels by value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tactician.builtin_kernels.cuda.indexing import Shape
from tactician.builtin_kernels.cuda.tensor import DeviceTensor

ALIGNMENT = 16
"""Bytes that a tensor's address and each of its strides but the innermost must be a multiple of."""
MOST_BOX_ELEMENTS = 256
"""Longest side of a box."""
_KEPT = 64
"""Maps that are kept: one for each of the addresses that a launch is called with."""


def mapper(shape: Shape, box: Shape) -> Callable[[DeviceTensor], Any]:
    """Return a function that makes the map of a tensor as one of ``shape``, in boxes whose rows are swizzled by 128 bytes.

    Parameters
    ----------
    shape
        Up to 5 extents, innermost last; the tensor is contiguous, and may be larger. Elements of a byte are bytes.
    box
        As many extents; the innermost is of 128 bytes.
    """
    return kept(lambda tensor: _encode(tensor, shape, box))


def kept(encode: Callable[[DeviceTensor], Any]) -> Callable[[DeviceTensor], Any]:
    """Return ``encode`` with a memory of the maps that it made of the last addresses."""
    made: dict[int, Any] = {}

    def make(tensor: DeviceTensor) -> Any:
        found = made.get(tensor.pointer)
        if found is None:
            if len(made) >= _KEPT:
                made.clear()
            found = made[tensor.pointer] = encode(tensor)
        return found

    return make


def view_of(tensor: DeviceTensor, shape: Shape) -> Any:
    """Return ``tensor`` as cuda.core sees tensors, as one of ``shape``."""
    from cuda.core import Buffer
    from cuda.core.utils import StridedMemoryView

    buffer = Buffer.from_handle(tensor.pointer, tensor.nbytes, owner=tensor)
    return StridedMemoryView.from_buffer(buffer, shape, dtype=tensor.numpy_dtype)


def _encode(tensor: DeviceTensor, shape: Shape, box: Shape) -> Any:
    # the public as_tensor_map asks for these enumerations, which cuda.core exports nowhere else
    from cuda.core._tensor_map import TensorMapDataType, TensorMapL2Promotion, TensorMapSwizzle

    if tensor.numpy_dtype.itemsize == 1:
        tensor = replace(tensor, dtype="uint8")  # the copy engine knows no other type of 8 bits
    return view_of(tensor, shape).as_tensor_map(
        box_dim=box,
        data_type=getattr(TensorMapDataType, tensor.dtype.upper()),
        swizzle=TensorMapSwizzle.SWIZZLE_128B,
        l2_promotion=TensorMapL2Promotion.L2_256B,
    )
