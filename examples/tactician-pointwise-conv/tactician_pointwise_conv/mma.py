"""Convolutions of 1 x 1 on tensor cores by mma.sync: float16 with sums in float32."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Self

from tactician_pointwise_conv.problem import Problem
from tactician_pointwise_conv.tiles import TileTactic, vector

ROW_BYTES = 16
"""Bytes of a row of ldmatrix."""
BLOCK_M, BLOCK_P, BLOCK_C = 16, 8, 32
"""Filters and pixels of one mma.sync, and the channels of two."""
MULTIPLIERS = 1024
"""Products of a multiprocessor in one cycle, as far as mma.sync gets."""

# tile_m, tile_p, warps_m, warps_p
SHAPES = (
    (128, 128, 2, 4),
    (128, 64, 4, 2),
    (64, 128, 2, 4),
    (64, 112, 2, 2),
    (128, 56, 4, 1),
    (64, 64, 2, 2),
    (64, 56, 4, 1),
    (64, 56, 2, 1),
    (32, 128, 1, 4),
    (32, 64, 2, 2),
    (32, 56, 2, 1),
    (64, 32, 4, 1),
    (32, 32, 2, 2),
    (16, 64, 1, 4),
)
STEPS = ((32, 4), (64, 3))
"""Channels of a step, and stages."""


@dataclass(frozen=True)
class MmaTiles(TileTactic):
    """Sums of some blocks of 16 filters by 8 pixels in each warp's registers."""

    kernel: ClassVar[str] = "mma_tiles"
    most_candidates: ClassVar[dict[str, int]] = {"float16": 12}

    warps_m: int = 2
    """Warps that share the filters of a tile."""
    warps_p: int = 2
    """Warps that share the pixels of a tile."""

    @classmethod
    def tiles(cls, problem: Problem) -> Iterable[Self]:
        for tile_m, tile_p, warps_m, warps_p in SHAPES:
            for tile_c, stages in STEPS:
                yield cls(tile_m, tile_p, tile_c, stages, warps_m=warps_m, warps_p=warps_p)

    @property
    def threads(self) -> int:
        return 32 * self.warps_m * self.warps_p

    @property
    def rate(self) -> float:
        rows, columns = self.tile_m // self.warps_m, self.tile_p // self.warps_p
        return MULTIPLIERS * rows * columns / (rows * columns + 16 * (rows + columns))

    def decline_tile(self, problem: Problem) -> str | None:
        if problem.dtype != "float16":
            return f"tensor cores multiply float16 here, not {problem.dtype}"
        if self.tile_m % (BLOCK_M * self.warps_m) or self.tile_p % (BLOCK_P * self.warps_p):
            return (
                f"{self.warps_m} x {self.warps_p} warps don't share a tile of {self.tile_m} x {self.tile_p} "
                f"in blocks of {BLOCK_M} x {BLOCK_P}"
            )
        if self.tile_c % BLOCK_C:
            return f"steps of {self.tile_c} channels are no multiple of {BLOCK_C}"
        return None if self.stages > 1 else "needs two stages at least"

    def pitch_x(self, problem: Problem) -> int:
        if self.is_flat(problem):
            return problem.pixels
        rows = -(-self.tile_p * problem.item_bytes // ROW_BYTES)
        # an odd number of rows of ldmatrix, so that those of eight channels lie in different banks
        return (rows | 1) * ROW_BYTES // problem.item_bytes

    def macros(self, problem: Problem) -> dict[str, int]:
        return {
            "WARPS_M": self.warps_m,
            "WARPS_P": self.warps_p,
            "VECTOR_Y": vector(2, problem.pixels),
        }
