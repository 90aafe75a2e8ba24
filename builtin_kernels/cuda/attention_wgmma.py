"""Attention in one kernel on Hopper's tensor cores: wgmma on tiles that the tensor memory accelerator brings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from tactician.builtin_kernels.cuda.attention_problem import (
    ATTENTION_OP,
    ELEMENTS,
    AttentionProblem,
    Walk,
    attention_problem,
)
from tactician.builtin_kernels.cuda.compiler import KernelSource, read_source
from tactician.builtin_kernels.cuda.gemm_problem import nothing
from tactician.builtin_kernels.cuda.indexing import ceil_div
from tactician.builtin_kernels.cuda.kernel_text import specialise
from tactician.builtin_kernels.cuda.tensor_map import mapper
from tactician.builtin_kernels.cuda.wgmma import multiply_held_text, multiply_text
from tactician.builtin_kernels.cuda.wgmma_tile import LINE_BYTES, LINE_ELEMENTS, WARPGROUP
from tactician.signature import OpSignature
from tactician.tactics.tactic import Launch, Tactic

ROWS = 64
"""Queries of a consumer: the rows of one instruction."""
STEP = 16
"""Depth of an instruction."""
MOST_KEYS = 256
"""Columns of an instruction, and rows of a box, at most."""
MOST_CONSUMERS = 3
REGISTERS = {1: (0, 255), 2: (24, 240), 3: (32, 160)}
"""Registers of a producer's and of a consumer's thread, by consumers; 0 where they stay as they were launched."""
OTHER_REGISTERS = 28
"""Registers of a consumer's thread beside scores, weights and sums."""
BARRIER_BYTES = 16
"""Of the two barriers of a stage, or of a consumer's queries."""
L2_SHARE = 0.4
"""Part of the L2 cache that the keys and values of the heads that are worked on together may take."""
TILES = {
    64: ((3, 128), (2, 192), (2, 128), (1, 128)),
    128: ((2, 176), (2, 128), (2, 160), (2, 112), (1, 128)),
    192: ((2, 112), (2, 96), (1, 96)),
    256: ((2, 80), (2, 64), (1, 80)),
}
"""Consumers and keys of a step that are worth trying, best first, by the widest heads that they are for."""
WORDS_PER_VALUE = {"scores": 2, "weights": 4, "sums": 2}
"""How many of these, of a row of 64 rows' tile, come to one register of a thread."""


@dataclass(frozen=True)
class AttentionWgmma(Tactic):
    """FlashAttention-3's scheme: a producer, and consumers whose exponentials hide behind matrix products."""

    op: ClassVar[str] = ATTENTION_OP
    target: ClassVar[str] = "cuda"

    consumers: int = 2
    """Warpgroups that multiply; each has 64 queries."""
    block_k: int = 128
    """Keys of a step."""
    stages: int = 2
    """Tiles of keys, and of values, in shared memory."""
    turns: bool = True
    """Whether consumers issue their products one after the other, which keeps them out of step."""
    apart: bool = False
    """Whether results have shared memory of their own, so that the next queries come while they are stored."""
    persistent: bool = True
    """Whether a block goes on to further queries, loading ahead; otherwise there is a block for each tile of them."""

    @classmethod
    def candidates(cls, signature: OpSignature, device: Any) -> Iterable[Self]:
        """Yield the tiles for the width of the heads, with and without turns, and as blocks that stay or that come anew."""
        found = [t for t in cls.search_space(signature, device) if t.apart or t.persistent]
        problem = attention_problem(signature)
        if isinstance(problem, AttentionProblem):
            blocks = int(device.facts["multiprocessors"])
            # the largest tiles that still give every multiprocessor one come first
            found.sort(key=lambda t: problem.tiles(t.consumers * ROWS, 1) < blocks)
        yield from found or [cls()]

    @classmethod
    def search_space(cls, signature: OpSignature, device: Any) -> Iterable[Self]:
        """Yield every tile that fits; results lie apart wherever there is room."""
        problem = attention_problem(signature)
        if isinstance(problem, str):
            return
        width = max(problem.head_size, problem.value_size)
        tiles = next(tiles for widest, tiles in TILES.items() if width <= widest)
        for consumers, block_k in tiles:
            if ROWS * consumers >= 2 * max(problem.queries, ROWS):
                continue
            for turns, persistent in ((True, True), (True, False), (False, True)):
                if consumers == 1 and turns:
                    continue
                fitting = (cls(consumers, block_k, 2, turns, apart, persistent) for apart in (True, False))
                yield from [t for t in fitting if t.decline(signature, device) is None][:1]

    def decline(self, signature: OpSignature, device: Any) -> str | None:
        """Decline other GPUs than Hopper, masks of all kinds but the causal one, and tiles that don't fit."""
        problem = attention_problem(signature)
        if isinstance(problem, str):
            return problem
        if device.facts["arch"] != "sm_90a":
            return f"is for compute capability 9.0; the GPU has {device.facts['compute_capability']}"
        if problem.mask is not None or problem.has_lengths or problem.softcap:
            return "masks other than the causal one, lengths and caps are not implemented"
        if _beside(problem) is None:
            return "heads lie beside one another in some of the tensors and below one another in others"
        sizes = problem.head_size, problem.value_size
        if _beside(problem) and any(n % LINE_ELEMENTS for n in sizes):
            return f"heads of {sizes[0]} and {sizes[1]} elements beside one another are not of whole {LINE_ELEMENTS}"
        return self._decline_fields(problem, int(device.facts["shared_bytes_per_block"]))

    def prepare(self, signature: OpSignature, device: Any) -> Launch:
        """Compile the kernel for this shape; maps of the tensors are made when addresses are first seen."""
        problem = attention_problem(signature)
        assert isinstance(problem, AttentionProblem), problem
        if problem.is_empty:
            return nothing
        launch = device.compile(self.source(problem, int(device.facts["l2_bytes"]))).launch
        grid = problem.tiles(self.consumers * ROWS, 1)
        if self.persistent:
            grid = min(grid, int(device.facts["multiprocessors"]))
        threads, shared = WARPGROUP * (self.consumers + 1), self._shared_bytes(problem)
        map_q, map_k, map_v, map_y = self._mappers(problem)

        def run(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any) -> None:
            maps = map_q(inputs[0]), map_k(inputs[1]), map_v(inputs[2]), map_y(outputs[0])
            launch(stream, grid, threads, *maps, shared_bytes=shared)

        return run

    def source(self, problem: AttentionProblem, l2_bytes: int) -> KernelSource:
        """Return the kernel for ``problem``."""
        macros = problem.macros() | self._macros(problem, l2_bytes)
        head = specialise("attention_wgmma", "hopper.cuh", {"T": ELEMENTS[problem.dtype]}, macros)
        products = (
            multiply_text(self.block_k, problem.dtype, False, False),
            multiply_held_text(_padded(problem.value_size, STEP), problem.dtype, True),
        )
        return KernelSource("\n".join([head.text, *products, read_source("attention_wgmma.cu")]), head.name)

    def _decline_fields(self, problem: AttentionProblem, room: int) -> str | None:
        if not 1 <= self.consumers <= MOST_CONSUMERS:
            return f"a block has 1 to {MOST_CONSUMERS} consumers, not {self.consumers}"
        if self.block_k % STEP or not 0 < self.block_k <= MOST_KEYS:
            return f"steps are of whole {STEP} keys up to {MOST_KEYS}, not of {self.block_k}"
        if self.turns and self.consumers == 1:
            return "a single consumer has nobody to take turns with"
        if not self.apart and problem.value_size > _padded(problem.head_size, LINE_ELEMENTS):
            return "the room of the queries does not hold the results"
        registers = REGISTERS[self.consumers][1]
        held = self.block_k // 2 + self.block_k // 4 + _padded(problem.value_size, STEP) // 2
        if held + OTHER_REGISTERS > registers:
            return f"{held} registers of scores, weights and sums don't fit into the {registers} of a thread"
        needed = self._shared_bytes(problem)
        if self.stages < 1 or needed > room:
            return f"{self.stages} stages take {needed} bytes of shared memory; a block has {room}"
        return None

    def _shared_bytes(self, problem: AttentionProblem) -> int:
        head, value = (
            _padded(n, LINE_ELEMENTS) // LINE_ELEMENTS for n in (problem.head_size, problem.value_size)
        )
        rows = self.consumers * ROWS * (head + value * self.apart)
        lines = rows + self.stages * self.block_k * (head + value)
        return lines * LINE_BYTES + BARRIER_BYTES * (self.consumers + 2 * self.stages)

    def _macros(self, problem: AttentionProblem, l2_bytes: int) -> dict[str, int | str]:
        producer, consumer = REGISTERS[self.consumers]
        kv_bytes = 2 * problem.keys * (problem.head_size + problem.value_size)
        section = math.floor(L2_SHARE * l2_bytes / kv_bytes) * problem.group if problem.causal else 1
        return {
            "CONSUMERS": f"{self.consumers}u",
            "BLOCK_K": f"{self.block_k}u",
            "STAGES": f"{self.stages}u",
            "TURNS": int(self.turns),
            "APART": int(self.apart),
            "BESIDE": int(bool(_beside(problem))),
            "SECTION": f"{max(1, section)}u",
            "PAIRS": f"{problem.batch * problem.heads}u",
            "PRODUCER_REGISTERS": producer,
            "CONSUMER_REGISTERS": consumer if producer else 0,
        }

    def _mappers(self, problem: AttentionProblem) -> list[Callable[[Any], Any]]:
        beside = _beside(problem)

        def of(heads: int, rows: int, size: int, box: int) -> Callable[[Any], Any]:
            shape = (problem.batch, rows, heads * size) if beside else (problem.batch * heads, rows, size)
            return mapper(shape, (1, box, LINE_ELEMENTS))

        return [
            of(problem.heads, problem.queries, problem.head_size, ROWS),
            of(problem.kv_heads, problem.keys, problem.head_size, self.block_k),
            of(problem.kv_heads, problem.keys, problem.value_size, self.block_k),
            of(problem.heads, problem.queries, problem.value_size, ROWS),
        ]


def _padded(size: int, multiple: int) -> int:
    return ceil_div(size, multiple) * multiple


def _beside(problem: AttentionProblem) -> bool | None:
    """Return whether the heads of a row lie beside one another; None where that differs between tensors."""

    def row(walk: Walk, heads: int, size: int) -> bool | None:
        return None if heads == 1 else walk.row != size

    tensors = (
        row(problem.q, problem.heads, problem.head_size),
        row(problem.k, problem.kv_heads, problem.head_size),
        row(problem.v, problem.kv_heads, problem.value_size),
        row(problem.y, problem.heads, problem.value_size),
    )
    # a single head is both
    found = {t for t in tensors if t is not None}
    return None if len(found) == 2 else True in found


TACTICS: list[type[Tactic]] = [AttentionWgmma]
