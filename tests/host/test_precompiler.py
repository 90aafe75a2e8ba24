"""Kernels are compiled ahead in processes of their own, and tactics then find them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import wait
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tactician.builtin_kernels.cuda import compiler, precompiler
from tactician.builtin_kernels.cuda.device import CompileOnlyDevice
from tactician.builtin_kernels.cuda.precompiler import CudaPrecompiler
from tactician.builtin_kernels.cuda.transpose import TransposeTiled
from tactician.plugins.kernel_source import KernelSource
from tactician.signature import OpSignature, TensorType

CALL = OpSignature(
    "ai.onnx::Transpose",
    17,
    (("perm", (1, 0)),),
    (TensorType("float16", (256, 512)),),
    (TensorType("float16", (512, 256)),),
    (None,),
)


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CompileOnlyDevice:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return CompileOnlyDevice("sm_90a")


@pytest.fixture
def ahead(device: CompileOnlyDevice) -> Iterator[CudaPrecompiler]:
    made = CudaPrecompiler(device, 2)
    yield made
    precompiler._end(made._pool, made._servers)


def forbid(*arguments: Any, **options: Any) -> Any:
    raise AssertionError("compiled in this process")


def test_what_is_compiled_ahead_is_there_when_a_tactic_is_prepared(
    device: CompileOnlyDevice, ahead: CudaPrecompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    tactics = list(TransposeTiled.candidates(CALL, device))
    futures = [f for t in tactics for f in ahead.submit(partial(t.prepare, CALL))]
    assert len(futures) >= len(tactics) > 1
    wait(futures)
    monkeypatch.setattr(compiler, "compile_cubin", forbid)
    for tactic in tactics:
        tactic.prepare(CALL, device)
    used = device.artifacts.used()
    assert used and all(code.startswith(b"\x7fELF") for code in used.values())


def test_kernels_that_tactics_share_are_compiled_once(ahead: CudaPrecompiler) -> None:
    source = KernelSource('extern "C" __global__ void k(float* x) { x[0] = N; }', "k", (("N", 1),))
    one, other = (ahead.submit(lambda device: device.compile(source)) for _ in range(2))
    assert one[0] is other[0]


def test_what_does_not_compile_is_left_to_who_prepares_it(
    device: CompileOnlyDevice, ahead: CudaPrecompiler
) -> None:
    bad, good = (KernelSource(f'extern "C" __global__ void k() {{ {x} }}', "k") for x in ("nonsense;", ""))
    futures = [f for s in (bad, good) for f in ahead.submit(lambda device, s=s: device.compile(s))]
    wait(futures)
    assert [f.exception() for f in futures] == [None, None]
    assert bad.key("sm_90a") not in device.artifacts
    assert good.key("sm_90a") in device.artifacts


def test_a_tactic_that_needs_a_gpu_to_be_prepared_asks_for_what_it_can(ahead: CudaPrecompiler) -> None:
    source = KernelSource('extern "C" __global__ void k() {}', "k")

    def prepare(device: Any) -> None:
        device.compile(source)
        device.core.set_current()

    assert len(ahead.submit(prepare)) == 1


def test_a_compiler_that_dies_is_replaced(device: CompileOnlyDevice, ahead: CudaPrecompiler) -> None:
    def kernel(n: int) -> KernelSource:
        return KernelSource(f'extern "C" __global__ void k(int* x) {{ x[0] = {n}; }}', "k")

    def compile_many(numbers: range) -> None:
        sources = map(kernel, numbers)
        wait([f for s in sources for f in ahead.submit(lambda device, s=s: device.compile(s))])

    compile_many(range(4))
    for server in ahead._servers:
        assert server._child is not None
        os.kill(server._child.pid, 9)
        server._child.wait()
    compile_many(range(4, 8))
    assert all(kernel(n).key("sm_90a") in device.artifacts for n in range(8))
