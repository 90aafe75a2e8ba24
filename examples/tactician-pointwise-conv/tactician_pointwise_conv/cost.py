"""Which tiles are worth timing: a guess at how long each takes, from what a block multiplies, loads and waits for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

from tactician_pointwise_conv.problem import Problem

MOST_ALIKE = 3
"""Tiles that are proposed with the same filters, pixels and threads: guesses are too rough to tell more of them apart."""
LEAST_OF_EACH_WAY = 2
"""Tiles that are proposed at least of each way to add up: in one block, in a cluster, in a second kernel."""

LATENCY = 800
"""Cycles from the request for a tile to its arrival."""
STEP_CYCLES = 60
"""Cycles of a step besides its products: a barrier, and addresses."""
CLUSTER_CYCLES = 1200
SECOND_KERNEL_CYCLES = 2500
"""Cycles that it takes to add up parts within clusters, and to start another kernel for it."""
LOADED_BYTES = 32
"""Bytes that a multiprocessor loads in a cycle."""
WARPS = 8
"""Warps that a multiprocessor needs to multiply at its full rate."""


class Tiles(Protocol):
    """What a guess needs to know of a tactic."""

    @property
    def tile_m(self) -> int: ...
    @property
    def tile_p(self) -> int: ...
    @property
    def tile_c(self) -> int: ...
    @property
    def stages(self) -> int: ...
    @property
    def split_k(self) -> int: ...
    @property
    def cluster(self) -> bool: ...
    @property
    def threads(self) -> int: ...
    @property
    def rate(self) -> float: ...
    def steps(self, problem: Problem) -> int: ...
    def grid(self, problem: Problem) -> tuple[int, int, int]: ...


AnyTiles = TypeVar("AnyTiles", bound=Tiles)


def cheapest(
    problem: Problem, tiles: Iterable[AnyTiles], multiprocessors: int, most: int
) -> Sequence[AnyTiles]:
    """Return up to ``most`` of ``tiles``, those worth timing, the best guess first."""
    ranked = sorted(tiles, key=lambda tile: cycles(problem, tile, multiprocessors))
    ways: Counter[tuple[bool, bool]] = Counter()
    alike: Counter[tuple[int, int, int]] = Counter()
    chosen: set[AnyTiles] = set()
    for tile in ranked:
        way = (tile.split_k > 1, tile.cluster)
        ways[way] += 1
        if ways[way] <= LEAST_OF_EACH_WAY:
            chosen.add(tile)
    for tile in ranked:
        kind = (tile.tile_m, tile.tile_p, tile.threads)
        alike[kind] += 1
        if alike[kind] <= MOST_ALIKE and len(chosen) < most:
            chosen.add(tile)
    return [tile for tile in ranked if tile in chosen][:most]


def cycles(problem: Problem, tile: Tiles, multiprocessors: int) -> float:
    """Return a guess at the time of ``tile``, in cycles of the busiest multiprocessor."""
    x, y, z = tile.grid(problem)
    blocks = -(-x * y * z // multiprocessors)
    steps = -(-tile.steps(problem) // tile.split_k)
    rate = tile.rate * min(1.0, blocks * tile.threads / (32 * WARPS))
    multiplied = blocks * steps * tile.tile_m * tile.tile_p * tile.tile_c / rate
    loaded = blocks * steps * tile.tile_c * (tile.tile_m + tile.tile_p) * problem.item_bytes / LOADED_BYTES
    waited = steps * LATENCY / (tile.stages - 1)
    stored = blocks * tile.tile_m * tile.tile_p * problem.item_bytes / LOADED_BYTES / tile.split_k
    busy = max(multiplied, loaded, waited) + 0.25 * (multiplied + loaded) + STEP_CYCLES * steps
    return LATENCY + busy + stored + _added(problem, tile, multiprocessors)


def _added(problem: Problem, tile: Tiles, multiprocessors: int) -> float:
    if tile.split_k == 1:
        return 0.0
    moved = 8 * problem.outputs * tile.split_k / multiprocessors / LOADED_BYTES
    return moved + (CLUSTER_CYCLES if tile.cluster else SECOND_KERNEL_CYCLES)
