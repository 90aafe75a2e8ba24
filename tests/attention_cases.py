"""Calls of Attention with awkward and with real shapes, for the interpreter, the compiler and GPUs."""

from __future__ import annotations

from typing import Any

import numpy as np
from memory_bound_cases import BF16, Case, blank, boolean, i64, normal

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]
HALF = np.dtype(np.float16)


def attention(
    q: Shape,
    k: Shape,
    v: Shape | None = None,
    mask: Array | None = None,
    dtype: Any = HALF,
    **attributes: Any,
) -> Case:
    """Return the attention of random queries, keys and values of these shapes."""
    arrays: list[Array | None] = [normal(*shape, dtype=dtype) for shape in (q, k, v or k)]
    return Case("Attention", arrays + ([] if mask is None else [mask]), attributes, version=24)


def padded(q: Shape, k: Shape, lengths: Array, dtype: Any = HALF, **attributes: Any) -> Case:
    """Return an attention whose batches have ``lengths`` keys each."""
    arrays = [normal(*shape, dtype=dtype) for shape in (q, k, k)]
    return Case("Attention", [*arrays, None, None, None, lengths], attributes, version=24)


def large(q: Shape, k: Shape, mask: Array | None = None, dtype: Any = HALF, **attributes: Any) -> Case:
    """Return an attention of blanks."""
    arrays: list[Array | None] = [blank(*shape, dtype=dtype) for shape in (q, k, k)]
    return Case("Attention", arrays + ([] if mask is None else [mask]), attributes, version=24)


def bias(*shape: int, dtype: Any = HALF) -> Array:
    """Return a mask of numbers, every third of them minus infinity."""
    mask = normal(*shape, dtype=dtype)
    mask.reshape(-1)[::3] = -np.inf
    return mask


def lowest(*shape: int) -> Array:
    """Return a mask of zeros and, as exporters write it, the lowest finite number."""
    return np.where(boolean(*shape), 0, np.finfo(np.float16).min).astype(HALF)


def without_rows(mask: Array, value: Any) -> Array:
    """Return ``mask`` with two rows in which no key takes part."""
    mask[..., 1, :] = value
    mask[..., -1, :] = value
    return mask


SMALL = [
    attention((2, 2, 37, 24), (2, 2, 75, 24)),
    attention((1, 2, 133, 32), (1, 2, 133, 32), is_causal=1, dtype=BF16),
    attention((1, 4, 7, 40), (1, 2, 130, 40), scale=0.3),
    attention((1, 4, 70, 16), (1, 1, 33, 16), is_causal=1),
    attention((1, 1, 19, 8), (1, 1, 21, 8), (1, 1, 21, 24), dtype=BF16),
    attention((1, 1, 21, 72), (1, 1, 19, 72), (1, 1, 19, 8)),
    attention((1, 2, 17, 128), (1, 2, 70, 128), is_causal=1),
    attention((1, 1, 18, 256), (1, 1, 66, 256), dtype=BF16),
    attention((1, 1, 9, 192), (1, 1, 80, 192), (1, 1, 80, 128)),
    attention((2, 21, 64), (2, 30, 32), (2, 30, 16), q_num_heads=4, kv_num_heads=2),
    attention((1, 33, 64), (1, 33, 64), q_num_heads=2, kv_num_heads=2, is_causal=1, dtype=BF16),
    attention((1, 8, 1, 64), (1, 2, 300, 64)),
    attention((2, 3, 1, 16), (2, 3, 1, 16)),
    attention((1, 2, 70, 16), (1, 2, 90, 16), softcap=1.5, scale=1.0),
    attention((2, 2, 20, 16), (2, 2, 50, 16), mask=boolean(20, 50)),
    attention((2, 4, 20, 16), (2, 2, 51, 16), mask=boolean(2, 1, 1, 51)),
    attention((2, 2, 20, 16), (2, 2, 50, 16), mask=bias(2, 1, 1, 50)),
    attention((2, 4, 20, 16), (2, 2, 51, 16), mask=bias(2, 4, 20, 51, dtype=np.float32), dtype=BF16),
    attention((2, 4, 9, 16), (2, 2, 50, 16), mask=bias(4, 9, 50, dtype=BF16), dtype=BF16),
    attention((2, 2, 20, 16), (2, 2, 50, 16), mask=bias(50)),
    attention((2, 2, 20, 16), (2, 2, 50, 16), mask=bias(2, 1, 20, 50), is_causal=1, softcap=2.0),
    attention((2, 2, 20, 16), (2, 2, 50, 16), mask=without_rows(boolean(20, 50), False)),
    attention((1, 2, 20, 16), (1, 2, 50, 16), mask=without_rows(bias(2, 20, 50), -np.inf)),
    attention((1, 2, 40, 16), (1, 2, 40, 16), mask=without_rows(boolean(40, 40), False), is_causal=1),
    attention((1, 2, 40, 16), (1, 2, 90, 16), mask=boolean(40, 71)),
    attention((1, 2, 20, 16), (1, 2, 50, 16), mask=lowest(20, 50)),
    padded((3, 2, 20, 16), (3, 2, 80, 16), i64(80, 0, 37)),
    padded((3, 4, 20, 16), (3, 2, 80, 16), i64(75, 7, 37), is_causal=1, dtype=BF16),
    attention((1, 2, 0, 16), (1, 2, 40, 16)),
]
"""Odd lengths, each width, each kind of mask, rows without a key, shared heads, and both layouts."""

LARGE = [
    *(large((2, 3, 1024, d), (2, 3, 1024, d), is_causal=c) for d in (32, 64, 128, 256) for c in (0, 1)),
    large((1, 8, 1000, 128), (1, 2, 1000, 128), is_causal=1, dtype=BF16),
    *(large((2, 4, 1000, d), (2, 2, 333, d), is_causal=c) for d in (64, 128) for c in (0, 1)),
    *(large((2, 4, 333, d), (2, 2, 1000, d), is_causal=c, dtype=BF16) for d in (64, 128) for c in (0, 1)),
    large((1, 16, 300, 80), (1, 16, 1111, 80), dtype=BF16),
    large((4, 12, 384, 64), (4, 12, 384, 64), mask=boolean(4, 1, 1, 384)),
    large((4, 12, 384, 64), (4, 12, 384, 64), mask=bias(4, 1, 1, 384)),
    large((2, 12, 197, 64), (2, 12, 197, 64), mask=bias(12, 197, 197)),
    large((2, 384, 768), (2, 384, 768), q_num_heads=12, kv_num_heads=12),
    large((2, 500, 2048), (2, 500, 512), q_num_heads=16, kv_num_heads=4, is_causal=1, dtype=BF16),
    large((4, 32, 1, 128), (4, 8, 2000, 128)),
    large((4, 32, 5, 128), (4, 8, 2000, 128), softcap=30.0, dtype=BF16),
]
"""The shapes of encoders, of decoders that read a prompt, and of single steps; ``filled`` puts numbers in."""
