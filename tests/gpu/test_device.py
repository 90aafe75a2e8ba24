"""What the GPU's device promises: graphs, memory that is filled, kernels that are compiled ahead."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import wait
from functools import partial
from typing import Any

import numpy as np
import pytest
from tactician.builtin_kernels.cuda import compiler
from tactician.builtin_kernels.cuda.transpose import TransposeTiled
from tactician.signature import OpSignature, TensorType


class _Work:
    """A launch that owns something, as one of a loaded module or of a library's plan does."""

    def __init__(self, device: Any, tensor: Any) -> None:
        self.device, self.tensor = device, tensor

    def __call__(self, stream: Any) -> None:
        from cuda.bindings import driver

        (status,) = driver.cuMemsetD8Async(self.tensor.pointer, 7, self.tensor.nbytes, int(stream.handle))
        assert status == driver.CUresult.CUDA_SUCCESS


def test_a_graph_keeps_what_it_was_captured_from(device: Any) -> None:
    tensor = device.view(device.allocate(64), 0, TensorType("uint8", (64,)))
    work = _Work(device, tensor)
    alive = weakref.ref(work)
    replay = device.capture(work)
    del work
    gc.collect()
    assert alive() is not None
    stream = device.create_stream()
    replay(stream)
    device.synchronize(stream)
    assert np.array_equal(device.download(tensor), np.full(64, 7, np.uint8))
    del replay
    gc.collect()
    assert alive() is None


def test_memory_is_filled_between_what_lies_beside_it(device: Any) -> None:
    buffer = device.allocate(3 * 256)
    whole = device.view(buffer, 0, TensorType("uint8", (3 * 256,)))
    device.upload(whole, np.arange(3 * 256).astype(np.uint8))
    device.fill(device.view(buffer, 256, TensorType("uint8", (200,))), 200, 0xFF)
    wanted = np.arange(3 * 256).astype(np.uint8)
    wanted[256:456] = 0xFF
    assert np.array_equal(device.download(whole), wanted)
    device.fill(whole, 0, 1)
    assert np.array_equal(device.download(whole), wanted)


def test_a_tactic_runs_what_was_compiled_ahead(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = [TensorType("float32", shape) for shape in ((96, 160), (160, 96))]
    call = OpSignature("ai.onnx::Transpose", 17, (("perm", (1, 0)),), (kinds[0],), (kinds[1],), (None,))
    tactic = next(iter(TransposeTiled.candidates(call, device)))
    precompiler = device.precompiler(2)
    wait(precompiler.submit(partial(tactic.prepare, call)))
    with monkeypatch.context() as patch:
        patch.setattr(compiler, "compile_cubin", None)  # nothing is compiled here
        launch = tactic.prepare(call, device)
    x = np.random.default_rng(0).standard_normal((96, 160)).astype(np.float32)
    source, target = (device.view(device.allocate(k.nbytes), 0, k) for k in kinds)
    device.upload(source, x)
    stream = device.create_stream()
    launch([source], [target], None, stream)
    assert np.array_equal(device.download(target, stream), x.T)
