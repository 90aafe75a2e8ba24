"""Index arithmetic of the CUDA kernels, against NumPy's strides."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tactician.builtin_kernels.cuda.indexing import (
    broadcast_strides,
    collapse,
    contiguous_strides,
    index_type,
    offset_expression,
    power_of_two_below,
)
from tactician.builtin_kernels.cuda.pieces import Piece

SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=5).map(tuple)


def evaluate(text: str, i: int) -> int:
    """Compute C text with 32-bit wrap-around in Python."""
    python = re.sub(r"\(u32\)|(?<=\d)u\b", "", text).replace("/", "//")
    return int(eval(python, {"i": i})) % 2**32


def offsets(shape: tuple[int, ...], strides: tuple[int, ...]) -> list[int]:
    return [int(np.dot(place, strides)) for place in np.ndindex(*shape)]


@given(SHAPES, st.data())
def test_offset_expression(shape: tuple[int, ...], data: st.DataObject) -> None:
    target = tuple(n * data.draw(st.integers(1, 3)) if n == 1 else n for n in shape)
    strides = broadcast_strides(shape, target)
    text = offset_expression("i", target, strides)
    array = np.broadcast_to(np.arange(np.prod(shape)).reshape(shape), target)
    assert [evaluate(text, i) for i in range(array.size)] == array.reshape(-1).tolist()


@given(SHAPES)
def test_negative_strides_wrap(shape: tuple[int, ...]) -> None:
    strides = tuple(-s for s in contiguous_strides(shape))
    last = int(np.prod(shape)) - 1
    text = offset_expression("i", shape, strides)
    assert [(last + evaluate(text, i)) % 2**32 for i in range(last + 1)] == list(range(last, -1, -1))


@given(SHAPES, SHAPES.flatmap(st.permutations))
def test_collapse_keeps_the_order(shape: tuple[int, ...], permuted: list[int]) -> None:
    strides = contiguous_strides(shape)
    other = tuple(3 * s for s in strides)
    extents, (a, b) = collapse(shape, strides, other)
    assert offsets(extents, a) == offsets(shape, strides)
    assert offsets(extents, b) == offsets(shape, other)
    assert len(extents) <= max(len(shape), 1)


@given(SHAPES, st.permutations(range(5)), st.sampled_from([1, 2, 4, 8]))
def test_words_move_the_same_bytes(shape: tuple[int, ...], order: list[int], itemsize: int) -> None:
    permutation = [p for p in order if p < len(shape)]
    own = contiguous_strides(shape)
    moved = tuple(shape[p] for p in permutation)
    piece = Piece(0, 0, moved, tuple(own[p] for p in permutation), contiguous_strides(moved))
    wide, word = piece.in_words(itemsize)
    factor = word // itemsize
    assert word <= 16
    assert wide.count * factor == piece.count
    elements = {
        (s * factor + e, t * factor + e)
        for s, t in zip(
            offsets(wide.shape, wide.source_strides), offsets(wide.shape, wide.target_strides), strict=True
        )
        for e in range(factor)
    }
    assert elements == set(
        zip(offsets(moved, piece.source_strides), offsets(moved, piece.target_strides), strict=True)
    )


def test_broadcast_strides_refuses_what_does_not_broadcast() -> None:
    with pytest.raises(ValueError, match=r"\(3,\) doesn't broadcast to \(2, 4\)"):
        broadcast_strides((3,), (2, 4))


def test_index_type_and_powers() -> None:
    assert index_type(2**31 - 1) == "u32"
    assert index_type(5, 2**31) == "u64"
    assert [power_of_two_below(n, 8) for n in (1, 6, 12, 64, 0)] == [1, 2, 4, 8, 8]
