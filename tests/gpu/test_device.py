"""What the GPU's device promises of graphs that it captures."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
from tactician.signature import TensorType


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
