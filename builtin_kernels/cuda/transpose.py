"""Permutations that change the innermost dimension, by tiles in shared memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from tactician.builtin_kernels.cuda.compiler import KernelSource
from tactician.builtin_kernels.cuda.indexing import (
    Shape,
    ceil_div,
    collapse,
    index_type,
    offset_expression,
    power_of_two_below,
)
from tactician.builtin_kernels.cuda.kernel_text import specialise
from tactician.builtin_kernels.cuda.pieces import (
    WIDEST_WORD,
    MovementError,
    permutation_of,
    permutation_piece,
)
from tactician.builtin_kernels.cuda.strided_copy import WORDS, decline_movement
from tactician.signature import OpSignature
from tactician.tactics.tactic import Launch, Tactic

SHORTEST_SIDE = 4
"""A matrix with a shorter side than this leaves most threads of a tile idle: the strided copy is better."""
LINE_BYTES = 128
"""Bytes of a cache line, and of one pass over all banks of shared memory."""
WARP = 32
SMALLEST_TILE = 32
"""The side, in elements, of the smallest tile: wide elements fill lines with fewer, but leave blocks too little work."""
SMALLEST_BLOCK, LARGEST_BLOCK = 64, 512
MOST_ACCESSES = 16
"""Loads of a thread, or stores, past which more threads do better."""
THREAD_BYTES = 128
"""Bytes that a thread has in flight: enough for the memory's latency at the occupancy that its registers allow."""
GROUP = 8
"""Rows of tiles whose blocks run together, where they are grouped: 1 KiB of each row of the target."""


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

    def vectors(self, widest: int) -> tuple[int, int]:
        """Return the elements of an access to the source and to the target, at most ``widest``: powers of two."""
        source = math.gcd(self.width, self.source_row, *self.source_batch)
        target = math.gcd(self.height, self.target_row, *self.target_batch)
        return power_of_two_below(source, widest), power_of_two_below(target, widest)

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
    """One tile of shared memory per block, read and written in vectors as wide as the shapes allow."""

    op: ClassVar[tuple[str, ...]] = tuple(
        f"ai.onnx::{name}" for name in ("Transpose", "DepthToSpace", "SpaceToDepth")
    )
    target: ClassVar[str] = "cuda"

    tile_x: int = 64
    """Elements of a tile along the source's innermost dimension; a power of two."""
    tile_y: int = 64
    """Elements of a tile along the target's innermost dimension; a power of two."""
    access: int = 8
    """Bytes of the widest access of a thread."""
    threads: int = 256
    """Threads of a block: fewer where a tile has fewer patches, more where its vectors are narrow."""
    group: int = 1
    """Rows of tiles whose blocks run together."""

    @classmethod
    def candidates(cls, signature: OpSignature, device: Any) -> Iterable[Self]:
        """Yield tiles whose rows are whole cache lines on both sides, the widest vectors first."""
        tensor = signature.input(0)
        known = tensor is not None and tensor.is_tensor and tensor.dtype != "string"
        itemsize = tensor.itemsize if tensor is not None and known else 4
        side = max(LINE_BYTES // itemsize, SMALLEST_TILE)
        # a patch of bytes that is 16 x 16 would take most registers of a thread
        access = WIDEST_WORD if itemsize > 1 else WIDEST_WORD // 2
        for x, y, widest, group in (
            (side, side, access, GROUP),
            (side * 2, side, access, GROUP),
            (side, side * 2, access, GROUP),
            (side, side, access, 1),
            (side, side, access // 2, GROUP),
        ):
            if widest >= itemsize:
                yield cls(x, y, widest, max(x * y * itemsize // THREAD_BYTES, SMALLEST_BLOCK), group)

    def decline(self, signature: OpSignature, device: Any) -> str | None:
        """Decline permutations that keep the innermost dimension, and very narrow matrices."""
        return decline_movement(signature, lambda: _problem(signature))

    def prepare(self, signature: OpSignature, device: Any) -> Launch:
        """Compile the kernel for this permutation."""
        problem = _problem(signature)
        tensor = signature.outputs[0]
        assert tensor is not None
        source, grid, threads = self.kernel(problem, tensor.itemsize)
        launch = device.compile(source).launch

        def run(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any) -> None:
            launch(stream, grid, threads, inputs[0], outputs[0])

        return run

    def kernel(self, problem: TiledProblem, itemsize: int) -> tuple[KernelSource, int, int]:
        """Return the kernel's source, its number of blocks and the threads of each."""
        across, down = problem.vectors(max(self.access // itemsize, 1))
        tile_x, tile_y = self._tile(problem)
        # the thread that has a patch does all of its accesses; narrow vectors make them many
        narrow = tile_x * tile_y // min(across, down) // MOST_ACCESSES
        threads = min(max(self.threads, narrow), LARGEST_BLOCK, tile_x // across * (tile_y // down))
        tiles_x, tiles_y = ceil_div(problem.width, tile_x), ceil_div(problem.height, tile_y)
        blocks = math.prod(problem.batch) * tiles_x * tiles_y
        # tiles overhang by less than one tile, in rows whose offsets are computed but not used
        index = index_type(blocks * tile_x * tile_y)
        macros: dict[str, int | str] = {
            "SOURCE_BATCH(b)": f"({offset_expression('b', problem.batch, problem.source_batch, index)})",
            "TARGET_BATCH(b)": f"({offset_expression('b', problem.batch, problem.target_batch, index)})",
            "SOURCE_ROW": f"{problem.source_row}u",
            "TARGET_ROW": f"{problem.target_row}u",
            "WIDTH": f"{problem.width}u",
            "HEIGHT": f"{problem.height}u",
            "TILES_X": f"{tiles_x}u",
            "TILES_Y": f"{tiles_y}u",
            "TILE_X": f"{tile_x}u",
            "TILE_Y": f"{tile_y}u",
            "ACROSS": f"{across}u",
            "DOWN": f"{down}u",
            "THREADS": f"{threads}u",
            "GROUP": f"{self.group}u",
            "SPREAD": f"{_spread(tile_x // across, down * itemsize)}u",
        }
        types = {"T": WORDS[itemsize], "Index": index}
        return specialise("transpose", "transpose.cu", types, macros), blocks, threads

    def _tile(self, problem: TiledProblem) -> tuple[int, int]:
        """Return the sides of the tiles: a side that the matrix cuts short lets the other grow in its place."""
        widest, highest = _power_of_two_above(problem.width), _power_of_two_above(problem.height)
        x, y = min(self.tile_x, widest), min(self.tile_y, highest)
        return min(x * (self.tile_y // y), widest), min(y * (self.tile_x // x), highest)


TACTICS: list[type[Tactic]] = [TransposeTiled]


def _problem(signature: OpSignature) -> TiledProblem:
    permuted = permutation_of(signature)
    if permuted is None or math.prod(permuted[0]) == 0:
        raise MovementError("there is nothing to permute")
    problem = TiledProblem.of(*permuted)
    if min(problem.width, problem.height) < SHORTEST_SIDE:
        raise MovementError(f"a {problem.height} x {problem.width} matrix is too narrow for tiles")
    return problem


def _spread(patches: int, vector_bytes: int) -> int:
    """Return by how many vectors neighbouring patches of a tile's row are rotated against each other.

    The patches that a warp writes at a time then share out all banks.
    """
    return max(LINE_BYTES // min(patches, WARP) // vector_bytes, 1)


def _power_of_two_above(n: int) -> int:
    return 1 << (n - 1).bit_length()
