"""What both tactics share: fields, what is declined, how kernels are specialised, and how they are launched."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any, ClassVar, Self

import numpy as np
from tactician import Device, KernelSource, Launch, OpSignature, Tactic

from tactician_pointwise_conv.cost import cheapest
from tactician_pointwise_conv.problem import MAX_GRID, Problem, problem_of

LEAST_SM = 80
"""Least GPU: the first with asynchronous copies to shared memory."""
VECTOR_BYTES = 16
"""Bytes of the widest access."""
MAX_THREADS = 1024
"""Most threads of a block."""
MAX_CLUSTER = 8
"""Most blocks of a cluster on every GPU that has clusters."""
MAX_PART_BYTES = 1 << 28
"""Memory, in bytes, that the parts of split sums may take."""
SPLITS = (2, 4, 8, 16)
"""Numbers of parts of the channels that are thought of."""
ADD_THREADS = 256
"""Threads of a block that adds up parts."""


@dataclass(frozen=True)
class TileTactic(Tactic):
    """Tiles of filters by pixels, made step by step of channels in shared memory."""

    op: ClassVar[str] = "ai.onnx::Conv"
    target: ClassVar[str] = "cuda"
    kernel: ClassVar[str]
    """Name of the kernel, and of its file."""
    most_candidates: ClassVar[dict[str, int]]
    """Configurations to time at most, by element type."""

    tile_m: int = 64
    """Filters of a block's tile."""
    tile_p: int = 64
    """Pixels of a block's tile."""
    tile_c: int = 32
    """Channels of one step."""
    stages: int = 3
    """Steps that have a place in shared memory."""
    split_k: int = 1
    """Blocks that share a tile, each with a part of the channels."""
    cluster: bool = False
    """Whether those blocks add up in each other's shared memory (sm_90), and not in a second kernel."""

    @classmethod
    @abstractmethod
    def tiles(cls, problem: Problem) -> Iterable[Self]:
        """Yield the tiles to choose from, not split."""

    @property
    @abstractmethod
    def threads(self) -> int:
        """Threads of a block."""

    @property
    @abstractmethod
    def rate(self) -> float:
        """A guess at the products of a multiprocessor in one cycle, if it has warps enough."""

    @abstractmethod
    def decline_tile(self, problem: Problem) -> str | None:
        """Return why the fields don't fit together, or None."""

    @abstractmethod
    def pitch_x(self, problem: Problem) -> int:
        """Return the elements from one row of a tile of x to the next."""

    @abstractmethod
    def macros(self, problem: Problem) -> dict[str, int]:
        """Return the kernel's own macros, ``VECTOR_Y`` among them."""

    @classmethod
    def candidates(cls, signature: OpSignature, device: Device) -> Iterable[Self]:
        problem = problem_of(signature)
        if isinstance(problem, str):
            return (cls(),)
        clusters = device.facts["sm"] >= 90
        given = [
            tile
            for tile in cls.tiles(problem)
            for tile in tile.splits(problem, clusters=clusters)
            if tile.decline(signature, device) is None
        ]
        # one stays to say why none will do
        most = cls.most_candidates.get(problem.dtype, 1)
        return cheapest(problem, given, int(device.facts["multiprocessors"]), most) or (cls(),)

    def decline(self, signature: OpSignature, device: Device) -> str | None:
        problem = problem_of(signature)
        if isinstance(problem, str):
            return problem
        if device.facts["sm"] < LEAST_SM:
            return f"needs compute capability 8.0; the GPU has {device.facts['compute_capability']}"
        return (
            self.decline_tile(problem)
            or self._decline_split(problem, device)
            or self._decline_size(problem, device)
        )

    def workspace(self, signature: OpSignature, device: Device) -> int:
        problem = problem_of(signature)
        assert isinstance(problem, Problem), problem
        return self.part_bytes(problem)

    def prepare(self, signature: OpSignature, device: Device) -> Launch:
        problem = problem_of(signature)
        assert isinstance(problem, Problem), problem
        # compile() is the cuda device's own method: this tactic's target is "cuda", so it is there
        kernel = device.compile(self.source(problem))
        add = self._adder(problem, device)
        grid, numbers, shared_bytes = self.grid(problem), problem.arguments(), self.shared_bytes(problem)

        def launch(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any) -> None:
            x, w, b = inputs[0], inputs[1], inputs[2] if len(inputs) > 2 else None
            tensors = (x, w, b, outputs[0], workspace)
            kernel.launch(stream, grid, self.threads, *tensors, *numbers, shared_bytes=shared_bytes)
            if add is not None:
                add(stream, workspace, b, outputs[0])

        return launch

    def steps(self, problem: Problem) -> int:
        """Return the number of steps that all channels take."""
        return -(-problem.channels // self.tile_c)

    def grid(self, problem: Problem) -> tuple[int, int, int]:
        """Return the blocks: those that share a tile are neighbours in the first dimension."""
        return (
            -(-problem.pixels // self.tile_p) * self.split_k,
            -(-problem.filters // self.tile_m),
            problem.batch,
        )

    def part_bytes(self, problem: Problem) -> int:
        """Return the bytes of the parts of split sums."""
        return 0 if self.split_k == 1 or self.cluster else 4 * self.split_k * problem.outputs

    def is_flat(self, problem: Problem) -> bool:
        """Return whether x is copied as one row: a tile has all pixels, and whole vectors fit only so."""
        whole = VECTOR_BYTES // problem.item_bytes
        fits = problem.stride == 1 and problem.channels % whole == 0 and self.tile_p >= problem.pixels
        return fits and problem.pixels % whole != 0

    def vector_x(self, problem: Problem) -> int:
        """Return the neighbouring pixels that one copy brings."""
        if problem.stride != 1 or self.is_flat(problem):
            return 1
        return vector(VECTOR_BYTES // problem.item_bytes, problem.pixels, self.tile_p)

    def vector_w(self, problem: Problem) -> int:
        """Return the neighbouring channels that one copy brings."""
        return vector(VECTOR_BYTES // problem.item_bytes, problem.channels, self.tile_c)

    def shared_bytes(self, problem: Problem) -> int:
        """Return the shared memory of a block, in bytes: stages, and after them the sums in the same place."""
        stage = self.tile_m * self._pitch_w(problem) + self.tile_c * self.pitch_x(problem)
        sums = 4 * self.tile_m * self.tile_p if self.cluster else 0
        return max(self.stages * stage * problem.item_bytes, sums)

    def source(self, problem: Problem) -> KernelSource:
        """Return the kernel for ``problem``: of its numbers only those that change the code are fixed in it."""
        macros = {
            "HALF": int(problem.dtype == "float16"),
            "THREADS": self.threads,
            "TILE_M": self.tile_m,
            "TILE_P": self.tile_p,
            "TILE_C": self.tile_c,
            "STAGES": self.stages,
            "SPLIT_K": self.split_k,
            "CLUSTER": int(self.cluster),
            "FLAT": int(self.is_flat(problem)),
            "PITCH_W": self._pitch_w(problem),
            "PITCH_X": self.pitch_x(problem),
            "VECTOR_W": self.vector_w(problem),
            "VECTOR_X": self.vector_x(problem),
            **self.macros(problem),
        }
        text = read_source("elements.cuh", "tiles.cuh", f"{self.kernel}.cu")
        return KernelSource(text, self.kernel, unsigned(macros))

    def splits(self, problem: Problem, *, clusters: bool) -> list[Self]:
        """Return this tile with the channels in one part, and split in the ways worth a thought."""
        found = [self]
        for parts in SPLITS:
            if clusters:
                found.append(replace(self, split_k=parts, cluster=True))
            found.append(replace(self, split_k=parts))
        return [tile for tile in found if tile.split_k == 1 or 2 * tile.split_k <= self.steps(problem)]

    def _pitch_w(self, problem: Problem) -> int:
        # one vector more than a row has, so that the same channels of neighbouring filters lie in different banks
        return self.tile_c + VECTOR_BYTES // problem.item_bytes

    def _decline_split(self, problem: Problem, device: Device) -> str | None:
        if self.split_k > self.steps(problem):
            return f"{self.steps(problem)} steps of channels can't be split into {self.split_k} parts"
        if self.cluster and self.split_k == 1:
            return "a cluster needs several blocks that share a tile"
        if self.cluster and self.split_k > MAX_CLUSTER:
            return f"a cluster has {MAX_CLUSTER} blocks at most, not {self.split_k}"
        if self.cluster and device.facts["sm"] < 90:
            return f"clusters need compute capability 9.0; the GPU has {device.facts['compute_capability']}"
        if self.part_bytes(problem) > MAX_PART_BYTES:
            return f"parts of sums would take {self.part_bytes(problem)} bytes"
        return None

    def _decline_size(self, problem: Problem, device: Device) -> str | None:
        if not 0 < self.threads <= MAX_THREADS:
            return f"a block would have {self.threads} threads, of {MAX_THREADS} at most"
        wide_x = 0 if self.is_flat(problem) else self.tile_p // self.vector_x(problem)
        wide = max(wide_x, self.tile_c // self.vector_w(problem))
        if wide > self.threads:
            return f"rows of {wide} vectors are wider than a block of {self.threads} threads"
        needed, given = self.shared_bytes(problem), device.facts["shared_bytes_per_block"]
        if needed > given:
            return f"stages take {needed} bytes of shared memory; a block has {given}"
        if self.grid(problem)[1] > MAX_GRID:
            return f"{problem.filters} filters need more than {MAX_GRID} blocks in one dimension of the grid"
        return None

    def _adder(self, problem: Problem, device: Device) -> Callable[[Any, Any, Any, Any], None] | None:
        """Return what adds up the parts, ``(stream, parts, b, y)``, or None where there are none."""
        if not self.part_bytes(problem):
            return None
        width = vector(4, problem.pixels)
        macros = {
            "HALF": int(problem.dtype == "float16"),
            "SPLIT_K": self.split_k,
            "THREADS": ADD_THREADS,
            "VECTOR_Y": width,
        }
        kernel = device.compile(
            KernelSource(read_source("elements.cuh", "add_parts.cu"), "add_parts", unsigned(macros))
        )
        grid = -(-problem.outputs // (width * ADD_THREADS))
        numbers = (np.uint64(problem.outputs), np.uint32(problem.filters), np.uint32(problem.pixels))

        def add(stream: Any, parts: Any, b: Any, y: Any) -> None:
            kernel.launch(stream, grid, ADD_THREADS, parts, b, y, *numbers)

        return add


def vector(most: int, *extents: int) -> int:
    """Return the largest power of two up to ``most`` that divides all ``extents``."""
    common = math.gcd(most, *extents)
    return common & -common


def unsigned(macros: dict[str, int]) -> tuple[tuple[str, int | str], ...]:
    """Return ``macros`` as a kernel's source takes them, as unsigned constants."""
    return tuple((name, f"{value}u") for name, value in macros.items())


@cache
def read_source(*names: str) -> str:
    """Return the text of this package's source files ``names``, one after the other."""
    folder = files("tactician_pointwise_conv")
    return "\n".join((folder / name).read_text(encoding="utf-8") for name in names)
