"""MatMul and Gemm as one strided, batched matrix product with a bias."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from tactician.builtin_kernels.cuda.epilogue import FusedCall, fused_call
from tactician.builtin_kernels.cuda.epilogue_source import Epilogue
from tactician.builtin_kernels.cuda.indexing import MAX_INDEX_32, Shape, broadcast_strides, ceil_div, collapse
from tactician.signature import OpSignature, TensorType
from tactician.tactics.tactic import Launch

GEMM_OPS = ("ai.onnx::MatMul", "ai.onnx::Gemm")
"""Operators that are matrix products."""

FLOATS = {"float32": "float", "float16": "f16", "bfloat16": "bf16", "float64": "double"}
"""C types of the element types that are multiplied."""

Bias = Literal["none", "scalar", "row", "column", "full"]
"""How C broadcasts to [M, N]: absent, of one element, [N], [M, 1] or [M, N]."""

MAX_EXTENT = MAX_INDEX_32 - 1024
"""Longest side of a matrix: tiles that stick out are still numbered with 31 bits."""

_BIAS_INDEX: dict[Bias, str] = {
    "scalar": "0",
    "row": "column",
    "column": "row",
    "full": "(u64)row * N + column",
}


@dataclass(frozen=True)
class GemmProblem:
    """``d[i] = alpha * op(a[i]) @ op(b[i]) + beta * c``, all row-major, for each i below ``batch``.

    ``op(a)`` is [m, k] and ``op(b)`` [k, n]; with ``trans_a`` a is stored as [k, m], with ``trans_b`` b as
    [n, k].
    Strides are the elements from one matrix of a batch to the next, 0 where all share one.
    """

    m: int
    n: int
    k: int
    batch: int = 1
    stride_a: int = 0
    stride_b: int = 0
    trans_a: bool = False
    trans_b: bool = False
    alpha: float = 1.0
    beta: float = 1.0
    bias: Bias = "none"
    dtype: str = "float32"
    call: FusedCall | None = None
    """The node that it is of, where operators behind the product are fused with it."""

    @property
    def epilogue(self) -> Epilogue:
        """What is done to the results."""
        return Epilogue(self.call, self.m)

    @property
    def stride_d(self) -> int:
        """Elements from one result of the batch to the next."""
        return self.m * self.n

    @property
    def is_empty(self) -> bool:
        """Whether there is no result to write."""
        return self.m * self.n * self.batch == 0

    @property
    def row_a(self) -> int:
        """Elements of a stored row of a."""
        return self.m if self.trans_a else self.k

    @property
    def row_b(self) -> int:
        """Elements of a stored row of b."""
        return self.k if self.trans_b else self.n

    def tiles(self, block_m: int, block_n: int) -> int:
        """Return the number of tiles of the results of the whole batch."""
        return ceil_div(self.m, block_m) * ceil_div(self.n, block_n) * self.batch

    def macros(self) -> dict[str, int | str]:
        """Return the macros that kernels of this family share."""
        return {
            "M": f"{self.m}u",
            "N": f"{self.n}u",
            "K": f"{self.k}u",
            "STRIDE_A": f"{self.stride_a}ull",
            "STRIDE_B": f"{self.stride_b}ull",
            "TRANS_A": int(self.trans_a),
            "TRANS_B": int(self.trans_b),
            # hexadecimal: every bit arrives
            "ALPHA": self.alpha.hex(),
            "BETA": self.beta.hex(),
            "HAS_BIAS": int(self.bias != "none"),
            "BIAS_INDEX": _BIAS_INDEX.get(self.bias, "0"),
        }


def gemm_problem(signature: OpSignature) -> GemmProblem | str:
    """Return the matrix product that ``signature`` asks for, or why kernels can't make it."""
    if not signature.is_static:
        return "needs static shapes"
    if signature.body is not None or signature.op not in GEMM_OPS:
        return f"{signature.op_type} is no matrix product"
    a, b = signature.input(0), signature.input(1)
    if a is None or b is None:
        return "an operand is absent"
    if a.dtype not in FLOATS or b.dtype != a.dtype:
        return f"element types {a.dtype} and {b.dtype} are not supported"
    problem = _matmul(a, b) if signature.op_type == "MatMul" else _gemm(signature, a, b)
    if isinstance(problem, str):
        return problem
    if max(problem.m, problem.n, problem.k, problem.tiles(16, 16)) > MAX_EXTENT:
        return f"sizes {problem.m} x {problem.n} x {problem.k}, batch {problem.batch} need more than 31 bits"
    return problem


def fused_gemm_problem(signature: OpSignature) -> GemmProblem | str:
    """Return the product that ``signature`` asks for with what follows it, or why kernels can't make it."""
    call = fused_call(signature)
    problem = call if isinstance(call, str) else gemm_problem(call.anchor)
    if isinstance(call, str) or isinstance(problem, str):
        return problem
    return replace(problem, call=call)


def gemm_launch(kernel_launch: Callable[..., Any], grid: int, threads: int, shared_bytes: int = 0) -> Launch:
    """Return the launch of a kernel that takes a, b, the bias (or null) and the result."""

    def run(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any) -> None:
        bias = inputs[2] if len(inputs) > 2 else None
        kernel_launch(
            stream, grid, threads, inputs[0], inputs[1], bias, outputs[0], shared_bytes=shared_bytes
        )

    return run


def nothing(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any) -> None:
    """Launch nothing: there is no result to write."""


def _matmul(a: TensorType, b: TensorType) -> GemmProblem | str:
    left = a.dims if len(a.dims) != 1 else (1, *a.dims)
    right = b.dims if len(b.dims) != 1 else (*b.dims, 1)
    if len(left) < 2 or len(right) < 2 or left[-1] != right[-2]:
        return f"shapes {a.dims} and {b.dims} can't be multiplied"
    (m, k), n = left[-2:], right[-1]
    outer_a, outer_b = left[:-2], right[:-2]
    if math.prod(outer_b) == 1:
        # one b for all: the matrices of a lie one below the other
        return GemmProblem(m * math.prod(outer_a), n, k, dtype=a.dtype)
    batch = _broadcast(outer_a, outer_b)
    if batch is None:
        return f"batch dimensions {outer_a} and {outer_b} don't broadcast"
    extents, (walk_a, walk_b) = collapse(
        batch, broadcast_strides(outer_a, batch), broadcast_strides(outer_b, batch)
    )
    if len(extents) > 1:
        return f"batch dimensions {outer_a} and {outer_b} broadcast in part; expand one of them first"
    return GemmProblem(m, n, k, extents[0], walk_a[0] * m * k, walk_b[0] * k * n, dtype=a.dtype)


def _gemm(signature: OpSignature, a: TensorType, b: TensorType) -> GemmProblem | str:
    if signature.version < 7:
        return "before opset 7 C broadcasts in another way"
    if len(a.dims) != 2 or len(b.dims) != 2:
        return f"operands of shapes {a.dims} and {b.dims} are no matrices"
    trans_a, trans_b = (bool(signature.attribute(name, 0)) for name in ("transA", "transB"))
    m, k = a.dims[::-1] if trans_a else a.dims
    depth, n = b.dims[::-1] if trans_b else b.dims
    if k != depth:
        return f"shapes {a.dims} and {b.dims} can't be multiplied"
    # attributes are of float32, whatever the operands are
    alpha, beta = (float(np.float32(signature.attribute(name, 1.0))) for name in ("alpha", "beta"))
    if not (math.isfinite(alpha) and math.isfinite(beta)):
        return f"alpha {alpha} or beta {beta} is not finite"
    c = signature.input(2)
    bias: Bias | None = "none" if c is None else _bias(c.dims, m, n)
    if bias is None or (c is not None and c.dtype != a.dtype):
        return f"C, {c}, doesn't broadcast to {a.dtype}[{m}, {n}]"
    return GemmProblem(
        m, n, k, trans_a=trans_a, trans_b=trans_b, alpha=alpha, beta=beta, bias=bias, dtype=a.dtype
    )


def _bias(dims: Shape, m: int, n: int) -> Bias | None:
    rows, columns = (1, 1, *dims)[-2:]
    if len(dims) > 2 or rows not in (1, m) or columns not in (1, n):
        return None
    if rows == columns == 1:
        return "scalar"
    if rows == 1:
        return "row"
    return "column" if columns == 1 else "full"


def _broadcast(a: Shape, b: Shape) -> Shape | None:
    rank = max(len(a), len(b))
    pairs = list(zip((1,) * (rank - len(a)) + a, (1,) * (rank - len(b)) + b, strict=True))
    if any(x != y and 1 not in (x, y) for x, y in pairs):
        return None
    return tuple(y if x == 1 else x for x, y in pairs)
