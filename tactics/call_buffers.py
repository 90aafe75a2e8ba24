"""Inputs, outputs and workspace of one call on the device, so that whatever is written wrongly shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tactician.signature import OpSignature, TensorType
from tactician.tactics.guarded import GuardedBuffer, raw_bytes

if TYPE_CHECKING:
    from tactician.plugins.examiner import Examiner
    from tactician.plugins.target import Device

Array = np.ndarray[Any, Any]


class CallBuffers:
    """Outputs and workspace of one candidate, between guards; None for outputs that the launch makes."""

    def __init__(
        self, device: Device, signature: OpSignature, nbytes: int, random: np.random.Generator
    ) -> None:
        self._device = device
        self._types = signature.outputs
        self._guarded = [
            GuardedBuffer(device, t.nbytes, random) if _has_buffer(t) and t is not None else None
            for t in self._types
        ]
        self._scratch = GuardedBuffer(device, nbytes, random) if nbytes else None
        self.outputs = [
            buffer.tensor(t) if buffer is not None and t is not None else None
            for buffer, t in zip(self._guarded, self._types, strict=True)
        ]
        self.workspace = self._scratch.bytes() if self._scratch else None

    def fill(self, poison: int) -> None:
        """Set all bytes to ``poison``."""
        for buffer in (*self._guarded, self._scratch):
            if buffer is not None:
                buffer.fill(poison)

    def results(self, returned: Sequence[Any] | None, stream: Any) -> list[Any]:
        """Return host copies of all outputs, of those that the launch returned too."""
        results = []
        for i, (tensor, kind) in enumerate(zip(self.outputs, self._types, strict=True)):
            value = tensor
            if tensor is None and kind is not None:
                value = returned[i] if returned is not None and i < len(returned) else None
            on_device = tensor is not None or not isinstance(
                value, np.ndarray | np.generic | list | tuple | None
            )
            results.append(self._device.download(value, stream) if on_device else value)
        return results

    def restore_guards(self) -> None:
        """Put all guards back."""
        for buffer in (*self._guarded, self._scratch):
            if buffer is not None:
                buffer.restore_guards()

    def sizes(self) -> list[int]:
        """Return the bytes of each output."""
        return [t.nbytes if t is not None else 0 for t in self._types]

    def damage(self) -> str | None:
        """Return what was written to that must not be, or None."""
        for i, buffer in enumerate(self._guarded):
            if buffer is not None and (where := buffer.damage()):
                return f"writes out of bounds: {where} of output {i}"
        if self._scratch is not None and (where := self._scratch.damage()):
            return f"writes out of bounds: {where} of the workspace"
        return None


class CallInputs:
    """One set of inputs on the device, with what they must still be afterwards."""

    def __init__(
        self, device: Device, signature: OpSignature, inputs: Sequence[Any], random: np.random.Generator
    ) -> None:
        self.tensors: list[Any] = []
        self._kept: list[tuple[int, GuardedBuffer, Array]] = []
        for i, value in enumerate(inputs):
            if not isinstance(value, np.ndarray) or value.dtype.kind in "OUST":
                self.tensors.append(value)  # strings and sequences live on the host
                continue
            tensor = signature.input(i)
            dtype = tensor.dtype if tensor is not None else value.dtype.name
            buffer = GuardedBuffer(device, value.nbytes, random)
            self._kept.append((i, buffer, value))
            self.tensors.append(buffer.tensor(TensorType(dtype, value.shape)))
        self._twins: list[Any] | None = None
        self.restore()

    def restore(self) -> None:
        """Put back what the inputs and their guards must hold."""
        for _, buffer, value in self._kept:
            buffer.restore_guards()
            buffer.put(value)

    def is_whole(self, examiner: Examiner, stream: Any) -> bool:
        """Return whether all inputs and their guards are as they must be, as far as the device can tell."""
        if self._twins is None:  # before the first launch: they are as they were put there
            self._twins = [
                examiner.copy(buffer.bytes(), value.nbytes, stream) for _, buffer, value in self._kept
            ]
        return all(
            examiner.same(buffer.bytes(), twin, value.nbytes, stream) and buffer.damage() is None
            for (_, buffer, value), twin in zip(self._kept, self._twins, strict=True)
        )

    def damage(self) -> str | None:
        """Return what was written to that must not be, or None."""
        for i, buffer, value in self._kept:
            if not np.array_equal(buffer.get(), raw_bytes(value)):
                return f"changes input {i}"
            if where := buffer.damage():
                return f"writes out of bounds: {where} of input {i}"
        return None


def _has_buffer(tensor: TensorType | None) -> bool:
    return tensor is not None and tensor.is_static and tensor.dtype != "string"
