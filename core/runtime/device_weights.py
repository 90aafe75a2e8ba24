"""Weights on devices: what several sessions read is there once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tactician.engine import Engine
from tactician.memory import ALIGNMENT
from tactician.plan import Place, TensorSpec
from tactician.plugins.target import Device


class DeviceWeights:
    """Weights of engines that share them: the very same bytes in memory are one tensor on a device.

    Parameters
    ----------
    base
        What another one holds is taken from there.
    """

    def __init__(self, base: DeviceWeights | None = None) -> None:
        self._base = base
        self._held: dict[tuple[Any, ...], tuple[Any, Any]] = {}

    def place(self, engine: Engine, devices: Mapping[str, Device]) -> tuple[dict[int, Any], list[Any]]:
        """Upload what is not on its device yet.

        Returns
        -------
        dict
            By index of tensor the weight: a tensor of its device; on the host an array over the engine's own bytes.
        list
            The buffers that were allocated.
        """
        weights: dict[int, Any] = {}
        missing: dict[str, list[int]] = {target: [] for target in devices}
        for index, spec in enumerate(engine.plan.tensors):
            if spec.place != Place.WEIGHT:
                continue
            if spec.target == "cpu":
                weights[index] = engine.weight(spec.name, spec.type.numpy_dtype, spec.type.dims)
            elif (held := self._find(_key(engine, spec))) is not None:
                weights[index] = held
            else:
                missing[spec.target].append(index)
        buffers = []
        for target, indices in missing.items():
            if indices:
                buffers.append(self._upload(engine, devices[target], indices, weights))
        return weights, buffers

    def _find(self, key: tuple[Any, ...]) -> Any:
        if key in self._held:
            return self._held[key][0]
        return None if self._base is None else self._base._find(key)

    def _upload(self, engine: Engine, device: Device, indices: list[int], weights: dict[int, Any]) -> Any:
        """Upload the weights ``indices`` into one new buffer, which is returned."""
        specs = [engine.plan.tensors[index] for index in indices]
        offsets, end = [], 0
        for spec in specs:
            offsets.append(end)
            end += -(-spec.type.nbytes // ALIGNMENT) * ALIGNMENT
        buffer = device.allocate(end)
        for index, spec, offset in zip(indices, specs, offsets, strict=True):
            view = device.view(buffer, offset, spec.type)
            device.upload(view, engine.weight(spec.name, spec.type.numpy_dtype, spec.type.dims))
            weights[index] = view
            # the bytes are kept too: their identity is what the tensor is found by
            self._held[_key(engine, spec)] = view, engine.weights[spec.name]
        return buffer


def _key(engine: Engine, spec: TensorSpec) -> tuple[Any, ...]:
    return id(engine.weights.get(spec.name)), spec.target, spec.dtype, spec.shape
