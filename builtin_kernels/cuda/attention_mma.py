"""Attention in one kernel on tensor cores, by mma.sync: the scores never leave the multiprocessor."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from tactician.builtin_kernels.cuda.attention_problem import (
    ATTENTION_OP,
    ELEMENTS,
    MASKS,
    VECTOR,
    AttentionProblem,
    attention_problem,
)
from tactician.builtin_kernels.cuda.compiler import KernelSource
from tactician.builtin_kernels.cuda.gemm_mma import INSTRUCTIONS
from tactician.builtin_kernels.cuda.gemm_problem import nothing
from tactician.builtin_kernels.cuda.indexing import ceil_div
from tactician.builtin_kernels.cuda.kernel_text import specialise
from tactician.signature import OpSignature
from tactician.tactics.tactic import Launch, Tactic

MMA_ROWS = 16
"""Queries of one mma.sync, keys of a step of the second product, and what heads are padded to."""
ITEM = 2
"""Bytes of an element."""
HELD_REGISTERS = 176
"""Registers for sums, scores and queries, up to which the queries are held; beyond, they are loaded again."""
MASK_REGISTERS = 32
"""How many fewer these may be where a mask or a cap takes registers too."""
L2_SHARE = 0.4
"""Part of the L2 cache that the keys and values of the heads that are worked on together may take."""


@dataclass(frozen=True)
class AttentionMma(Tactic):
    """FlashAttention-2's scheme: tiles of keys and values go past a tile of queries, with a running softmax."""

    op: ClassVar[str] = ATTENTION_OP
    target: ClassVar[str] = "cuda"

    block_q: int = 128
    """Queries of a block."""
    block_k: int = 64
    """Keys of a step."""
    warps: int = 4
    """Warps of a block: they share the queries, and where these are fewer than 16 for each, the keys of a step."""
    stages: int = 1
    """Tiles of keys, and of values, in shared memory."""

    @classmethod
    def candidates(cls, signature: OpSignature, device: Any) -> Iterable[Self]:
        """Yield large tiles for long rows of queries, and tiles whose warps share the keys for short ones."""
        problem = attention_problem(signature)
        if isinstance(problem, str):
            yield cls()
            return
        width = max(problem.head_size, problem.value_size)
        if width <= 64:
            tiles = [cls(128, 64, 4, 2), cls(128, 64, 8, 2), cls(128, 128, 8, 1), cls(64, 128, 4, 1)]
        elif width <= 128:
            tiles = [cls(128, 64, 4, 1), cls(128, 32, 4, 2), cls(128, 128, 8, 1), cls(128, 64, 8, 2)]
            if problem.mask is not None and problem.mask.query:
                del tiles[0]  # rows of a mask would be spilled
        else:
            tiles = [cls(128, 64, 8, 1), cls(64, 64, 4, 1), cls(64, 32, 4, 2)]
        tiles += [
            cls(64, 64, 4, 2),
            cls(64, 64, 4, 1),
            cls(32, 64, 4, 2),
            cls(16, 64, 4, 2),
            cls(16, 128, 4, 1),
        ]
        useful = [t for t in dict.fromkeys(tiles) if t._is_useful(problem)]
        # the largest tiles that still give every multiprocessor one come first
        blocks = device.facts["multiprocessors"]
        useful.sort(key=lambda t: problem.tiles(t.block_q, t._packed(problem)) < blocks)
        yield from (t for t in useful if t._shared_bytes(problem) <= device.facts["shared_bytes_per_block"])

    def decline(self, signature: OpSignature, device: Any) -> str | None:
        """Decline old GPUs, tiles that warps can't share, and tiles that don't fit."""
        problem = attention_problem(signature)
        if isinstance(problem, str):
            return problem
        if device.facts["sm"] < 80:
            return f"needs compute capability 8.0; the GPU has {device.facts['compute_capability']}"
        if self.block_q % (MMA_ROWS * self._warps_q) or self.block_k % (MMA_ROWS * self._warps_k):
            return f"{self.warps} warps can't share {self.block_q} queries and {self.block_k} keys"
        needed, given = self._shared_bytes(problem), device.facts["shared_bytes_per_block"]
        if needed > given:
            return f"stages take {needed} bytes of shared memory; a block has {given}"
        return None

    def prepare(self, signature: OpSignature, device: Any) -> Launch:
        """Compile the kernel for this shape."""
        problem = attention_problem(signature)
        assert isinstance(problem, AttentionProblem), problem
        if problem.is_empty:
            return nothing
        launch = device.compile(self._source(problem, int(device.facts["l2_bytes"]))).launch
        grid, threads = problem.tiles(self.block_q, self._packed(problem)), 32 * self.warps
        shared_bytes = self._shared_bytes(problem)

        def run(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any) -> None:
            mask, lengths = (inputs[i] if len(inputs) > i else None for i in (3, 6))
            q, k, v = inputs[:3]
            launch(stream, grid, threads, q, k, v, mask, lengths, outputs[0], shared_bytes=shared_bytes)

        return run

    @property
    def _warps_q(self) -> int:
        return min(self.warps, max(1, self.block_q // MMA_ROWS))

    @property
    def _warps_k(self) -> int:
        return self.warps // self._warps_q

    def _is_useful(self, problem: AttentionProblem) -> bool:
        rows, keys = problem.queries * self._packed(problem), max(problem.keys, 64)
        return self.block_q < 2 * max(rows, MMA_ROWS) and self.block_k < 2 * keys

    def _packed(self, problem: AttentionProblem) -> int:
        """Return how many heads of queries are rows of the same tiles: all of a group where queries are few."""
        return problem.group if problem.queries < self.block_q else 1

    def _strides(self, problem: AttentionProblem) -> tuple[int, int]:
        """Return the elements from row to row in shared memory, of queries and keys, and of values."""
        sizes = (problem.head_size, problem.value_size)
        return tuple(ceil_div(n, MMA_ROWS) * MMA_ROWS + VECTOR for n in sizes)  # type: ignore[return-value]  # two

    def _shared_bytes(self, problem: AttentionProblem) -> int:
        heads, values = self._strides(problem)
        tiles = self.block_q * heads + self.stages * self.block_k * (heads + values)
        partial = self._warps_k * self.block_q * (values + 2) * 4 if self._warps_k > 1 else 0
        return max(tiles * ITEM, self.block_q * values * ITEM, partial)

    def _source(self, problem: AttentionProblem, l2_bytes: int) -> KernelSource:
        heads, values = self._strides(problem)
        per_warp = self.block_q // self._warps_q // MMA_ROWS
        scores, sums = self.block_k // self._warps_k // 2, values - VECTOR
        adjusted = problem.mask is not None or problem.softcap > 0
        limit = HELD_REGISTERS - MASK_REGISTERS * adjusted
        held = per_warp * (scores + sums // 2 + (heads - VECTOR) // 4)
        kv_bytes = ITEM * problem.keys * (problem.head_size + problem.value_size)
        share = problem.group // self._packed(problem)
        section = math.floor(L2_SHARE * l2_bytes / kv_bytes) * share if problem.causal else 1
        tile: dict[str, int | str] = {
            "BLOCK_Q": self.block_q,
            "BLOCK_K": self.block_k,
            "WARPS_Q": self._warps_q,
            "WARPS_K": self._warps_k,
            "STAGES": self.stages,
            "PACKED": f"{self._packed(problem)}u",
            "SECTION": f"{max(1, section)}u",
            "PAIRS": f"{problem.batch * (problem.heads // self._packed(problem))}u",
            "HOLD_QUERIES": int(held <= limit),
            "MMA": f'"{INSTRUCTIONS[problem.dtype]}"',
            "PACK": '"cvt.rn.f16x2.f32"' if problem.dtype == "float16" else '"cvt.rn.bf16x2.f32"',
        }
        types = {"T": ELEMENTS[problem.dtype], "TM": MASKS[problem.mask.dtype if problem.mask else "bool"]}
        return specialise("attention_mma", "attention_mma.cu", types, problem.macros() | tile)


TACTICS: list[type[Tactic]] = [AttentionMma]
