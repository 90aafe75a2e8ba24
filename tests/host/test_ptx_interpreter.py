"""The PTX interpreter finds the faults that it exists to find."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("cuda.bindings.nvrtc", reason="the compiler's package is not installed")

from ptx_arithmetic import PtxError
from ptx_device import PtxDevice
from tactician.builtin_kernels.cuda.compiler import KernelSource


def launch(body: str, elements: int = 64, threads: int = 64, grid: int = 1) -> np.ndarray:
    """Run ``body`` with ``x``, of 0, 1, 2 …, and return ``y``, which has as many elements."""
    device = PtxDevice()
    source = f'extern "C" __global__ void k(const int* x, int* y) {{ int t = threadIdx.x; {body} }}'
    x, y = device.upload(np.arange(elements, dtype=np.int32)), device.empty((elements,), np.dtype(np.int32))
    device.compile(KernelSource(source, "k")).launch(None, grid, threads, x, y)
    return device.download(y)


def test_divergence_and_loops() -> None:
    y = launch("int s = 0; for (int i = 0; i < t; i++) s += x[i]; if (t & 1) s = -s; y[t] = s;")
    t = np.arange(64)
    assert y.tolist() == (t * (t - 1) // 2 * np.where(t & 1, -1, 1)).tolist()


def test_blocks_and_shared_memory() -> None:
    body = (
        "__shared__ int s[32]; int b = blockIdx.x * 32 + t; s[t] = x[b]; __syncthreads(); y[b] = s[31 - t];"
    )
    y = launch(body, threads=32, grid=2)
    assert y.tolist() == [*range(31, -1, -1), *range(63, 31, -1)]


def test_shared_addresses_have_32_bits() -> None:
    body = """__shared__ int s[64];
        unsigned below = (unsigned)__cvta_generic_to_shared(s) + 4 * t - 4096;
        asm volatile("st.shared.s32 [%0+4096], %1;" :: "r"(below), "r"(x[t]) : "memory");
        __syncthreads(); y[t] = s[63 - t];"""
    assert launch(body).tolist() == list(range(63, -1, -1))


def test_shuffles() -> None:
    y = launch("y[t] = __shfl_xor_sync(0xffffffffu, x[t], 5) + __shfl_up_sync(0xffffffffu, x[t], 1);")
    lane = np.arange(64)
    assert y.tolist() == ((lane ^ 5) + np.where(lane % 32 == 0, lane, lane - 1)).tolist()


def test_division_and_remainder() -> None:
    y = launch("y[t] = (x[t] - 31) / 7 * 1000 + (x[t] - 31) % 7;")
    v = np.arange(64) - 31
    assert y.tolist() == (np.trunc(v / 7).astype(int) * 1000 + np.fmod(v, 7)).tolist()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("y[t] = x[t + 1];", "leave their tensors"),
        ("y[t - 1] = x[t];", "leave their tensors"),
        ("((long long*)(y + 1))[t / 4] = x[t];", "misaligned"),
        ("__shared__ int s[64]; s[t] = x[t]; y[t] = s[63 - t];", "since the last barrier"),
        (
            "__shared__ int s[64]; s[t] = x[t]; __syncthreads(); y[t] = s[63 - t]; s[t] = 1; y[t] += s[t];",
            "since the last barrier",
        ),
        ("__shared__ int s[4]; s[t] = x[t]; __syncthreads(); y[t] = s[t];", "shared memory of 16 bytes"),
    ],
)
def test_faults(body: str, message: str) -> None:
    with pytest.raises(PtxError, match=message):
        launch(body)


def test_barrier_that_some_never_reach() -> None:
    body = (
        "if (t < 40) { y[t] = t; __syncthreads(); y[t] += 1; } else { y[t] = 9; __syncthreads(); y[t] *= 3; }"
    )
    with pytest.raises(PtxError, match="never come"):
        launch(body)


def test_wrong_arguments() -> None:
    device = PtxDevice()
    kernel = device.compile(KernelSource('extern "C" __global__ void k(int* y, int n) { y[0] = n; }', "k"))
    y = device.empty((1,), np.dtype(np.int32))
    with pytest.raises(PtxError, match="2 parameters, 1 arguments"):
        kernel.launch(None, 1, 1, y)
    with pytest.raises(PtxError, match="is a u32, but the argument a int64"):
        kernel.launch(None, 1, 1, y, np.int64(3))
