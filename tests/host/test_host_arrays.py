"""What a device computed is the caller's own on the host, whatever the device's tensors are made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fakes import FakeDevice
from tactician.errors import DeviceError
from tactician.runtime.executor import as_host_array


class Plain(FakeDevice):
    """A device whose tensors are NumPy arrays over memory that it uses again."""

    def download(self, tensor: Any, stream: Any = None) -> Any:
        return tensor.copy()


class Cpu(Plain):
    target = "cpu"


def test_arrays_of_a_device_are_copied() -> None:
    memory = np.random.default_rng(0).standard_normal(5)
    result = as_host_array(memory, Plain(), None)
    assert np.array_equal(result, memory) and not np.shares_memory(result, memory)


def test_arrays_of_the_host_are_not() -> None:
    memory = np.ones(5)
    assert as_host_array(memory, Cpu(), None) is memory
    assert as_host_array(memory, FakeDevice(), None) is memory, "made by a step whose outputs depend on data"
    for value in ([memory], (), None, 3.0):
        assert as_host_array(value, Plain(), None) is value


def test_what_is_no_tensor_is_named() -> None:
    with pytest.raises(DeviceError, match="can't read a set from device fake:0"):
        as_host_array({1}, FakeDevice(), None)
