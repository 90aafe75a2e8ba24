"""Two tactics for ``ai.onnx::CumSum`` along the last axis of float32: one for the CPU, one for NVIDIA GPUs.

A running sum is a chain: element t waits for element t - 1, so a core adds one float per latency of an
addition. Both tactics cut a row into blocks, sum each block on its own, and add to each block the total of
those before it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Self

import numpy as np
from tactician import Device, KernelSource, Launch, OpSignature, Tactic, hookimpl

CUM_SUM = "ai.onnx::CumSum"
FLOAT_BYTES = 4


@dataclass(frozen=True)
class BlasScan(Tactic):
    """Sums within blocks by one matrix product, ``x[n, block] @ U``; ``U`` is upper triangular, all ones.

    Spends ``block`` multiply-adds per element where one addition would do, but at the rate of the BLAS
    library, which has no chain to wait for. Errors grow with the number of blocks, not of elements.
    """

    op: ClassVar[str] = CUM_SUM
    target: ClassVar[str] = "cpu"

    block: int = 32

    @classmethod
    def candidates(cls, signature: OpSignature, device: Device) -> Iterable[Self]:
        return (cls(block) for block in (32, 16, 64))

    def decline(self, signature: OpSignature, device: Device) -> str | None:
        reason = decline_scan(signature)
        if reason is None and signature.inputs[0].dims[-1] < 2 * self.block:
            return (
                f"rows of {signature.inputs[0].dims[-1]} elements are shorter than two blocks of {self.block}"
            )
        return reason

    def workspace(self, signature: OpSignature, device: Device) -> int:
        shape = signature.inputs[0].dims
        return FLOAT_BYTES * (signature.inputs[0].size // shape[-1]) * (shape[-1] // self.block)

    def prepare(self, signature: OpSignature, device: Device) -> Launch:
        triangle = np.triu(np.ones((self.block, self.block), np.float32))
        columns = signature.inputs[0].dims[-1]

        def launch(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any) -> None:
            x, y = inputs[0].reshape(-1, columns), outputs[0].reshape(-1, columns)
            totals = workspace.view(np.float32).reshape(len(x), -1)
            with one_blas_thread(), np.errstate(over="ignore", invalid="ignore"):
                blocked_scan(x, y, triangle, totals)

        return launch


def one_blas_thread() -> AbstractContextManager[Any]:
    """Return a context in which BLAS keeps to this thread.

    More of them gain nothing here, and spin on cores that the next node's library wants.
    """
    return _blas().limit(limits=1)


@cache
def _blas() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")


def blocked_scan(x: np.ndarray, y: np.ndarray, triangle: np.ndarray, totals: np.ndarray) -> None:
    """Write the running sums of the rows of ``x`` to ``y``.

    Parameters
    ----------
    x, y
        float32[rows, columns], row-major.
    triangle
        float32[block, block], upper triangular, all ones.
    totals
        float32[rows, columns // block], scratch: the sum of each row up to the end of each block.
    """
    block, whole = len(triangle), totals.shape[1] * len(triangle)
    y_blocks = as_blocks(y, block)
    np.matmul(as_blocks(x, block), triangle, out=y_blocks)
    np.add.accumulate(y_blocks[:, :, -1], axis=1, out=totals)
    if not math.isfinite(np.add.reduce(totals[:, -1])):
        # 0 * inf is NaN, so the product smears an infinity over its whole block: add one by one instead
        np.add.accumulate(x, axis=1, out=y)
        return
    y_blocks[:, 1:] += totals[:, :-1, None]
    if whole < x.shape[1]:
        np.add.accumulate(x[:, whole:], axis=1, out=y[:, whole:])
        y[:, whole:] += totals[:, -1:]


def as_blocks(rows: np.ndarray, block: int) -> np.ndarray:
    """Return the view ``[rows, columns // block, block]`` of float32[rows, columns]; the rest is left out."""
    shape = (rows.shape[0], rows.shape[1] // block, block)
    # the constructor makes the same view as as_strided, in a tenth of the time
    return np.ndarray(shape, rows.dtype, rows, 0, (rows.strides[0], block * FLOAT_BYTES, FLOAT_BYTES))


@dataclass(frozen=True)
class BlockScan(Tactic):
    """One thread block per row: goes along in tiles of ``threads * items`` elements and carries the sum."""

    op: ClassVar[str] = CUM_SUM
    target: ClassVar[str] = "cuda"

    threads: int = 256
    items: int = 4

    @classmethod
    def candidates(cls, signature: OpSignature, device: Device) -> Iterable[Self]:
        return (cls(threads, items) for threads in (256, 128, 1024) for items in (4, 8))

    def decline(self, signature: OpSignature, device: Device) -> str | None:
        return decline_scan(signature, flags=True)

    def prepare(self, signature: OpSignature, device: Device) -> Launch:
        defines = {
            "THREADS": self.threads,
            "ITEMS": self.items,
            "EXCLUSIVE": signature.attribute("exclusive", 0),
            "REVERSE": signature.attribute("reverse", 0),
        }
        # compile() is the cuda device's own method: this tactic's target is "cuda", so it is there
        kernel = device.compile(KernelSource(BLOCK_SCAN, "block_scan", tuple(defines.items())))
        columns = signature.inputs[0].dims[-1]
        rows = signature.inputs[0].size // columns

        def launch(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any) -> None:
            kernel.launch(stream, rows, self.threads, inputs[0], outputs[0], np.int64(columns))

        return launch


def decline_scan(signature: OpSignature, *, flags: bool = False) -> str | None:
    """Return why these tactics don't run ``signature``, or None; ``flags`` allows exclusive and reverse."""
    x, axis = signature.inputs[0], signature.known(1)
    if not signature.is_static or signature.input(1) is None:
        return "needs static shapes"
    if x.dtype != "float32":
        return f"float32 only, not {x.dtype}"
    if axis is None:
        return "the axis is not a constant"
    if x.rank == 0 or axis.item() not in (-1, x.rank - 1):
        return "the last axis only"
    if x.size == 0:
        return "nothing to sum"
    if not flags and (signature.attribute("exclusive", 0) or signature.attribute("reverse", 0)):
        return "neither exclusive nor reverse sums"
    return None


BLOCK_SCAN = r"""
// y[r, t] = sum of x[r, s] over s <= t   (s < t if EXCLUSIVE; the row read from its end if REVERSE)
//
//   x, y : float[rows, columns], row-major        moves 8 * rows * columns bytes
//   one block per row; THREADS threads with ITEMS consecutive elements each make a tile; the sum is carried
//   from tile to tile        set by the tactic: THREADS (a multiple of 32), ITEMS, EXCLUSIVE, REVERSE

__device__ __forceinline__ float warp_scan(float sum, int lane) {
    #pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
        float before = __shfl_up_sync(0xffffffffu, sum, distance);
        if (lane >= distance) sum += before;
    }
    return sum;
}

extern "C" __global__ void __launch_bounds__(THREADS)
block_scan(const float* __restrict__ x, float* __restrict__ y, long long columns) {
    __shared__ float warp_sums[THREADS / 32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const long long row = blockIdx.x * columns;
    float carry = 0.0f;

    for (long long tile = 0; tile < columns; tile += THREADS * ITEMS) {
        // 1. each thread sums its ITEMS elements
        float at[ITEMS], own = 0.0f;
        #pragma unroll
        for (int i = 0; i < ITEMS; ++i) {
            const long long t = tile + threadIdx.x * ITEMS + i;
            at[i] = t < columns ? x[row + (REVERSE ? columns - 1 - t : t)] : 0.0f;
            own += at[i];
        }
        // 2. the sum of the threads up to this one: within the warp, then over the warps
        const float in_warp = warp_scan(own, lane);
        if (lane == 31) warp_sums[warp] = in_warp;
        __syncthreads();
        if (warp == 0) {
            const float scanned = warp_scan(lane < THREADS / 32 ? warp_sums[lane] : 0.0f, lane);
            if (lane < THREADS / 32) warp_sums[lane] = scanned;
        }
        __syncthreads();
        // 3. what stands before this thread's first element; in_warp - own would round, and make inf - inf
        const float neighbour = __shfl_up_sync(0xffffffffu, in_warp, 1);
        float sum = carry + (warp > 0 ? warp_sums[warp - 1] : 0.0f) + (lane > 0 ? neighbour : 0.0f);
        #pragma unroll
        for (int i = 0; i < ITEMS; ++i) {
            const long long t = tile + threadIdx.x * ITEMS + i;
            const float before = sum;
            sum += at[i];
            if (t < columns) y[row + (REVERSE ? columns - 1 - t : t)] = EXCLUSIVE ? before : sum;
        }
        // 4. the next tile begins with this one's total; warp_sums is free again after the barrier
        carry += warp_sums[THREADS / 32 - 1];
        __syncthreads();
    }
}
"""


@hookimpl
def tactics() -> list[type[Tactic]]:
    return [BlasScan, BlockScan]
