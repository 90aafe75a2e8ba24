"""Tactics for MatMul and Gemm: by dot products, and by updates of rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from tactician import Device, Launch, OpSignature, Tactic

from tactician_numba.device import scratch
from tactician_numba.tactic import (
    FLOAT_BYTES,
    NumbaTactic,
    dims_of,
    int64,
    own_device,
    parallel_choices,
    size_of,
)

MULTIPLY_ADDS_PER_ELEMENT = 8
"""Multiply-adds that take about as long as one element of a copy: for the choice of ``parallel``."""
NO_BIAS = np.zeros(1, np.float32)


@dataclass(frozen=True)
class Problem:
    """One call: ``matrices`` products of [rows, depth] and [depth, columns] matrices.

    ``a_at`` and ``b_at`` say at which element of an operand the matrices of each product begin: a broadcast one
    is used several times. ``bias_row`` and ``bias_column`` are strides, 0 where the bias is broadcast.
    """

    matrices: int
    rows: int
    columns: int
    depth: int
    a_at: tuple[int, ...]
    b_at: tuple[int, ...]
    a_is_transposed: bool = False
    b_is_transposed: bool = False
    alpha: float = 1.0
    beta: float = 0.0
    bias_row: int = 0
    bias_column: int = 0

    @classmethod
    def of(cls, signature: OpSignature) -> Problem:
        """Return the problem of a MatMul or Gemm."""
        return _gemm(signature) if signature.op_type == "Gemm" else _matmul(signature)

    @property
    def multiply_adds(self) -> int:
        """Products of two numbers."""
        return self.matrices * self.rows * self.columns * self.depth

    def bias(self, inputs: Sequence[Any]) -> np.ndarray:
        """Return the bias out of a launch's inputs, or one zero."""
        return inputs[2].flat if self.beta else NO_BIAS


@dataclass(frozen=True)
class Product(NumbaTactic):
    """What both orders of the loops have in common."""

    op: ClassVar[tuple[str, ...]] = ("ai.onnx::MatMul", "ai.onnx::Gemm")
    float_inputs: ClassVar[tuple[int, ...]] = (0, 1, 2)
    tiles: ClassVar[tuple[int, ...]] = ()

    tile: int = 0

    @classmethod
    def candidates(cls, signature: OpSignature, device: Device) -> Iterable[Self]:
        if not signature.is_static:
            return [cls()]
        problem = Problem.of(signature)
        work = problem.multiply_adds // MULTIPLY_ADDS_PER_ELEMENT
        # a tile that is wider than the matrix is no other tile
        tiles = [t for i, t in enumerate(cls.tiles) if i == 0 or cls.tiles[i - 1] < problem.columns]
        return [cls(p, tile) for p in parallel_choices(signature, device, work) for tile in tiles]

    def decline_call(self, signature: OpSignature) -> str | None:
        if self.tile < 1:
            return f"a tile of {self.tile} columns"
        if signature.op_type == "Gemm" and signature.version < 7:
            return "broadcasting as before opset 7"
        return None


@dataclass(frozen=True)
class DotProducts(Product):
    """Dot products of rows; an operand that lies the other way is transposed into the workspace first.

    Parameters
    ----------
    tile
        Columns of the output, that is rows of the transposed second operand, that are used together.
    """

    tiles: ClassVar[tuple[int, ...]] = (32, 128)

    tile: int = 32

    def workspace(self, signature: OpSignature, device: Device) -> int:
        return FLOAT_BYTES * sum(self._copied(signature, Problem.of(signature)))

    def prepare(self, signature: OpSignature, device: Device) -> Launch:
        from tactician_numba.products_kernels import dot_products, transpose

        problem, compiled, transposed = Problem.of(signature), dot_products.compile(), transpose.compile()
        split, parallel = own_device(device).split, self.parallel
        total = problem.rows * problem.matrices
        strip = math.ceil(total / own_device(device).threads) if parallel else problem.rows
        strip = min(problem.rows, strip + strip % 2)  # two rows are computed together
        strips = problem.matrices * math.ceil(problem.rows / strip)
        sizes = int64([problem.rows, problem.columns, problem.depth, strip, self.tile])
        sizes = np.append(sizes, int64([problem.bias_row, problem.bias_column]))
        a_at, b_at = int64(problem.a_at), int64(problem.b_at)
        alpha, beta = np.float32(problem.alpha), np.float32(problem.beta)
        a_copied, b_copied = self._copied(signature, problem)

        def turned(x: Any, room: Any, rows: int, columns: int) -> Any:
            count = len(x) // (rows * columns)
            split(
                lambda begin, end, _: transposed(x, room, rows, columns, begin, end), count, parallel=parallel
            )
            return room

        def launch(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any) -> None:
            a, b, y, bias = inputs[0].flat, inputs[1].flat, outputs[0].flat, problem.bias(inputs)
            (room,) = scratch(workspace)
            if a_copied:
                a = turned(a, room[:a_copied], problem.depth, problem.rows)
            if b_copied:
                b = turned(b, room[a_copied:], problem.depth, problem.columns)

            def piece(begin: int, end: int, part: int) -> None:
                compiled(a, b, y, bias, a_at, b_at, sizes, alpha, beta, begin, end)

            split(piece, strips, parallel=parallel)

        return launch

    @staticmethod
    def _copied(signature: OpSignature, problem: Problem) -> tuple[int, int]:
        """Return how many elements of either operand have to be transposed; a vector lies both ways."""
        a, b = (size_of(dims_of(signature, i)) for i in (0, 1))
        a_lies_right = not problem.a_is_transposed or 1 in (problem.rows, problem.depth)
        b_lies_right = problem.b_is_transposed or 1 in (problem.columns, problem.depth)
        return 0 if a_lies_right else a, 0 if b_lies_right else b


@dataclass(frozen=True)
class RowUpdates(Product):
    """Scaled rows of the second operand, added up in the output; needs no workspace.

    Parameters
    ----------
    tile
        Columns of the output that are finished before the next ones.
    """

    tiles: ClassVar[tuple[int, ...]] = (512, 4096)

    tile: int = 512

    def decline_call(self, signature: OpSignature) -> str | None:
        if reason := super().decline_call(signature):
            return reason
        if Problem.of(signature).b_is_transposed:
            return "the second operand is transposed: its columns are no rows to add"
        return None

    def prepare(self, signature: OpSignature, device: Device) -> Launch:
        from tactician_numba.products_kernels import row_updates

        problem, compiled, split = Problem.of(signature), row_updates.compile(), own_device(device).split
        rows, depth = problem.rows, problem.depth
        a_strides = [1, rows] if problem.a_is_transposed else [depth, 1]
        sizes = int64([rows, problem.columns, depth, *a_strides, self.tile])
        sizes = np.append(sizes, int64([problem.bias_row, problem.bias_column]))
        a_at, b_at = int64(problem.a_at), int64(problem.b_at)
        alpha, beta = np.float32(problem.alpha), np.float32(problem.beta)

        def launch(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any) -> None:
            a, b, y, bias = inputs[0].flat, inputs[1].flat, outputs[0].flat, problem.bias(inputs)

            def piece(begin: int, end: int, part: int) -> None:
                compiled(a, b, y, bias, a_at, b_at, sizes, alpha, beta, begin, end)

            split(piece, problem.matrices * rows, parallel=self.parallel)

        return launch


def _matmul(signature: OpSignature) -> Problem:
    """Return the problem of a MatMul: a vector is a matrix of one row or column, leading axes are broadcast."""
    a, b = dims_of(signature, 0), dims_of(signature, 1)
    a, b = (1, *a) if len(a) == 1 else a, (*b, 1) if len(b) == 1 else b
    if len(b) == 2:
        a = (size_of(a[:-1]), a[-1])  # many times the same matrix: one product with all rows
    batch = np.broadcast_shapes(a[:-2], b[:-2])
    a_at, b_at = (
        np.broadcast_to((np.arange(size_of(d[:-2])) * size_of(d[-2:])).reshape(d[:-2]), batch) for d in (a, b)
    )
    return Problem(
        size_of(batch), a[-2], b[-1], a[-1], tuple(a_at.ravel().tolist()), tuple(b_at.ravel().tolist())
    )


def _gemm(signature: OpSignature) -> Problem:
    """Return the problem of a Gemm."""
    a, b = dims_of(signature, 0), dims_of(signature, 1)
    turn_a, turn_b = (bool(signature.attribute(name, 0)) for name in ("transA", "transB"))
    (depth, rows) = a if turn_a else a[::-1]
    columns = b[0] if turn_b else b[1]
    bias = signature.input(2)
    dims = (1, 1) if bias is None else (1, 1, *bias.dims)[-2:]
    return Problem(
        matrices=1,
        rows=rows,
        columns=columns,
        depth=depth,
        a_at=(0,),
        b_at=(0,),
        a_is_transposed=turn_a,
        b_is_transposed=turn_b,
        alpha=signature.attribute("alpha", 1.0),
        beta=0.0 if bias is None else signature.attribute("beta", 1.0),
        bias_row=dims[1] if dims[0] > 1 else 0,
        bias_column=1 if dims[1] > 1 else 0,
    )


TACTICS: list[type[Tactic]] = [DotProducts, RowUpdates]
