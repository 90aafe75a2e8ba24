"""Geometry of two-dimensional windows: what the attributes of Conv and MaxPool mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tactician import OpSignature

from tactician_numba.tactic import dims_of, int64, text_attribute

AXES = 2
"""Spatial axes; every field of ``Window`` has so many entries: rows, columns."""


@dataclass(frozen=True)
class Window:
    """Where windows lie. Only padding before the image moves them; what follows is decided by ``out``."""

    size: tuple[int, ...]
    out: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]

    @classmethod
    def of(cls, signature: OpSignature, kernel: Sequence[int]) -> Window:
        """Return the windows of a call with a static output: the output's extents need no computing."""
        output = signature.outputs[0]
        assert output is not None
        size, out = dims_of(signature, 0)[2:], output.dims[2:]
        strides = tuple(signature.attribute("strides") or (1,) * AXES)
        dilations = tuple(signature.attribute("dilations") or (1,) * AXES)
        before = tuple(signature.attribute("pads") or (0,) * (2 * AXES))[:AXES]
        automatic = text_attribute(signature, "auto_pad", "NOTSET")
        if automatic != "NOTSET":
            total = [
                max(0, (o - 1) * s + (k - 1) * d + 1 - n)
                for n, o, k, s, d in zip(size, out, kernel, strides, dilations, strict=True)
            ]
            # an odd element goes to the end in SAME_UPPER, to the start in SAME_LOWER; VALID has none
            before = tuple((t + (automatic == "SAME_LOWER")) // 2 for t in total)
        return cls(size, out, tuple(kernel), strides, dilations, before)

    @property
    def pixels(self) -> int:
        """Number of windows."""
        return self.out[0] * self.out[1]

    @property
    def taps(self) -> int:
        """Elements of one window."""
        return self.kernel[0] * self.kernel[1]

    def sizes_array(self) -> np.ndarray:
        """Return height and width of the input, then of the output, as kernels take them."""
        return int64((*self.size, *self.out))

    def window_array(self) -> np.ndarray:
        """Return kernel, strides, dilations and padding before, rows and columns of each, as kernels take them."""
        return int64((*self.kernel, *self.strides, *self.dilations, *self.before))
