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


class GuardedBuffer:
    """``nbytes`` bytes on ``device``, aligned to 256, with a random pattern before and behind."""

    def __init__(self, device: Device, nbytes: int, random: np.random.Generator) -> None:
        self._device = device
        self._nbytes = nbytes
        self._buffer = device.allocate(nbytes + 2 * GUARD_BYTES)
        self._guard = random.integers(0, 256, GUARD_BYTES, np.uint8)

    def tensor(self, tensor: TensorType) -> Any:
        """Return the guarded bytes as a device tensor."""
        return self._device.view(self._buffer, GUARD_BYTES, tensor)

    def bytes(self) -> Any:
        """Return the guarded bytes as a device tensor of bytes."""
        return self.tensor(TensorType("uint8", (self._nbytes,)))

    def fill(self, pattern: int) -> None:
        """Set every guarded byte to ``pattern``, and both guards to theirs."""
        self._device.upload(self._whole(), self._expected(pattern))

    def put(self, array: Array) -> None:
        """Set the guarded bytes to those of ``array``."""
        self._device.upload(self.bytes(), raw_bytes(array))

    def get(self) -> Array:
        """Return a host copy of the guarded bytes."""
        return self._device.download(self.bytes())

    def damage(self) -> str | None:
        """Return where the guards were written to, or None."""
        whole = self._device.download(self._whole())
        rear = whole[GUARD_BYTES + self._nbytes :]
        for place, guard in (("before the start", whole[:GUARD_BYTES]), ("past the end", rear)):
            changed = np.flatnonzero(guard != self._guard)
            if changed.size:
                distance = GUARD_BYTES - changed[-1] if place == "before the start" else changed[0] + 1
                return f"{changed.size} bytes {place} ({distance} bytes off)"
        return None

    def _whole(self) -> Any:
        size = self._nbytes + 2 * GUARD_BYTES
        return self._device.view(self._buffer, 0, TensorType("uint8", (size,)))

    def _expected(self, pattern: int) -> Array:
        return np.concatenate([self._guard, np.full(self._nbytes, pattern, np.uint8), self._guard])


def raw_bytes(array: Array) -> Array:
    """Return the bytes of ``array`` in row-major order."""
    return np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
