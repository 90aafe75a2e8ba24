"""A plugin for tactician: matrix products in Triton for ``ai.onnx::MatMul`` and ``ai.onnx::Gemm``, in half precision."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, replace
from importlib.util import find_spec
from typing import Any, ClassVar, Self

from tactician import Device, Launch, OpSignature, Tactic, TritonSource, hookimpl

from tactician_triton.product import OPS, TYPES, Product, product_of

KERNELS = "tactician_triton.kernels"
"""Imported by whoever compiles: it imports Triton, which takes a second and is not there where engines only run."""

MAX_CANDIDATES = 12
SPLITS = (1, 2, 4, 8)
HALF_BYTES, FLOAT_BYTES = 2, 4
ADD_BLOCK = 1024
"""Elements that one program of ``add_parts`` sums up."""

MULTIPLIES_PER_CLOCK = {True: 1500, False: 600}
"""Multiply-adds of a multiprocessor per clock, by whether tiles are large enough for warpgroup instructions. A guess."""
BYTES_PER_CLOCK = 32
"""Bytes that a multiprocessor gets from the L2 cache per clock. A guess."""
STEP_CLOCKS, START_CLOCKS, LAUNCH_CLOCKS = 150, 1500, 2500
"""The least that a step takes, the time until the first one, and that of one more kernel. Guesses."""


@dataclass(frozen=True)
class TiledGemm(Tactic):
    """One program per tile of the result, sums in float32; see ``kernels.py``."""

    op: ClassVar[tuple[str, ...]] = OPS
    target: ClassVar[str] = "cuda"

    block_m: int = 64
    """Rows of a tile."""
    block_n: int = 64
    """Columns of a tile."""
    block_k: int = 64
    """Steps of k between two loads."""
    num_warps: int = 4
    """Warps that share a tile."""
    num_stages: int = 4
    """Loads under way."""
    group_m: int = 8
    """Rows of tiles that are worked on together."""
    split_k: int = 1
    """Parts of k with a program of their own; from 2 on, a second kernel adds them up, always in the same order."""

    @classmethod
    def candidates(cls, signature: OpSignature, device: Device) -> Iterable[Self]:
        product = product_of(signature)
        if isinstance(product, str):
            return [cls()]
        tiles = (tile.fitted(product, device) for tile in TILES)
        useful = {
            replace(tile, split_k=split)
            for tile in tiles
            for split in SPLITS
            if tile.block_m < 2 * max(product.m, 16)
            and tile.block_n < 2 * max(product.n, 32)
            and tile.block_k < 2 * max(product.k, 64)
            and (split == 1 or tile.gains_by(split, product, device))
        }
        fitting = [t for t in useful if t.shared_bytes() <= device.facts["shared_bytes_per_block"]]
        return sorted(fitting, key=lambda t: (t.clocks(product, device), astuple(t)))[:MAX_CANDIDATES]

    def decline(self, signature: OpSignature, device: Device) -> str | None:
        product = product_of(signature)
        if isinstance(product, str):
            return product
        if device.facts["sm"] < 80:
            return f"needs compute capability 8.0; the GPU has {device.facts['compute_capability']}"
        if self.shared_bytes() > device.facts["shared_bytes_per_block"]:
            given = device.facts["shared_bytes_per_block"]
            return f"stages take {self.shared_bytes()} bytes of shared memory; a block has {given}"
        if self.split_k > 1 and self.split_k * product.size >= 2**31:
            return f"{self.split_k} parts of {product.size} results need more than 31 bits"
        return None if find_spec("triton") else "Triton is not installed"

    def workspace(self, signature: OpSignature, device: Device) -> int:
        product = product_of(signature)
        split = self.split_k > 1 and isinstance(product, Product)
        return FLOAT_BYTES * self.split_k * product.size if split else 0

    def prepare(self, signature: OpSignature, device: Device) -> Launch:
        product = product_of(signature)
        assert isinstance(product, Product), product
        # compile() is the cuda device's own method: this tactic's target is "cuda", so it is there
        gemm = device.compile(self.source(product))
        grid = (self.tiles(product) // product.batch, product.batch)
        if self.split_k == 1:

            def launch(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any) -> None:
                gemm.launch(stream, grid, inputs[0], inputs[1], added(inputs), outputs[0])

            return launch
        add_parts = device.compile(self.sum_source(product))
        programs = ceil_div(product.size, ADD_BLOCK)

        def launch_both(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any) -> None:
            gemm.launch(stream, (*grid, self.split_k), inputs[0], inputs[1], None, workspace)
            add_parts.launch(stream, programs, workspace, added(inputs), outputs[0])

        return launch_both

    def source(self, product: Product) -> TritonSource:
        """Return the kernel of the product or, with ``split_k``, of its parts."""
        kind = f"*{TYPES[product.dtype]}"
        constants = {
            "M": product.m,
            "N": product.n,
            "K": product.k,
            "STRIDE_A": product.stride_a,
            "STRIDE_B": product.stride_b,
            "TRANS_A": product.trans_a,
            "TRANS_B": product.trans_b,
            **product.epilogue(),
            "BLOCK_M": self.block_m,
            "BLOCK_N": self.block_n,
            "BLOCK_K": self.block_k,
            "GROUP_M": self.group_m,
            "SPLIT_K": self.split_k,
        }
        types = (("a", kind), ("b", kind), ("c", kind), ("d", kind if self.split_k == 1 else "*fp32"))
        return TritonSource(KERNELS, "gemm", types, tuple(constants.items()), self.num_warps, self.num_stages)

    def sum_source(self, product: Product) -> TritonSource:
        """Return the kernel that adds the parts up."""
        kind = f"*{TYPES[product.dtype]}"
        sizes = {"M": product.m, "N": product.n, "SIZE": product.size}
        constants = {**sizes, **product.epilogue(), "SPLIT_K": self.split_k, "BLOCK": ADD_BLOCK}
        types = (("parts", "*fp32"), ("c", kind), ("d", kind))
        return TritonSource(KERNELS, "add_parts", types, tuple(constants.items()))

    def shared_bytes(self) -> int:
        """Return what the stages take of a block's shared memory, or a tile of sums on its way out."""
        stages = self.num_stages * HALF_BYTES * self.block_k * (self.block_m + self.block_n)
        return max(stages, FLOAT_BYTES * self.block_m * self.block_n)

    def fitted(self, product: Product, device: Device) -> Self:
        """Return this with no more stages than there are steps, and as fit into shared memory."""
        steps = ceil_div(product.k, self.block_k)
        room = int(device.facts["shared_bytes_per_block"])
        fitting = room // (HALF_BYTES * self.block_k * (self.block_m + self.block_n))
        return replace(self, num_stages=max(2, min(self.num_stages, steps, fitting)))

    def gains_by(self, split: int, product: Product, device: Device) -> bool:
        """Return whether k is long enough to be split, and multiprocessors would idle otherwise."""
        programs = split * self.tiles(product)
        return product.k >= 2 * split * self.block_k and programs <= 2 * int(device.facts["multiprocessors"])

    def tiles(self, product: Product) -> int:
        """Return the number of tiles of all results."""
        return ceil_div(product.m, self.block_m) * ceil_div(product.n, self.block_n) * product.batch

    def clocks(self, product: Product, device: Device) -> float:
        """Estimate how long this takes, in clocks: good enough to tell which candidates are worth timing."""
        processors = int(device.facts["multiprocessors"])
        rounds = ceil_div(self.tiles(product) * self.split_k, processors)
        steps = ceil_div(product.k, self.block_k * self.split_k)
        rate = MULTIPLIES_PER_CLOCK[self.block_m >= 64]
        math = self.block_m * self.block_n * self.block_k / rate
        load = HALF_BYTES * self.block_k * (self.block_m + self.block_n) / BYTES_PER_CLOCK
        clocks = rounds * (START_CLOCKS + steps * max(math, load, STEP_CLOCKS))
        if self.split_k == 1:
            return clocks
        moved = 2 * FLOAT_BYTES * self.split_k * product.size
        return clocks + LAUNCH_CLOCKS + moved / (BYTES_PER_CLOCK * processors)


TILES = tuple(
    TiledGemm(block_m, block_n, block_k, num_warps, num_stages)
    for block_m, block_n, block_k, num_warps, num_stages in (
        (128, 256, 64, 8, 3),
        (256, 128, 64, 8, 3),
        (128, 128, 64, 8, 4),
        (128, 128, 64, 4, 4),
        (128, 64, 64, 4, 5),
        (64, 128, 64, 4, 5),
        (64, 64, 64, 4, 6),
        (64, 64, 128, 4, 4),
        (64, 32, 128, 4, 4),
        (32, 64, 128, 4, 4),
        (32, 32, 128, 4, 5),
        (32, 32, 64, 2, 6),
        (16, 64, 128, 4, 5),
        (16, 32, 128, 2, 6),
    )
)
"""Tiles that suit some product or other: large ones reread less, small ones keep more multiprocessors busy."""


def added(inputs: Sequence[Any]) -> Any:
    """Return C, or None."""
    return inputs[2] if len(inputs) > 2 else None


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


@hookimpl
def tactics() -> list[type[Tactic]]:
    return [TiledGemm]
