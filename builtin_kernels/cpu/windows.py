"""Geometry of convolutions and pooling: kernel, strides, dilations, padding and windows of one call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tactician.signature import OpSignature

Array = np.ndarray[Any, Any]
Index = tuple[Any, ...]
"""An index into an array: slices and numbers."""


@dataclass(frozen=True)
class Geometry:
    """Spatial parameters, one entry for each spatial dimension.

    ``before`` and ``after`` are the padding; ``beyond`` is by how much the last window sticks out of the
    padded input, which only pooling with ``ceil_mode`` allows.
    """

    size: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    beyond: tuple[int, ...]

    @classmethod
    def of(cls, signature: OpSignature, kernel: Sequence[int], size: Sequence[int]) -> Geometry:
        """Return what the attributes of ``signature`` mean for ``kernel`` on an input of ``size``."""
        rank = len(kernel)
        strides = tuple(signature.attribute("strides") or (1,) * rank)
        dilations = tuple(signature.attribute("dilations") or (1,) * rank)
        spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
        auto = signature.attribute("auto_pad", "NOTSET")
        auto = auto.decode() if isinstance(auto, bytes) else auto
        if auto.startswith("SAME"):
            total = [
                max(0, (-(-n // s) - 1) * s + p - n) for n, s, p in zip(size, strides, spans, strict=True)
            ]
            small, large = tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
            before, after = (small, large) if auto == "SAME_UPPER" else (large, small)
        else:
            pads = (
                tuple(signature.attribute("pads") or (0,) * (2 * rank))
                if auto != "VALID"
                else (0,) * (2 * rank)
            )
            before, after = pads[:rank], pads[rank:]
        ceil = bool(signature.attribute("ceil_mode", 0))
        beyond = tuple(
            _beyond(n, low, high, s, p) if ceil else 0
            for n, low, high, s, p in zip(size, before, after, strides, spans, strict=True)
        )
        return cls(tuple(size), tuple(kernel), strides, dilations, before, after, beyond)

    @property
    def padded(self) -> tuple[int, ...]:
        """Size of the input with its padding and what windows reach beyond."""
        return tuple(
            n + b + a + e for n, b, a, e in zip(self.size, self.before, self.after, self.beyond, strict=True)
        )

    @property
    def out(self) -> tuple[int, ...]:
        """Number of windows."""
        return tuple(
            (n - (k - 1) * d - 1) // s + 1
            for n, k, d, s in zip(self.padded, self.kernel, self.dilations, self.strides, strict=True)
        )

    @property
    def is_padded(self) -> bool:
        """Whether any window reaches outside of the input."""
        return any((*self.before, *self.after, *self.beyond))

    def inner(self) -> Index:
        """Return where the input lies in the padded one."""
        return tuple(slice(b, b + n) for b, n in zip(self.before, self.size, strict=True))

    def tap(self, offset: Sequence[int]) -> Index:
        """Return which elements of the padded input the kernel's element at ``offset`` meets."""
        return tuple(
            slice(o * d, o * d + (n - 1) * s + 1, s)
            for o, d, n, s in zip(offset, self.dilations, self.out, self.strides, strict=True)
        )

    def windows(self, x: Array) -> Array:
        """Return views of all windows of padded ``x`` [..., *padded]: [..., *out, *kernel]."""
        rank = len(self.kernel)
        spans = tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))
        views = np.lib.stride_tricks.sliding_window_view(x, spans, axis=tuple(range(-rank, 0)))
        steps: Index = (
            ...,
            *(slice(None, None, s) for s in self.strides),
            *(slice(None, None, d) for d in self.dilations),
        )
        view: Array = views[steps]
        return view

    def pad(self, x: Array, fill: float, into: Array | None = None) -> Array:
        """Return ``x`` [..., *size] with ``fill`` around it, in ``into`` if that is given."""
        if not self.is_padded:
            return x
        shape = (*x.shape[: x.ndim - len(self.size)], *self.padded)
        padded = np.empty(shape, x.dtype) if into is None else into[: math.prod(shape)].reshape(shape)
        padded.fill(fill)
        inside: Index = (..., *self.inner())
        padded[inside] = x
        return padded


def _beyond(size: int, before: int, after: int, stride: int, span: int) -> int:
    """Return how far the last window sticks out if their number is rounded up; it starts within the input."""
    room = size + before + after
    count = -(-(room - span) // stride) + 1
    if (count - 1) * stride >= size + before:
        count -= 1
    return max(0, (count - 1) * stride + span - room)
