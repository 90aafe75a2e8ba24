"""Pixels for convolutions by the tensor memory accelerator: its im2col walk over an input with the channels innermost.

A copy brings ``pixels`` rows of some channels. It begins at a pixel and goes on by the strides, row by row and image by
image, within a box whose corners are given relative to the image's first and last pixel; to every pixel that it comes
to, the offset of a tap of the filter is added. What lies outside of the image is zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tactician.builtin_kernels.cuda.conv_problem import ConvProblem
from tactician.builtin_kernels.cuda.indexing import Shape
from tactician.builtin_kernels.cuda.tensor import DeviceTensor
from tactician.builtin_kernels.cuda.tensor_map import kept, view_of

LOWEST_CORNER, HIGHEST_CORNER = -128, 127
"""Limits of a box's corners where there are two spatial dimensions: 8 bits each."""
MOST_OFFSET = 255
"""Farthest tap, in pixels, where there are two spatial dimensions."""
MOST_STRIDE = 8
"""Longest step of the walk."""
SPATIAL = slice(1, 3)
"""Height and width among the three spatial dimensions of a problem."""


@dataclass(frozen=True)
class Im2col:
    """The walk whose pixels are those of a convolution's output, in their order; pairs are height and width."""

    shape: Shape
    """Of the input: images, height, width, channels."""
    lower: Shape
    """First pixel that a window begins at, relative to the image's first."""
    upper: Shape
    """Last pixel that a window may begin at, relative to the image's last."""
    strides: Shape
    """From one pixel to the next."""
    farthest: Shape
    """Offset of the last tap."""

    @classmethod
    def of(cls, problem: ConvProblem) -> Im2col:
        """Return the walk for a convolution in two dimensions, of one group."""
        window = problem.window
        farthest = tuple((k - 1) * d for k, d in zip(window.kernel, window.dilations, strict=True))[SPATIAL]
        return cls(
            (problem.batch, *window.size[SPATIAL], problem.channels),
            tuple(-b for b in window.before[SPATIAL]),
            tuple(a - f for a, f in zip(window.after[SPATIAL], farthest, strict=True)),
            window.strides[SPATIAL],
            farthest,
        )

    @property
    def out(self) -> Shape:
        """Height and width of the output: pixels of the box that the walk comes to."""
        boxes = zip(self.shape[1:3], self.lower, self.upper, self.strides, strict=True)
        return tuple((size + upper - lower - 1) // stride + 1 for size, lower, upper, stride in boxes)

    def decline(self) -> str | None:
        """Return why a tensor map can't describe this walk, or None."""
        corners = (*self.lower, *self.upper)
        if min(corners) < LOWEST_CORNER or max(corners) > HIGHEST_CORNER:
            return (
                f"windows begin from {self.lower} before to {self.upper} behind the image; "
                f"a tensor map holds {LOWEST_CORNER} to {HIGHEST_CORNER}"
            )
        if max(self.farthest) > MOST_OFFSET:
            return f"the last tap is {self.farthest} pixels from the first; a copy reaches {MOST_OFFSET}"
        if max(self.strides) > MOST_STRIDE:
            return f"strides of {self.strides} are longer than the {MOST_STRIDE} of a tensor map"
        return None

    def mapper(self, channels: int, pixels: int) -> Callable[[DeviceTensor], Any]:
        """Return a function that makes the map of an input, for copies of ``pixels`` rows of ``channels``.

        The rows are of 128 bytes, swizzled by as many.
        """
        return kept(lambda tensor: self._encode(tensor, channels, pixels))

    def _encode(self, tensor: DeviceTensor, channels: int, pixels: int) -> Any:
        # cuda.core has no public way to make maps of this kind yet
        from cuda.core._tensor_map import (
            TensorMapDataType,
            TensorMapDescriptor,
            TensorMapL2Promotion,
            TensorMapSwizzle,
        )

        return TensorMapDescriptor._from_im2col(
            view_of(tensor, self.shape),
            self.lower,
            self.upper,
            channels,
            pixels,
            element_strides=(1, *self.strides, 1),
            data_type=getattr(TensorMapDataType, tensor.dtype.upper()),
            swizzle=TensorMapSwizzle.SWIZZLE_128B,
            l2_promotion=TensorMapL2Promotion.L2_256B,
        )
