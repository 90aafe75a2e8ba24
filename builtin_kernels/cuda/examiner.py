"""Compares results in GPU memory: bytes of two tensors, and elements with a reference in double precision."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from tactician.builtin_kernels.cuda.compiler import read_source
from tactician.builtin_kernels.cuda.indexing import ceil_div
from tactician.builtin_kernels.cuda.tensor import DeviceTensor
from tactician.plugins.examiner import Examiner
from tactician.plugins.kernel_source import KernelSource
from tactician.signature import TensorType

if TYPE_CHECKING:
    from tactician.builtin_kernels.cuda.device import CudaDevice

THREADS, BLOCKS = 256, 1024
"""Threads of a block, and blocks at most: each writes one number for the host to add up."""
NAMES = {"float16": "f16", "bfloat16": "bf16", "float32": "float"}

# square_error: partial[b] = sum of (x[i] - h[i])^2 over the elements of block b, infinite where one is too far off
#   x : T[COUNT];   h : double[COUNT];   moves COUNT * (sizeof(T) + 8) bytes; neighbouring threads have neighbouring elements
# difference: different[b] = whether some byte of block b's part of x and h differs; moves 2 * nbytes bytes, in words
KERNELS = """
__device__ __forceinline__ double value(float x) { return x; }
__device__ __forceinline__ double value(f16 x) { return to_float(x); }
__device__ __forceinline__ double value(bf16 x) { return to_float(x); }

extern "C" __global__ void square_error(const T* __restrict__ x, const double* __restrict__ h, double* __restrict__ partial,
                                        u64 count, double allowed, double root) {
    __shared__ double sums[THREADS];
    double total = 0;
    for (u64 i = (u64)blockIdx.x * THREADS + threadIdx.x; i < count; i += (u64)gridDim.x * THREADS) {
        const double wanted = h[i], off = value(x[i]) - wanted;
        const double size = off < 0 ? -off : off, room = allowed * ((wanted < 0 ? -wanted : wanted) + root);
        total += size <= room ? off * off : __longlong_as_double(0x7ff0000000000000);  // also where it is not a number
    }
    sums[threadIdx.x] = total;
    for (u32 half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    if (threadIdx.x == 0) partial[blockIdx.x] = sums[0];
}

extern "C" __global__ void difference(const u8* __restrict__ x, const u8* __restrict__ h, u32* __restrict__ different, u64 nbytes) {
    __shared__ u32 found;
    if (threadIdx.x == 0) found = 0;
    __syncthreads();
    const u64 words = nbytes / 4, first = (u64)blockIdx.x * THREADS + threadIdx.x;
    u32 mine = 0;
    for (u64 i = first; i < words; i += (u64)gridDim.x * THREADS) mine |= ((const u32*)x)[i] ^ ((const u32*)h)[i];
    if (first < nbytes % 4) mine |= x[4 * words + first] ^ h[4 * words + first];
    if (mine) found = 1;
    __syncthreads();
    if (threadIdx.x == 0) different[blockIdx.x] = found;
}
"""


class CudaExaminer(Examiner):
    """Compares on one GPU."""

    TYPES = tuple(NAMES)

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        self._partial = device.view(device.allocate(8 * BLOCKS), 0, TensorType("float64", (BLOCKS,)))
        self._flags = device.view(device.allocate(4 * BLOCKS), 0, TensorType("uint32", (BLOCKS,)))

    def hold(self, values: np.ndarray[Any, Any]) -> DeviceTensor:
        """Return a copy of ``values`` in GPU memory."""
        tensor: DeviceTensor = self._empty(values.nbytes)
        self._device.upload(tensor, values.reshape(-1).view(np.uint8))
        return tensor

    def copy(self, tensor: DeviceTensor, nbytes: int, stream: Any) -> DeviceTensor:
        """Return a copy of the ``nbytes`` bytes of ``tensor``."""
        made: DeviceTensor = self._empty(nbytes)
        self._device.copy_bytes(made, tensor, nbytes, stream)
        return made

    def same(self, tensor: DeviceTensor, other: DeviceTensor, nbytes: int, stream: Any) -> bool:
        """Return whether ``nbytes`` bytes of both are equal."""
        grid = min(BLOCKS, ceil_div(max(nbytes, 1), 4 * THREADS))
        kernel = self._kernel("float16", "difference")
        kernel.launch(stream, grid, THREADS, tensor, other, self._flags, np.uint64(nbytes))
        return not self._device.download(self._flags, stream)[:grid].any()

    def square_error(
        self, tensor: DeviceTensor, held: DeviceTensor, allowed: float, root: float, stream: Any
    ) -> float:
        """Return the sum of squared differences, infinite or not a number where an element is too far off."""
        grid = min(BLOCKS, ceil_div(max(tensor.size, 1), THREADS))
        scalars = np.uint64(tensor.size), np.float64(allowed), np.float64(root)
        kernel = self._kernel(tensor.dtype, "square_error")
        kernel.launch(stream, grid, THREADS, tensor, held, self._partial, *scalars)
        return math.fsum(self._device.download(self._partial, stream)[:grid])

    def _empty(self, nbytes: int) -> Any:
        return self._device.view(self._device.allocate(nbytes), 0, TensorType("uint8", (nbytes,)))

    def _kernel(self, dtype: str, name: str) -> Any:
        return self._device.compile(kernel_source(dtype, name))


def kernel_source(dtype: str, name: str) -> KernelSource:
    """Return the source of kernel ``name`` for results of ``dtype``."""
    head = read_source("common.cuh") + f"\ntypedef {NAMES[dtype]} T;\n#define THREADS {THREADS}u\n"
    return KernelSource(head + KERNELS, name)
