"""Matrix products with awkward and with real shapes, for the interpreter, the compiler and GPUs."""

from __future__ import annotations

from typing import Any

import numpy as np
from memory_bound_cases import BF16, Case, normal, scalar

Array = np.ndarray[Any, Any]
HALF = np.dtype(np.float16)
SINGLE = np.dtype(np.float32)
DOUBLE = np.dtype(np.float64)


def matmul(a: tuple[int, ...], b: tuple[int, ...], dtype: Any = SINGLE) -> Case:
    """Return a product of operands of shapes ``a`` and ``b``."""
    return Case("MatMul", [normal(*a, dtype=dtype), normal(*b, dtype=dtype)])


def gemm(
    m: int,
    n: int,
    k: int,
    trans_a: int = 0,
    trans_b: int = 0,
    c: tuple[int, ...] | None = None,
    dtype: Any = SINGLE,
    **scale: float,
) -> Case:
    """Return a Gemm of [m, k] and [k, n], stored transposed where asked, with C of shape ``c``."""
    a = normal(*((k, m) if trans_a else (m, k)), dtype=dtype)
    b = normal(*((n, k) if trans_b else (k, n)), dtype=dtype)
    bias = [] if c is None else [scalar(0.75, dtype) if c == () else normal(*c, dtype=dtype)]
    return Case("Gemm", [a, b, *bias], {"transA": trans_a, "transB": trans_b, **scale})


SMALL = [
    *(matmul((37, 21), (21, 19), t) for t in (SINGLE, HALF, BF16, DOUBLE)),
    *(gemm(33, 40, 24, x, y, (40,), t) for x in (0, 1) for y in (0, 1) for t in (SINGLE, HALF, BF16)),
    *(gemm(35, 41, 19, x, y, (41,), t) for x in (0, 1) for y in (0, 1) for t in (SINGLE, HALF)),
    *(gemm(9, 17, 50, c=c, alpha=0.3, beta=-1.7) for c in ((), (1,), (17,), (1, 17), (9, 1), (9, 17))),
    gemm(9, 17, 50, 1, 1, (9, 17), DOUBLE, alpha=0.3, beta=-1.7),
    gemm(7, 9, 33, alpha=2.5),
    matmul((3, 20, 12), (3, 12, 9)),
    matmul((3, 20, 16), (3, 16, 24), HALF),
    matmul((2, 3, 5, 12), (12, 9)),
    matmul((7, 12), (2, 3, 12, 9)),
    matmul((2, 1, 5, 12), (1, 12, 9)),
    matmul((1, 3, 5, 12), (3, 12, 9)),
    # a lone sum must not cancel: its error would be far more than that of its terms
    Case("MatMul", [np.abs(normal(12)), np.abs(normal(12))]),
    matmul((12,), (12, 5)),
    matmul((12,), (4, 12, 5)),
    matmul((4, 5, 12), (12,)),
    matmul((1, 65), (65, 130)),
    matmul((1, 1), (1, 1)),
    matmul((3, 0), (0, 5)),
    matmul((0, 4), (4, 5)),
    gemm(3, 5, 0, c=(5,)),
]
"""Odd sides, each transposition, each bias, each batching, and sides of 0 and 1."""

LARGE = [
    *(
        gemm(1024, 1024, 1024, x, y, dtype=t)
        for t in (SINGLE, HALF, BF16)
        for x, y in ((0, 0), (0, 1), (1, 0), (1, 1))
    ),
    *(gemm(197, 768, 3072, 0, 1, (768,), t) for t in (SINGLE, HALF, BF16)),
    *(gemm(253, 501, 999, x, 1 - x, (501,), t) for x in (0, 1) for t in (SINGLE, HALF, BF16)),
    *(matmul((12, 197, 64), (12, 64, 197), t) for t in (SINGLE, HALF)),
    *(matmul((1, 2048), (2048, 1000), t) for t in (SINGLE, HALF, BF16)),
    *(gemm(1, 1000, 2048, 0, 1, (1000,), t) for t in (SINGLE, HALF)),
    *(gemm(m, 2048, 1024, 0, y, dtype=t) for m in (1, 4, 16) for y in (0, 1) for t in (SINGLE, HALF, BF16)),
    matmul((2, 128, 512), (512, 2048), BF16),
    matmul((300, 200), (200, 100), DOUBLE),
]
"""Whole tiles, the shapes of transformers and classifiers, and few rows."""
