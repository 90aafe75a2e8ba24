"""MatMul and Gemm as one batched matrix product of half-precision operands."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from tactician import OpSignature, TensorType

OPS = ("ai.onnx::MatMul", "ai.onnx::Gemm")
TYPES = {"float16": "fp16", "bfloat16": "bf16"}
"""Triton's names of the element types that are multiplied."""

MAX_ELEMENTS = 2**31 - 2**22
"""Elements that a matrix may have: kernels number them with 31 bits, also where a tile sticks out."""
MAX_BATCH = 65535
"""Matrices that a grid can number."""


@dataclass(frozen=True)
class Product:
    """``d[i] = alpha * op(a[i]) @ op(b[i]) + beta * c`` for each i below ``batch``; all row-major.

    ``op(a)`` is [m, k], stored as [k, m] with ``trans_a``; ``op(b)`` is [k, n], stored as [n, k] with ``trans_b``.
    Strides count elements: of a batch from one matrix to the next, of c from one row or column to the next; 0 where
    one serves all.
    """

    m: int
    n: int
    k: int
    dtype: str
    batch: int = 1
    stride_a: int = 0
    stride_b: int = 0
    trans_a: bool = False
    trans_b: bool = False
    alpha: float = 1.0
    beta: float = 1.0
    has_c: bool = False
    c_row: int = 0
    c_column: int = 0

    @property
    def size(self) -> int:
        """Number of results."""
        return self.batch * self.m * self.n

    def epilogue(self) -> dict[str, int | float | bool]:
        """Return the constants by which the kernels scale a sum and add c."""
        return {
            "ALPHA": self.alpha,
            "BETA": self.beta,
            "HAS_C": self.has_c,
            "C_ROW": self.c_row,
            "C_COLUMN": self.c_column,
        }


def product_of(signature: OpSignature) -> Product | str:
    """Return the product that ``signature`` asks for, or in words why the kernels don't make it."""
    if not signature.is_static:
        return "needs static shapes"
    if signature.body is not None or signature.op not in OPS:
        return f"{signature.op_type} is no matrix product"
    a, b = signature.input(0), signature.input(1)
    if a is None or b is None or a.dtype != b.dtype:
        return f"operands {a} and {b} are not of one type"
    if a.dtype not in TYPES:
        return f"{' and '.join(TYPES)} only, not {a.dtype}"
    product = _matmul(a, b) if signature.op_type == "MatMul" else _gemm(signature, a, b)
    if isinstance(product, str):
        return product
    if not product.size or not product.k:
        return "there is nothing to multiply"
    if max(product.m * product.k, product.k * product.n, product.m * product.n) > MAX_ELEMENTS:
        return f"a matrix of {product.m} x {product.n} x {product.k} has more than {MAX_ELEMENTS} elements"
    if product.batch > MAX_BATCH:
        return f"a batch of {product.batch}; a grid can number {MAX_BATCH}"
    return product


def _matmul(a: TensorType, b: TensorType) -> Product | str:
    # a vector is a matrix of one row, or of one column
    left = a.dims if len(a.dims) > 1 else (1, *a.dims)
    right = b.dims if len(b.dims) > 1 else (*b.dims, 1)
    if min(len(left), len(right)) < 2 or left[-1] != right[-2]:
        return f"shapes {a.dims} and {b.dims} can't be multiplied"
    outer_a, outer_b = math.prod(left[:-2]), math.prod(right[:-2])
    (m, k), n = left[-2:], right[-1]
    if outer_b == 1:
        return Product(outer_a * m, n, k, a.dtype)  # the matrices of a lie one below the other
    if outer_a == 1:
        return Product(m, n, k, a.dtype, outer_b, 0, k * n)
    rank = max(len(left), len(right))
    if (1,) * (rank - len(left)) + left[:-2] != (1,) * (rank - len(right)) + right[:-2]:
        return f"batches {left[:-2]} and {right[:-2]} broadcast in part"
    return Product(m, n, k, a.dtype, outer_a, m * k, k * n)


def _gemm(signature: OpSignature, a: TensorType, b: TensorType) -> Product | str:
    if signature.version < 7:
        return "before opset 7 C broadcasts in another way"
    if len(a.dims) != 2 or len(b.dims) != 2:
        return f"shapes {a.dims} and {b.dims} are no matrices"
    trans_a, trans_b = (bool(signature.attribute(name, 0)) for name in ("transA", "transB"))
    m, k = a.dims[::-1] if trans_a else a.dims
    depth, n = b.dims[::-1] if trans_b else b.dims
    if k != depth:
        return f"shapes {a.dims} and {b.dims} can't be multiplied"
    # attributes are float32, whatever the operands are
    alpha, beta = (float(np.float32(signature.attribute(name, 1.0))) for name in ("alpha", "beta"))
    if not (math.isfinite(alpha) and math.isfinite(beta)):
        return f"alpha {alpha} or beta {beta} is not finite"
    product = Product(m, n, k, a.dtype, trans_a=trans_a, trans_b=trans_b, alpha=alpha, beta=beta)
    c = signature.input(2)
    return product if c is None else _with_c(product, c)


def _with_c(product: Product, c: TensorType) -> Product | str:
    rows, columns = (1, 1, *c.dims)[-2:]
    fits = len(c.dims) <= 2 and rows in (1, product.m) and columns in (1, product.n)
    if not fits or c.dtype != product.dtype:
        return f"C, {c}, doesn't broadcast to {product.dtype}[{product.m}, {product.n}]"
    c_row, c_column = columns if rows > 1 else 0, 1 if columns > 1 else 0
    return Product(**vars(product) | {"has_c": True, "c_row": c_row, "c_column": c_column})
