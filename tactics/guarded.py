"""Device memory between guard bytes: a write past either end shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from tactician.signature import TensorType

if TYPE_CHECKING:
    from tactician.plugins.target import Device

Array = np.ndarray[Any, Any]

GUARD_BYTES = 1024
"""Guard on either side, a multiple of the alignment that tactics count on; the rear one starts at the end."""


ALIGNMENT = 256
"""Bytes at whose multiples views of a buffer begin."""


class GuardedBuffer:
    """``nbytes`` bytes on ``device``, aligned to 256, with a random pattern before and behind."""

    def __init__(self, device: Device, nbytes: int, random: np.random.Generator) -> None:
        self._device = device
        self._nbytes = nbytes
        self._buffer = device.allocate(nbytes + 2 * GUARD_BYTES)
        self._guard = random.integers(0, 256, GUARD_BYTES, np.uint8)
        self.restore_guards()

    def tensor(self, tensor: TensorType) -> Any:
        """Return the guarded bytes as a device tensor."""
        return self._device.view(self._buffer, GUARD_BYTES, tensor)

    def bytes(self) -> Any:
        """Return the guarded bytes as a device tensor of bytes."""
        return self.tensor(TensorType("uint8", (self._nbytes,)))

    def restore_guards(self) -> None:
        """Put both guards back."""
        tail = self._nbytes % ALIGNMENT
        self._device.upload(self._part(0, GUARD_BYTES), self._guard)
        # tensors begin at multiples of the alignment: the bytes before the rear guard are written with it
        self._device.upload(self._rear(), np.concatenate([np.zeros(tail, np.uint8), self._guard]))

    def fill(self, pattern: int) -> None:
        """Set every guarded byte to ``pattern``."""
        self._device.fill(self.bytes(), self._nbytes, pattern)

    def put(self, array: Array) -> None:
        """Set the guarded bytes to those of ``array``."""
        self._device.upload(self.bytes(), raw_bytes(array))

    def get(self) -> Array:
        """Return a host copy of the guarded bytes."""
        return self._device.download(self.bytes())

    def damage(self) -> str | None:
        """Return where the guards were written to, or None."""
        front = self._device.download(self._part(0, GUARD_BYTES))
        rear = self._device.download(self._rear())[self._nbytes % ALIGNMENT :]
        for place, guard in (("before the start", front), ("past the end", rear)):
            changed = np.flatnonzero(guard != self._guard)
            if changed.size:
                distance = GUARD_BYTES - changed[-1] if place == "before the start" else changed[0] + 1
                return f"{changed.size} bytes {place} ({distance} bytes off)"
        return None

    def _rear(self) -> Any:
        """Return the rear guard, from the multiple of the alignment before it on."""
        tail = self._nbytes % ALIGNMENT
        return self._part(GUARD_BYTES + self._nbytes - tail, tail + GUARD_BYTES)

    def _part(self, offset: int, nbytes: int) -> Any:
        return self._device.view(self._buffer, offset, TensorType("uint8", (nbytes,)))


def raw_bytes(array: Array) -> Array:
    """Return the bytes of ``array`` in row-major order."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
