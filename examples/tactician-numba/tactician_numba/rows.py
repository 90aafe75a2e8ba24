"""Tactics for what normalizes rows: Softmax over the last axis, and LayerNormalization."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from tactician import Device, Launch, OpSignature, Tactic

from tactician_numba.device import scratch
from tactician_numba.tactic import FLOAT_BYTES, NumbaTactic, dims_of, own_device, size_of

NOTHING = np.empty(0, np.float32)


@dataclass(frozen=True)
class Softmax(NumbaTactic):
    """Softmax over the last axis; before opset 13, over all axes from ``axis`` on as one."""

    op: ClassVar[str] = "ai.onnx::Softmax"

    def decline_call(self, signature: OpSignature) -> str | None:
        dims = dims_of(signature, 0)
        if not dims:
            return "a scalar has no axis"
        if signature.version >= 13 and signature.attribute("axis", -1) % len(dims) != len(dims) - 1:
            return "the last axis only"
        return None

    def prepare(self, signature: OpSignature, device: Device) -> Launch:
        from tactician_numba.rows_kernels import softmax

        dims = dims_of(signature, 0)
        axis = signature.attribute("axis", 1 if signature.version < 13 else -1) % len(dims)
        columns = size_of(dims[axis:])
        compiled, split, rows = softmax.compile(), own_device(device).split, size_of(dims) // columns

        def launch(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any) -> None:
            x, y = inputs[0].flat, outputs[0].flat
            split(lambda begin, end, _: compiled(x, y, columns, begin, end), rows, parallel=self.parallel)

        return launch


@dataclass(frozen=True)
class LayerNormalization(NumbaTactic):
    """Normalization of the axes from ``axis`` on; also the mean and the inverse deviation, if asked for."""

    op: ClassVar[str] = "ai.onnx::LayerNormalization"
    float_inputs: ClassVar[tuple[int, ...]] = (0, 1, 2)

    def decline_call(self, signature: OpSignature) -> str | None:
        columns = self._columns(signature)
        for index, what in ((1, "scale"), (2, "bias")):
            tensor = signature.input(index)
            if tensor is not None and tensor.size != columns:
                return f"the {what} has {tensor.size} elements, a row has {columns}: it would be broadcast"
        return None

    def workspace(self, signature: OpSignature, device: Device) -> int:
        """Return room for mean and inverse deviation of each row: outputs that may be absent."""
        return 2 * FLOAT_BYTES * (size_of(dims_of(signature, 0)) // self._columns(signature))

    def prepare(self, signature: OpSignature, device: Device) -> Launch:
        from tactician_numba.rows_kernels import layer_normalization

        compiled, split = layer_normalization.compile(), own_device(device).split
        columns = self._columns(signature)
        rows = size_of(dims_of(signature, 0)) // columns
        epsilon = np.float32(signature.attribute("epsilon", 1e-5))

        def launch(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any) -> None:
            x, scale, bias = (None if t is None else t.flat for t in (*inputs, None)[:3])
            bias = NOTHING if bias is None else bias
            y, *statistics = outputs
            means, inverses = (
                room if tensor is None else tensor.flat
                for room, tensor in zip(scratch(workspace, 2), (*statistics, None, None), strict=False)
            )

            def piece(begin: int, end: int, part: int) -> None:
                compiled(x, scale, bias, y.flat, means, inverses, epsilon, columns, begin, end)

            split(piece, rows, parallel=self.parallel)

        return launch

    @staticmethod
    def _columns(signature: OpSignature) -> int:
        dims = dims_of(signature, 0)
        return size_of(dims[signature.attribute("axis", -1) % len(dims) :])


TACTICS: list[type[Tactic]] = [Softmax, LayerNormalization]
