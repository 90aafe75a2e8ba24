"""Permutations that change the innermost dimension, by tiles in shared memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from tactician.builtin_kernels.cuda.compiler import KernelSource
from tactician.builtin_kernels.cuda.indexing import Shape, ceil_div, collapse, index_type, offset_expression
from tactician.builtin_kernels.cuda.kernel_text import specialise
from tactician.builtin_kernels.cuda.pieces import MovementError, permutation_of, permutation_piece
from tactician.builtin_kernels.cuda.strided_copy import WORDS, decline_movement
from tactician.signature import OpSignature
from tactician.tactics.tactic import Launch, Tactic

SHORTEST_SIDE = 4
"""A matrix with a shorter side than this leaves most threads of a tile idle: the strided copy is better."""


@dataclass(frozen=True)
class TiledProblem:
    """A permutation as a batch of matrix transpositions, strides in elements."""

    width: int
    height: int
    source_row: int
    target_row: int
    batch: Shape
    source_batch: Shape
    target_batch: Shape

    @classmethod
    def of(cls, dims: Shape, permutation: Shape) -> TiledProblem:
        """Return the problem of permuting a tensor of shape ``dims``.

        Raises
        ------
        MovementError
            If the innermost dimension stays where it is.
        """
        piece = permutation_piece(dims, permutation)
        shape, (source, target) = collapse(piece.shape, piece.source_strides, piece.target_strides)
        if source[-1] == 1 or 1 not in source:
            raise MovementError("the innermost dimension stays where it is; no tile is needed")
        x, y = source.index(1), len(shape) - 1
        rest = [d for d in range(len(shape)) if d not in (x, y)]
        batch, source_batch, target_batch = (tuple(v[d] for d in rest) for v in (shape, source, target))
        return cls(shape[x], shape[y], source[y], target[x], batch, source_batch, target_batch)


@dataclass(frozen=True)
class TransposeTiled(Tactic):
    """One tile of shared memory per block."""

    op: ClassVar[tuple[str, ...]] = tuple(
        f"ai.onnx::{name}" for name in ("Transpose", "DepthToSpace", "SpaceToDepth")
    )
    target: ClassVar[str] = "cuda"

    tile: int = 32
    rows: int = 8
    """Warps of a block."""

    @classmethod
    def candidates(cls, signature: OpSignature, device: Any) -> Iterable[Self]:
        """Yield larger tiles first for narrow elements, whose rows are short in bytes."""
        tensor = signature.input(0)
        itemsize = (
            tensor.itemsize if tensor is not None and tensor.is_tensor and tensor.dtype != "string" else 4
        )
        tiles: tuple[int, ...] = (32, 64) if itemsize >= 4 else (64, 32)
        if itemsize > 8:
            tiles = (32,)
        for tile in tiles:
            yield cls(tile, 8)
            yield cls(tile, 16)

    def decline(self, signature: OpSignature, device: Any) -> str | None:
        """Decline permutations that keep the innermost dimension, and very narrow matrices."""
        return decline_movement(signature, lambda: _problem(signature))

    def prepare(self, signature: OpSignature, device: Any) -> Launch:
        """Compile the kernel for this permutation."""
        problem = _problem(signature)
        tensor = signature.outputs[0]
        assert tensor is not None
        source, grid = self.kernel(problem, tensor.itemsize)
        launch = device.compile(source).launch
        threads = 32 * self.rows

        def run(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any) -> None:
            launch(stream, grid, threads, inputs[0], outputs[0])

        return run

    def kernel(self, problem: TiledProblem, itemsize: int) -> tuple[KernelSource, int]:
        """Return the kernel's source and its number of blocks."""
        tiles_x, tiles_y = ceil_div(problem.width, self.tile), ceil_div(problem.height, self.tile)
        batches = math.prod(problem.batch)
        # tiles overhang by less than one tile, in rows whose offsets are computed but not used
        index = index_type(batches * tiles_x * tiles_y * self.tile**2)
        macros: dict[str, int | str] = {
            "SOURCE_BATCH(b)": f"({offset_expression('b', problem.batch, problem.source_batch, index)})",
            "TARGET_BATCH(b)": f"({offset_expression('b', problem.batch, problem.target_batch, index)})",
            "SOURCE_ROW": f"{problem.source_row}u",
            "TARGET_ROW": f"{problem.target_row}u",
            "WIDTH": f"{problem.width}u",
            "HEIGHT": f"{problem.height}u",
            "TILES_X": f"{tiles_x}u",
            "TILES_Y": f"{tiles_y}u",
            "TILE": self.tile,
            "ROWS": self.rows,
            "PAD": max(1, 4 // itemsize),
        }
        types = {"T": WORDS[itemsize], "Index": index}
        return specialise("transpose", "transpose.cu", types, macros), batches * tiles_x * tiles_y


TACTICS: list[type[Tactic]] = [TransposeTiled]


def _problem(signature: OpSignature) -> TiledProblem:
    permuted = permutation_of(signature)
    if permuted is None or math.prod(permuted[0]) == 0:
        raise MovementError("there is nothing to permute")
    problem = TiledProblem.of(*permuted)
    if min(problem.width, problem.height) < SHORTEST_SIDE:
        raise MovementError(f"a {problem.height} x {problem.width} matrix is too narrow for tiles")
    return problem
