"""Products of up to 16 rows, bound by the stream of weights: b goes from memory to registers, once, and is multiplied."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar, Self

from tactician.builtin_kernels.cuda.compiler import KernelSource
from tactician.builtin_kernels.cuda.gemm_mma import INSTRUCTIONS
from tactician.builtin_kernels.cuda.gemm_problem import (
    FLOATS,
    GEMM_OPS,
    GemmProblem,
    gemm_launch,
    gemm_problem,
    nothing,
)
from tactician.builtin_kernels.cuda.indexing import MAX_INDEX_32, ceil_div, power_of_two_below
from tactician.builtin_kernels.cuda.kernel_text import specialise
from tactician.signature import OpSignature, numpy_dtype
from tactician.tactics.tactic import Launch, Tactic

MOST_ROWS = 16
"""Rows of the left operand of one mma.sync."""

MOST_PARTS = 8
"""Blocks of a cluster on any GPU."""

FEW_ROWS = 2
"""Rows up to which FFMA is the better guess; up to twice as many it is tried too."""

MOST_CANDIDATES = 7
"""Tactics with, and as many without, tensor cores that are timed."""

WORTH_TIMING = 1.5
"""Times the best guess up to which others are timed too."""

MOST_SUMS = 64
"""Sums, and words of b on their way, that a thread has registers for."""

REGISTERS, MOST_THREADS = 65536, 2048
"""Registers and threads of a multiprocessor."""

STAGED_BYTES = 48 * 1024
"""Shared memory for a slice of a that leaves room for other blocks on a multiprocessor."""

NEEDED_IN_FLIGHT = 64 * 1024
"""Bytes that the warps of a multiprocessor should have asked for at most: bandwidth times latency is 22 KB on an H200,
more under load, and a warp that multiplies asks for less than it could."""

CLUSTER_BYTES = 2 << 20
"""A guess at what a cluster's two meetings cost, in bytes that memory brings meanwhile."""

_WARPS = ((1, 4), (1, 8), (1, 16), (2, 4), (2, 8), (4, 1), (4, 2), (4, 4), (8, 1), (8, 2))
"""Warps along n and k that are worth a look."""


@dataclass(frozen=True)
class _Layout:
    """What the fields come to for one product; lengths in elements."""

    vector: int  # of 16 bytes
    columns: int  # of a block
    round: int  # k of one step of all warps of a block
    steps: int  # of a warp
    slice_steps: int  # of a in shared memory
    stride_a: int  # from one of its rows to the next
    shared_bytes: int
    tiles: int  # of one matrix
    blocks: int


@dataclass(frozen=True)
class GemmSmallM(Tactic):
    """Each warp streams its columns and its steps of k through registers; warps, then blocks of a cluster, add up."""

    op: ClassVar[tuple[str, ...]] = GEMM_OPS
    target: ClassVar[str] = "cuda"

    matrix: bool = True
    """Whether mma.sync multiplies, or FFMA; the sums are float32 either way."""
    lanes_k: int = 4
    """Lanes of a warp that divide the k of a step; the others divide its columns. mma.sync needs 4."""
    lane_columns: int = 4
    """Columns of b that a lane has in a step. Where rows of b lie along n those of one vector of 16 bytes."""
    warps_n: int = 4
    """Warps of a block that divide its columns."""
    warps_k: int = 2
    """Warps of a block that take turns at the steps of k."""
    stages: int = 2
    """Steps whose loads are on their way to registers."""
    split_k: int = 1
    """Blocks, a cluster, that share the k of a tile; more than 1 needs compute capability 9.0."""

    @classmethod
    def candidates(cls, signature: OpSignature, device: Any) -> Iterable[Self]:
        """Yield ways to keep enough loads in flight on all multiprocessors, by a guess at their times."""
        problem = gemm_problem(signature)
        if isinstance(problem, str) or problem.dtype not in INSTRUCTIONS or problem.m > MOST_ROWS:
            yield cls()
            return
        found: dict[bool, dict[tuple[int, int, bool], tuple[float, Self]]] = {}
        for tactic in cls._tactics(problem):
            if tactic.decline(signature, device) is None:
                cost = tactic._cost(problem, device)
                # of those that divide the work alike the best one
                alike = tactic.lanes_k, tactic._layout(problem).columns, tactic.split_k > 1
                best = found.setdefault(tactic.matrix, {})
                if alike not in best or cost < best[alike][0]:
                    best[alike] = cost, tactic
        for matrix in sorted(found, reverse=problem.m > FEW_ROWS):
            ranked = sorted(found[matrix].values(), key=lambda entry: entry[0])
            worst = WORTH_TIMING * ranked[0][0]
            yield from (tactic for cost, tactic in ranked[:MOST_CANDIDATES] if cost <= worst)

    def decline(self, signature: OpSignature, device: Any) -> str | None:
        """Decline products of many rows, types that FFMA and mma.sync don't multiply, and what doesn't fit."""
        problem = gemm_problem(signature)
        if isinstance(problem, str):
            return problem
        if problem.m > MOST_ROWS:
            return f"has {problem.m} rows; is for {MOST_ROWS} at most"
        return (
            self._decline_type(problem, device)
            or self._decline_lanes(problem)
            or self._decline_sizes(problem, device)
        )

    def prepare(self, signature: OpSignature, device: Any) -> Launch:
        """Compile the kernel for this shape."""
        problem = gemm_problem(signature)
        assert isinstance(problem, GemmProblem), problem
        if problem.is_empty:
            return nothing
        layout = self._layout(problem)
        kernel = device.compile(self._source(problem))
        return gemm_launch(kernel.launch, layout.blocks, self._threads, layout.shared_bytes)

    @classmethod
    def _tactics(cls, problem: GemmProblem) -> Iterator[Self]:
        """Yield all that may be worth a look; some of them are declined."""
        vector = 16 // numpy_dtype(problem.dtype).itemsize
        kinds = [(True, 4)]
        if problem.dtype == "float32" or problem.m <= 2 * FEW_ROWS:
            kinds += [(False, 32)] if problem.trans_b else [(False, 4), (False, 8)]
        columns = (2, 4) if problem.trans_b else (vector,)
        splits = range(1, MOST_PARTS + 1)
        for (matrix, lanes_k), c, warps, stages, split in product(kinds, columns, _WARPS, (1, 2, 4), splits):
            yield cls(matrix, lanes_k, c, *warps, stages, split)

    @property
    def _threads(self) -> int:
        return 32 * self.warps_n * self.warps_k

    def _loads(self, problem: GemmProblem) -> int:
        """Return the vectors of b that a lane has in a step."""
        return self.lane_columns if problem.trans_b else 16 // numpy_dtype(problem.dtype).itemsize

    def _sums(self, problem: GemmProblem) -> int:
        return self.lane_columns * (4 if self.matrix else problem.m)

    def _registers(self, problem: GemmProblem) -> int:
        """Return a guess at a thread's registers: of b, of the sums, and of a and addresses."""
        others = 32 if self.matrix or problem.m <= FEW_ROWS else 80  # FFMA wants each row of a as float32
        return 4 * self.stages * self._loads(problem) + self._sums(problem) + others

    def _layout(self, problem: GemmProblem) -> _Layout:
        size = numpy_dtype(problem.dtype).itemsize
        vector = 16 // size
        columns = self.warps_n * 32 // self.lanes_k * self.lane_columns
        turn = self.warps_k * self.lanes_k * vector
        steps = ceil_div(ceil_div(problem.k, turn), self.split_k)
        # slices but the last are made of whole turns of the stages
        room = max(STAGED_BYTES // (max(problem.m, 1) * size * turn) // self.stages, 1) * self.stages
        slice_steps = max(min(steps, room), 1)
        # neighbouring rows start half of the banks apart: what eight lanes load at once falls into different ones
        stride = slice_steps * turn
        stride += (64 - stride * size) % 128 // size
        tiles = ceil_div(problem.n, columns)
        return _Layout(
            vector=vector,
            columns=columns,
            round=turn,
            steps=steps,
            slice_steps=slice_steps,
            stride_a=stride,
            shared_bytes=problem.m * max(stride * size, 4 * self.warps_k * columns),
            tiles=tiles,
            blocks=tiles * self.split_k * problem.batch,
        )

    def _decline_type(self, problem: GemmProblem, device: Any) -> str | None:
        if problem.dtype not in INSTRUCTIONS:
            return f"multiplies no {problem.dtype}"
        if self.matrix and problem.dtype == "float32":
            return "mma.sync would round float32 to tf32; here it is multiplied by FFMA"
        if device.facts["sm"] < 80:
            return f"needs compute capability 8.0; the GPU has {device.facts['compute_capability']}"
        if self.split_k > 1 and device.facts["sm"] < 90:
            return f"blocks form clusters from 9.0 on; the GPU has {device.facts['compute_capability']}"
        return None

    def _decline_lanes(self, problem: GemmProblem) -> str | None:
        vector = 16 // numpy_dtype(problem.dtype).itemsize
        if self.lanes_k not in (4, 8, 16, 32) or (self.matrix and self.lanes_k != 4):
            return f"{self.lanes_k} lanes along k: mma.sync has 4, and FFMA takes 4, 8, 16 or 32"
        if not problem.trans_b and self.lane_columns != vector:
            return f"a vector of b lies along n and has {vector} columns, not {self.lane_columns}"
        if self._sums(problem) > MOST_SUMS or self.stages * self._loads(problem) * 4 > MOST_SUMS:
            return (
                f"{self._sums(problem)} sums and {self.stages} stages of {self._loads(problem)} vectors "
                "take too many registers"
            )
        registers = self._threads * self._registers(problem)
        if registers > REGISTERS:
            return f"{self._threads} threads take about {registers} registers; there are {REGISTERS}"
        if not 1 <= self.split_k <= MOST_PARTS:
            return f"a cluster has up to {MOST_PARTS} blocks, not {self.split_k}"
        return None

    def _decline_sizes(self, problem: GemmProblem, device: Any) -> str | None:
        layout = self._layout(problem)
        if self.split_k > max(ceil_div(problem.k, layout.round), 1):
            return f"k of {problem.k} can't be split into {self.split_k} parts of {layout.round}"
        if layout.blocks > MAX_INDEX_32:
            return f"needs {layout.blocks} blocks"
        given = device.facts["shared_bytes_per_block"]
        if layout.shared_bytes > given:
            return f"a and the sums take {layout.shared_bytes} bytes of shared memory; a block has {given}"
        return None

    def _cost(self, problem: GemmProblem, device: Any) -> float:
        """Return a guess at the time, in bytes that memory brings meanwhile."""
        layout, size = self._layout(problem), numpy_dtype(problem.dtype).itemsize
        multiprocessors = device.facts["multiprocessors"]
        vectors = self.stages * self._loads(problem)
        registers = self._threads * self._registers(problem)
        resident = max(min(REGISTERS // registers, MOST_THREADS // self._threads), 1)
        waves = layout.blocks / (multiprocessors * resident)
        streams = min(layout.blocks / multiprocessors, resident) * self._threads
        in_flight = streams * 16 * min(vectors, layout.steps * self._loads(problem))
        part = layout.steps * layout.round * size
        stream = layout.blocks * layout.columns * part * max(1.0, NEEDED_IN_FLIGHT / max(in_flight, 1))
        if waves > 1:  # all blocks of one wave end together; of several, the last one is alone
            stream *= ceil_div(layout.blocks, multiprocessors * resident) / waves
        # a multiprocessor takes little more than its share of what all of them can have
        stream *= max(1.0, 0.9 * multiprocessors / max(layout.blocks, 1))
        from_l2 = layout.blocks * problem.m * part / 2
        return float(stream + from_l2 + (CLUSTER_BYTES if self.split_k > 1 else 0))

    def _source(self, problem: GemmProblem) -> KernelSource:
        layout = self._layout(problem)
        fields: dict[str, int | str] = {
            "MATRIX": int(self.matrix),
            "LANES_K": f"{self.lanes_k}u",
            "LANE_COLUMNS": f"{self.lane_columns}u",
            "WARPS_N": f"{self.warps_n}u",
            "WARPS_K": f"{self.warps_k}u",
            "STAGES": f"{self.stages}u",
            "SPLIT_K": f"{self.split_k}",
            "STEPS": f"{layout.steps}u",
            "SLICE_STEPS": f"{layout.slice_steps}u",
            "A_STRIDE": f"{layout.stride_a}u",
            "WIDTH": f"{power_of_two_below(problem.row_b, layout.vector)}u",
            "MMA": f'"{INSTRUCTIONS[problem.dtype]}"',
        }
        headers = ("hopper.cuh",) if self.split_k > 1 else ()
        types = {"T": FLOATS[problem.dtype]}
        return specialise("gemm_small_m", "gemm_small_m.cu", types, problem.macros() | fields, *headers)


TACTICS: list[type[Tactic]] = [GemmSmallM]
