"""A tensor in GPU memory."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tactician.signature import numpy_dtype


@dataclass(frozen=True, slots=True)
class DeviceTensor:
    """A contiguous, row-major tensor in the memory of one GPU.

    Other libraries take it without a copy through DLPack (``torch.from_dlpack(tensor)``) or, for types that NumPy
    knows, through ``__cuda_array_interface__``.
    """

    pointer: int
    shape: tuple[int, ...]
    dtype: str
    device_index: int = 0
    owner: Any = field(default=None, compare=False, repr=False)
    """Keeps the memory alive."""

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The NumPy type of one element."""
        return numpy_dtype(self.dtype)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.size * self.numpy_dtype.itemsize

    def __dlpack_device__(self) -> tuple[int, int]:
        """Return DLPack's number of CUDA and the device index."""
        return (2, self.device_index)

    def __dlpack__(self, **options: Any) -> Any:
        """Return a DLPack capsule that shares this memory."""
        from cuda.core import Buffer
        from cuda.core.utils import StridedMemoryView

        buffer = Buffer.from_handle(self.pointer, max(self.nbytes, 1), owner=self)
        return StridedMemoryView.from_buffer(buffer, self.shape, dtype=self.numpy_dtype).__dlpack__(**options)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """The array interface, version 3."""
        if self.numpy_dtype.kind not in "biuf" or self.dtype == "bfloat16":
            raise AttributeError(f"__cuda_array_interface__ can't express {self.dtype}; use DLPack")
        return {
            "shape": self.shape,
            "typestr": self.numpy_dtype.str,
            "data": (self.pointer, False),
            "version": 3,
            "strides": None,
        }
