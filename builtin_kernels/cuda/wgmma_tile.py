"""How ``wgmma_tiles.cuh`` cuts a product of matrices into tiles: the fields of its tactics, what they take, what they cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import product
from typing import Self, TypeVar

from tactician.builtin_kernels.cuda.indexing import ceil_div

LINE_ELEMENTS = 64
"""Elements of a swizzled row of 128 bytes, k of a box, and rows of one instruction."""
LINE_BYTES = 128
WARPGROUP = 128
"""Threads of a producer or a consumer."""
STORE_BOXES = 2
"""Boxes of results of a consumer: one is filled while the other is stored."""
MOST_CLUSTER = 8
"""Blocks of a cluster on any GPU."""
_GROUP = 16
"""Multiprocessors of the smaller groups (GPCs) of an H100 or H200; the larger ones have 18."""
SHARED_OF_MULTIPROCESSOR, RESERVED_OF_BLOCK = 233472, 1024
"""Bytes of shared memory of a multiprocessor, and what each block takes of it beside its own."""
_PATTERN_BYTES = 1024
"""Where a swizzled tile may begin: the first block of a multiprocessor gets its memory there."""
_BARRIER_BYTES = 16
"""Of both barriers of a stage."""
_OTHER_REGISTERS = 40
"""Registers of a consumer's thread beside its sums."""
_REGISTERS_OF_MULTIPROCESSOR = 65536
_REGISTERS = {2: (40, 232), 3: (32, 160)}
"""Registers of a producer's and of a consumer's thread, by consumers, where one block has a multiprocessor to itself."""


@dataclass(frozen=True)
class ProductShape:
    """``batch`` products of ``m`` rows and ``n`` columns; k comes in boxes of 64 of which the first ``used_k`` aren't zero.

    ``vectors`` of a tile's columns lie in shared memory: the bias, and those of an epilogue. Two elements of 8 bits count as
    one of k. An element of the result has ``result_bytes``.
    """

    m: int
    n: int
    boxes: int
    used_k: int
    batch: int = 1
    vectors: int = 1
    result_bytes: int = 2

    def tiles(self, block_m: int, block_n: int) -> int:
        """Return the number of tiles of ``block_m`` rows and ``block_n`` columns."""
        return ceil_div(self.m, block_m) * ceil_div(self.n, block_n) * self.batch


@dataclass(frozen=True)
class WgmmaTile:
    """A ring of stages between one producer and several consumers; sums in float32."""

    block_m: int = 128
    """Rows of a tile."""
    block_n: int = 128
    """Columns of a tile."""
    stages: int = 4
    """Steps whose tiles of both operands are in shared memory."""
    consumers: int = 2
    """Warpgroups that multiply."""
    cooperative: bool = True
    """Whether consumers share a tile; otherwise each has tiles of its own."""
    cluster_m: int = 1
    """Blocks below one another that load b's tiles for each other."""
    cluster_n: int = 1
    """Blocks beside one another that load a's tiles for each other."""
    split_k: int = 1
    """Blocks that share the steps of k of one tile."""
    direct_store: bool = False
    """Whether threads write results to memory themselves, which takes less time for a single tile, or TMA does."""
    band: int = 8
    """Rows of tiles that are walked together."""
    blocks: int = 1
    """Blocks of a multiprocessor."""
    depth: int = 1
    """Boxes of k of a step."""

    @classmethod
    def tiles_for(cls, shape: ProductShape, multiprocessors: int) -> Iterable[Self]:
        """Yield all tiles that are not much larger than the product, with as many stages as shared memory holds."""
        for block_m, block_n, consumers, cooperative in _SHAPES:
            if block_m < 2 * max(shape.m, 64) and block_n < 2 * max(shape.n, 64):
                plain = cls(block_m, block_n, 0, consumers, cooperative)
                yield from (tile._filled(shape.vectors) for tile in plain._variants(shape, multiprocessors))

    def _variants(self, shape: ProductShape, multiprocessors: int) -> Iterable[Self]:
        """Yield this tile with shared loads, deeper steps, and splits where tiles are few."""
        tiles, is_small = shape.tiles(self.block_m, self.block_n), self.block_m * self.block_n <= 128 * 64
        if not self.cooperative and tiles <= multiprocessors:
            return  # a pair of consumers with a tile each needs several tiles to take turns with
        splits, depths = [1], [1]
        if self.cooperative and tiles < multiprocessors:
            splits += [p for p in _SPLITS if tiles * p <= 2 * multiprocessors and shape.boxes >= 2 * p]
        if self.cooperative and is_small:
            yield replace(self, blocks=2)
            if tiles <= multiprocessors:
                depths.append(2)
        for (cluster_m, cluster_n), split_k, depth in product(_CLUSTERS, splits, depths):
            lower, wider = (cluster_m - 1) * self.block_m < shape.m, (cluster_n - 1) * self.block_n < shape.n
            deep = depth * split_k == 1 or shape.boxes >= 2 * depth * split_k
            if lower and wider and deep:
                made = replace(self, cluster_m=cluster_m, cluster_n=cluster_n, split_k=split_k, depth=depth)
                yield made
                if split_k == 1 and tiles <= multiprocessors:
                    yield replace(made, direct_store=True)

    def _filled(self, vectors: int) -> Self:
        """Return this with as many stages as shared memory holds."""
        room = (
            SHARED_OF_MULTIPROCESSOR // self.blocks
            - RESERVED_OF_BLOCK
            - replace(self, stages=0).shared_bytes(vectors)
        )
        return replace(
            self, stages=min(room // (self._stage_bytes() + _BARRIER_BYTES), MOST_STAGES // self.depth)
        )

    def cost(self, shape: ProductShape, multiprocessors: int) -> float:
        """Return a guess at the cycles of a multiprocessor: waves of tiles, each its steps and an epilogue.

        A step takes as long as the tensor cores multiply, or its operands come in, or a round of its barriers takes.
        The constants were fitted to an H100 and an H200.
        """
        clusters = shape.tiles(self.block_m * self.cluster_m, self.block_n * self.cluster_n)
        waves = ceil_div(clusters, self._clusters_at_once(multiprocessors)) * self.blocks
        steps = ceil_div(ceil_div(shape.boxes, self.depth), self.split_k)
        multiply = self.block_m * self.block_n * self.depth * shape.used_k / PRODUCTS_PER_CYCLE
        multiply *= ALONE if self.consumers == 1 and self.blocks == 1 else 1.0
        brought = (self.block_m + self.block_n) * self.depth * LINE_BYTES / BROUGHT_PER_CYCLE
        sliced = (self.block_m / self.cluster_n + self.block_n / self.cluster_m) * self.depth * LINE_BYTES
        fetch = (
            sliced / FETCHED_PER_CYCLE * min(1.0, shape.tiles(self.block_m, self.block_n) / multiprocessors)
        )
        round_trip = STEP_CYCLES / self.blocks
        store = self.block_m * self.block_n * (shape.result_bytes / 2) / STORED_PER_CYCLE
        if not self.cooperative:
            store *= HIDDEN
        elif self.direct_store:
            store *= DIRECT
        once = FILL_CYCLES + MEETING_CYCLES * (self.cluster() > 1) + SPLIT_CYCLES * (self.split_k > 1)
        return once + waves * (steps * max(multiply, brought, fetch, round_trip) + store)

    def decline_fields(self, shape: ProductShape, room: int) -> str | None:
        """Return why these fields don't fit together, the product, or ``room`` bytes of shared memory; or None."""
        if self.block_m % LINE_ELEMENTS or self.block_n % LINE_ELEMENTS or not 0 < self.block_n <= 256:
            return f"tiles are of whole {LINE_ELEMENTS} rows and columns, and of 256 columns at most"
        if self.cooperative and self.block_m % (LINE_ELEMENTS * self.consumers):
            return f"{self.consumers} consumers can't share {self.block_m} rows"
        if not self.cooperative and (self.consumers != 2 or self.split_k > 1):
            return "consumers with tiles of their own are two, and don't split k"
        if self.cluster() > MOST_CLUSTER:
            return f"a cluster has {MOST_CLUSTER} blocks at most, not {self.cluster()}"
        if self.cluster_m not in _SHARERS or self.cluster_n not in _SHARERS:
            return f"{self.cluster_m} and {self.cluster_n} blocks can't load a tile in equal parts"
        steps = ceil_div(shape.boxes, self.depth)
        if self.split_k > steps:
            return f"{steps} steps of k can't be split into {self.split_k} parts"
        if self.split_k > 1 and self.block_m * (self.block_n + 8) * 4 > self.stages * self._stage_bytes():
            return "the stages have no room for the sums of a part"
        registers = _REGISTERS_OF_MULTIPROCESSOR // (WARPGROUP * (self.consumers + 1) * self.blocks)
        sums = self.block_m * self.block_n // (WARPGROUP * (self.consumers if self.cooperative else 1))
        if self.blocks > 1 and sums + _OTHER_REGISTERS > registers:
            return f"{sums} sums of a thread don't fit into {registers} registers"
        needed = self.shared_bytes(shape.vectors)
        if self.stages < 2 or needed > room:
            return f"{self.stages} stages take {needed} bytes of shared memory; a block has {room}"
        return None

    def threads(self) -> int:
        """Return the threads of a block."""
        return WARPGROUP * (self.consumers + 1)

    def shared_bytes(self, vectors: int = 1) -> int:
        """Return the dynamic shared memory of a block that keeps ``vectors`` of a tile's columns for each consumer."""
        slack = _PATTERN_BYTES if self.blocks > 1 else 0
        boxes = self._boxes() * LINE_ELEMENTS * LINE_BYTES
        ring = self.stages * (self._stage_bytes() + _BARRIER_BYTES)
        return slack + ring + self.consumers * (boxes + 4 * self.block_n * vectors)

    def cluster(self) -> int:
        """Return the blocks of a cluster."""
        return self.cluster_m * self.cluster_n * self.split_k

    def grid(self, shape: ProductShape, multiprocessors: int) -> int:
        """Return the blocks of a launch: those that run at once, or one for each part of a split tile."""
        tiles = shape.tiles(self.block_m * self.cluster_m, self.block_n * self.cluster_n)
        if self.split_k > 1:
            return tiles * self.cluster()
        return min(tiles, self._clusters_at_once(multiprocessors)) * self.cluster()

    def _clusters_at_once(self, multiprocessors: int) -> int:
        """Return the clusters that surely run at once: one lies within a group, where those of more than 2 leave a rest."""
        if self.cluster() <= 2:
            return multiprocessors * self.blocks // self.cluster()
        return max(1, _GROUP * self.blocks // self.cluster() * (multiprocessors // _GROUP))

    def macros(self) -> dict[str, int | str]:
        """Return the macros of ``wgmma_tiles.cuh`` that these fields give."""
        producer, consumer = _REGISTERS.get(self.consumers, (0, 0)) if self.blocks == 1 else (0, 0)
        sizes = {
            "BLOCK_M": self.block_m,
            "BLOCK_N": self.block_n,
            "STAGES": self.stages,
            "CONSUMERS": self.consumers,
            "CLUSTER_M": self.cluster_m,
            "CLUSTER_N": self.cluster_n,
            "SPLIT_K": self.split_k,
            "DEPTH": self.depth,
            "BAND": self.band,
            "STORE_BOXES": self._boxes(),
        }
        return {name: f"{size}u" for name, size in sizes.items()} | {
            "COOPERATIVE": int(self.cooperative),
            "DIRECT_STORE": int(self.direct_store),
            "CLUSTER_BLOCKS": self.cluster(),
            "BLOCKS_PER_MULTIPROCESSOR": self.blocks,
            "PRODUCER_REGISTERS": producer,
            "CONSUMER_REGISTERS": consumer,
        }

    def _stage_bytes(self) -> int:
        return (self.block_m + self.block_n) * self.depth * LINE_BYTES

    def _boxes(self) -> int:
        if self.split_k > 1:
            return 0
        return 1 if self.direct_store else STORE_BOXES


Tile = TypeVar("Tile", bound=WgmmaTile)


def most_promising(tiles: Iterable[Tile], shape: ProductShape, multiprocessors: int) -> list[Tile]:
    """Return the few of ``tiles`` that the model takes to be fastest, best first, and of each size only a few."""
    taken: Counter[tuple[int, int, bool]] = Counter()
    found: list[Tile] = []
    for tile in sorted(tiles, key=lambda tile: tile.cost(shape, multiprocessors)):
        size = tile.block_m, tile.block_n, tile.cooperative
        if taken[size] < MOST_OF_SIZE and len(found) < MOST_CANDIDATES:
            taken[size] += 1
            found.append(tile)
    return found


MOST_CANDIDATES, MOST_OF_SIZE = 12, 5
"""Tiles that are proposed for one product, and those of one size among them."""
MOST_STAGES = 8
_SHAPES = (
    (128, 256, 2, True),
    (256, 128, 2, True),
    (256, 64, 2, True),
    (128, 192, 2, True),
    (192, 192, 3, True),
    (192, 128, 3, True),
    (128, 128, 2, True),
    (128, 64, 2, True),
    (64, 256, 2, False),
    (64, 192, 2, False),
    (64, 128, 2, False),
    (128, 128, 2, False),
    (128, 64, 2, False),
    (64, 256, 1, True),
    (64, 192, 1, True),
    (64, 128, 1, True),
    (64, 64, 1, True),
)
"""Rows, columns, consumers of a tile, and whether they share it."""
_CLUSTERS = ((1, 1), (2, 1), (1, 2), (2, 2), (4, 1), (1, 4))
"""Blocks below and beside one another that load for each other."""
_SHARERS = (1, 2, 4, 8)
_SPLITS = (2, 3, 4, 6, 8)
"""Parts of k."""

PRODUCTS_PER_CYCLE = 1310
"""Of 16-bit elements, of one multiprocessor's tensor cores in a step; 2048 is what they could do."""
BROUGHT_PER_CYCLE, FETCHED_PER_CYCLE = 120, 75
"""Bytes that a multiprocessor takes in, and its share of what L2 gives when all ask."""
STORED_PER_CYCLE = 15
"""Results of 16 bits that a multiprocessor's epilogue stores."""
ALONE = 1.05
"""What one consumer's instructions lose with nobody to fill its gaps."""
HIDDEN, DIRECT = 0.36, 1.37
"""Factors of an epilogue's time: beside another consumer that multiplies, and from registers without TMA."""
FILL_CYCLES, MEETING_CYCLES, SPLIT_CYCLES, STEP_CYCLES = 2100.0, 3700.0, 1700.0, 275.0
"""Cycles of a launch until operands have come, of a cluster's meetings, to add parts up, and of a step's barriers."""
