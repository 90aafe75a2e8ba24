"""Convolution, pooling and softmax with NumPy: where ONNX's own reference is very slow, or not right.

Attributes have ONNX's names. All is computed in the type of the input, or in ``float32`` if that is narrower.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Ints = Sequence[int]


def conv(
    x: Array,
    w: Array,
    b: Array | None = None,
    *,
    auto_pad: str | None = "NOTSET",
    dilations: Ints | None = None,
    group: int | None = 1,
    kernel_shape: Ints | None = None,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Array:
    """Return ``Conv`` of ``x`` [batch, channels, ...] and ``w`` [filters, channels / group, ...]."""
    wide_x, wide_w = _wide(x), _wide(w)
    kernel = tuple(kernel_shape or w.shape[2:])
    strides, dilations, groups = strides or (1,) * len(kernel), dilations or (1,) * len(kernel), group or 1
    before, after = _pads(auto_pad, pads, x.shape[2:], kernel, strides, dilations)
    padded = np.pad(wide_x, [(0, 0), (0, 0), *zip(before, after, strict=True)])
    windows = _windows(padded, kernel, strides, dilations)  # [batch, channels, *out, *kernel]
    batch, out = x.shape[0], windows.shape[2 : 2 + len(kernel)]
    rank = len(kernel)
    result = np.empty((batch, w.shape[0], *out), np.result_type(wide_x, wide_w))
    split_c, split_f = x.shape[1] // groups, w.shape[0] // groups
    # [channels, *kernel, *out]: the rows of a matrix that the filters multiply
    order = (0, *range(1 + rank, 1 + 2 * rank), *range(1, 1 + rank))
    for n, g in itertools.product(range(batch), range(groups)):
        columns = (
            windows[n, g * split_c : (g + 1) * split_c]
            .transpose(order)
            .reshape(split_c * int(np.prod(kernel)), -1)
        )
        filters = wide_w[g * split_f : (g + 1) * split_f].reshape(split_f, -1)
        result[n, g * split_f : (g + 1) * split_f] = (filters @ columns).reshape(split_f, *out)
    if b is not None:
        result += _wide(b).reshape(-1, *(1,) * rank)
    return result.astype(x.dtype)


def max_pool(
    x: Array,
    *,
    auto_pad: str | None = "NOTSET",
    ceil_mode: int | None = 0,
    dilations: Ints | None = None,
    kernel_shape: Ints,
    pads: Ints | None = None,
    storage_order: int | None = 0,  # concerns the indices, the second output
    strides: Ints | None = None,
) -> Array:
    """Return the first output of ``MaxPool`` of ``x`` [batch, channels, ...]."""
    windows, _ = _pool(x, kernel_shape, auto_pad, ceil_mode, dilations, pads, strides, _lowest(x))
    return np.asarray(windows.max(axis=tuple(range(-len(kernel_shape), 0))).astype(x.dtype))


def max_pool_indices(
    x: Array,
    *,
    auto_pad: str | None = "NOTSET",
    ceil_mode: int | None = 0,
    dilations: Ints | None = None,
    kernel_shape: Ints,
    pads: Ints | None = None,
    storage_order: int | None = 0,
    strides: Ints | None = None,
) -> Array:
    """Return the second output of ``MaxPool``: where in ``x``, all of it in a row, each maximum lies.

    Of equal elements it is the first one. ``storage_order`` 1 counts the spatial axes the other way round.
    """
    rank, size = len(kernel_shape), x.shape[2:]
    steps, spread = strides or (1,) * rank, dilations or (1,) * rank
    windows, counted = _pool(x, kernel_shape, auto_pad, ceil_mode, dilations, pads, strides, _lowest(x))
    windows, counted = (w.reshape(*w.shape[:-rank], -1) for w in (windows, counted))
    place = windows.argmax(axis=-1)
    first = np.broadcast_to(
        counted.argmax(axis=-1), place.shape
    )  # for windows of nothing but the lowest number
    place = np.where(
        np.take_along_axis(np.broadcast_to(counted, windows.shape), place[..., None], -1)[..., 0],
        place,
        first,
    )
    before, _ = _pads(auto_pad, pads, size, kernel_shape, steps, spread)
    offsets = np.unravel_index(place, tuple(kernel_shape))
    weights = np.cumprod((1, *(size[:-1] if storage_order else size[:0:-1])))
    flat = np.zeros(place.shape, np.int64)
    for axis, weight in enumerate(weights if storage_order else weights[::-1]):
        start = np.arange(place.shape[2 + axis]) * steps[axis] - before[axis]
        start = start.reshape(-1, *(1,) * (rank - 1 - axis))
        flat += weight * (start + offsets[axis] * spread[axis])
    planes = np.arange(x.shape[0] * x.shape[1]).reshape(*x.shape[:2], *(1,) * rank)
    return np.asarray(flat + planes * math.prod(size))


def average_pool(
    x: Array,
    *,
    auto_pad: str | None = "NOTSET",
    ceil_mode: int | None = 0,
    count_include_pad: int | None = 0,
    dilations: Ints | None = None,
    kernel_shape: Ints,
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Array:
    """Return the mean of each window of ``x`` [batch, channels, ...]: ``AveragePool``.

    Windows that ``ceil_mode`` lets stick out beyond the padding never count what lies outside of it.
    """
    axes = tuple(range(-len(kernel_shape), 0))
    windows, counted = _pool(
        x, kernel_shape, auto_pad, ceil_mode, dilations, pads, strides, 0, bool(count_include_pad)
    )
    return np.asarray((windows.sum(axis=axes) / counted.sum(axis=axes)).astype(x.dtype))


def softmax(x: Array, *, axis: int | None = -1) -> Array:
    """Return ``Softmax`` of ``x`` along ``axis``."""
    return np.asarray(np.exp(log_softmax(_wide(x), axis=axis)).astype(x.dtype))


def log_softmax(x: Array, *, axis: int | None = -1) -> Array:
    """Return ``LogSoftmax`` of ``x`` along ``axis``, finite where the softmax itself is too small."""
    axis = -1 if axis is None else axis
    shifted = _wide(x)
    shifted = shifted - shifted.max(axis=axis, keepdims=True, initial=-np.inf)
    return np.asarray((shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))).astype(x.dtype))


def flattening(function: Callable[..., Array]) -> Callable[..., Array]:
    """Return ``function`` as it was before opset 13: all axes from ``axis`` on (1, if not given) are one."""

    def flattened(x: Array, *, axis: int | None = 1) -> Array:
        axis = 1 if axis is None else axis
        rows = math.prod(x.shape[: axis + x.ndim if axis < 0 else axis])
        return function(x.reshape(rows, -1), axis=-1).reshape(x.shape)

    return flattened


def _pool(
    x: Array,
    kernel: Ints,
    auto_pad: str | None,
    ceil_mode: int | None,
    dilations: Ints | None,
    pads: Ints | None,
    strides: Ints | None,
    fill: float,
    count_pads: bool = False,
) -> tuple[Array, Array]:
    """Return the windows of ``x`` padded with ``fill``, and, in the same form, 1 where an element counts."""
    strides, dilations = strides or (1,) * len(kernel), dilations or (1,) * len(kernel)
    before, after = _pads(auto_pad, pads, x.shape[2:], kernel, strides, dilations)
    extra = []
    for size, k, s, d, low, high in zip(x.shape[2:], kernel, strides, dilations, before, after, strict=True):
        span, room = (k - 1) * d + 1, size + low + high
        count = (room - span) // s + 1
        if ceil_mode and (room - span) % s and count * s < size + low:  # a window must start within the input
            count += 1
        extra.append(max(0, (count - 1) * s + span - room))
    inside = np.pad(
        np.ones(x.shape[2:], np.int64), list(zip(before, after, strict=True)), constant_values=int(count_pads)
    )
    inside = np.pad(inside, [(0, e) for e in extra])[None, None]
    widths = [(low, high + e) for low, high, e in zip(before, after, extra, strict=True)]
    padded = np.pad(_wide(x), [(0, 0), (0, 0), *widths], constant_values=fill)
    return _windows(padded, kernel, strides, dilations), _windows(inside, kernel, strides, dilations)


def _pads(
    auto_pad: str | None, pads: Ints | None, size: Ints, kernel: Ints, strides: Ints, dilations: Ints
) -> tuple[list[int], list[int]]:
    rank = len(kernel)
    if auto_pad in (None, "NOTSET", "VALID", ""):
        given = list(pads) if pads and auto_pad != "VALID" else [0] * (2 * rank)
        return given[:rank], given[rank:]
    total = [
        max(0, (-(-n // s) - 1) * s + (k - 1) * d + 1 - n)
        for n, k, s, d in zip(size, kernel, strides, dilations, strict=True)
    ]
    small, large = [t // 2 for t in total], [t - t // 2 for t in total]
    return (small, large) if auto_pad == "SAME_UPPER" else (large, small)


def _windows(x: Array, kernel: Ints, strides: Ints, dilations: Ints) -> Array:
    """Return views of all windows over the last axes: [..., *positions, *kernel]."""
    rank = len(kernel)
    axes = tuple(range(-rank, 0))
    spans = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    views = np.lib.stride_tricks.sliding_window_view(x, spans, axis=axes)
    steps: tuple[Any, ...] = (
        ...,
        *(slice(None, None, s) for s in strides),
        *(slice(None, None, d) for d in dilations),
    )
    view: Array = views[steps]
    return view


def _lowest(x: Array) -> float:
    return -np.inf if x.dtype.kind in "fV" else np.iinfo(x.dtype).min


def _wide(x: Array) -> Array:
    return x.astype(np.float32) if x.dtype.itemsize < 4 and x.dtype.kind in "fV" else x
