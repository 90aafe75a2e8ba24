"""Convolutions of 1 x 1 by fused multiply-adds: strict float32 on any GPU, and float16 with sums in float32."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Self

from tactician_pointwise_conv.problem import Problem
from tactician_pointwise_conv.tiles import TileTactic, vector

CHANNELS_AT_ONCE = 4
"""Channels of w that a thread reads at a time."""
MULTIPLIERS = 128
"""Multiply-adds of a multiprocessor in one cycle."""

# tile_m, tile_p, thread_m, thread_p
SHAPES = (
    (128, 128, 8, 8),
    (128, 64, 8, 8),
    (64, 128, 8, 8),
    (64, 112, 8, 8),
    (128, 56, 8, 8),
    (128, 56, 8, 4),
    (64, 64, 8, 4),
    (64, 64, 4, 4),
    (64, 56, 8, 4),
    (64, 56, 4, 4),
    (64, 52, 8, 4),
    (64, 52, 4, 4),
    (128, 28, 8, 4),
    (64, 28, 4, 4),
    (32, 64, 4, 4),
    (32, 56, 4, 4),
    (32, 32, 2, 4),
)
ODD_SHAPES = ((128, 49, 8, 7), (64, 49, 8, 7), (64, 49, 4, 7), (32, 49, 4, 7), (32, 49, 2, 7))
"""For images of 7 x 7 pixels, which no power of two divides."""
STEPS = ((16, 4), (32, 3))
"""Channels of a step, and stages."""


@dataclass(frozen=True)
class FfmaTiles(TileTactic):
    """Sums of a few filters by a few pixels in each thread's registers."""

    kernel: ClassVar[str] = "ffma_tiles"
    # halves are for tensor cores: a few are offered in case that these have nothing
    most_candidates: ClassVar[dict[str, int]] = {"float32": 12, "float16": 4}

    thread_m: int = 4
    """Filters of a thread."""
    thread_p: int = 4
    """Pixels of a thread."""

    @classmethod
    def tiles(cls, problem: Problem) -> Iterable[Self]:
        shapes = SHAPES + (ODD_SHAPES if problem.pixels % 49 == 0 and problem.pixels % 4 else ())
        for tile_m, tile_p, thread_m, thread_p in shapes:
            for tile_c, stages in STEPS:
                yield cls(tile_m, tile_p, tile_c, stages, thread_m=thread_m, thread_p=thread_p)

    @property
    def threads(self) -> int:
        return self.tile_m // self.thread_m * (self.tile_p // self.thread_p)

    @property
    def rate(self) -> float:
        # each product of a thread's filters by its pixels needs as many reads as it has of both
        products = self.thread_m * self.thread_p
        return MULTIPLIERS * products / (products + 2 * (self.thread_m + self.thread_p))

    def decline_tile(self, problem: Problem) -> str | None:
        if self.tile_m % self.thread_m or self.tile_p % self.thread_p:
            return f"threads of {self.thread_m} x {self.thread_p} don't cover a tile of {self.tile_m} x {self.tile_p}"
        whole = 16 // problem.item_bytes
        if self.tile_c % whole:
            return f"steps of {self.tile_c} channels are no multiple of {whole}"
        return None if self.stages > 1 else "needs two stages at least"

    def pitch_x(self, problem: Problem) -> int:
        return problem.pixels if self.is_flat(problem) else self.tile_p

    def macros(self, problem: Problem) -> dict[str, int]:
        group = vector(4, self.thread_p, self.pitch_x(problem))
        return {
            "THREAD_M": self.thread_m,
            "THREAD_P": self.thread_p,
            "GROUP_P": group,
            "VECTOR_Y": vector(group, problem.pixels),
        }
