"""Global and shared memory of interpreted kernels, which check every access."""

from __future__ import annotations

from typing import Any

import numpy as np
from ptx_arithmetic import PtxError

Array = np.ndarray[Any, np.dtype[Any]]


class Memory:
    """Global memory: an arena whose allocations lie apart, so that an access next to one of them is found."""

    BASE = 1 << 40
    GUARD = 512

    def __init__(self, nbytes: int = 1 << 26) -> None:
        self.data = np.zeros(nbytes, np.uint8)
        self._allocated = np.zeros(nbytes, bool)
        self._top = self.GUARD

    def allocate(self, nbytes: int) -> int:
        """Return the address of ``nbytes`` new bytes, aligned to 256."""
        start = self._top
        self._top += -(-nbytes // 256) * 256 + self.GUARD
        if self._top > self.data.size:
            raise PtxError(f"the arena of {self.data.size} bytes is full")
        self._allocated[start : start + nbytes] = True
        return self.BASE + start

    def release(self) -> None:
        """Free all allocations."""
        self._allocated[: self._top] = False
        self._top = self.GUARD

    def bytes_at(self, address: int, nbytes: int) -> Array:
        """Return the bytes at ``address``, as a view."""
        return self.data[address - self.BASE : address - self.BASE + nbytes]

    def check(self, address: Array, nbytes: int, what: str) -> Array:
        """Return the places in ``data`` of checked accesses of ``nbytes`` at ``address``."""
        place = address.astype(np.int64) - self.BASE
        inside = (place >= 0) & (place + nbytes <= self.data.size)
        inside[inside] = self._allocated[place[inside]] & self._allocated[place[inside] + nbytes - 1]
        if not inside.all():
            raise PtxError(
                f"{what}: {(~inside).sum()} threads leave their tensors, the first at {place[~inside][0]:+d}"
            )
        if (place % nbytes).any():
            raise PtxError(f"{what}: an access of {nbytes} bytes is misaligned")
        return place


class SharedMemory:
    """Shared memory of all running blocks, with who read and wrote each byte since the last barrier."""

    def __init__(self, blocks: int, nbytes: int, warps_per_block: int) -> None:
        self.nbytes = -(-max(nbytes, 1) // 16) * 16
        self.data = np.zeros(blocks * self.nbytes, np.uint8)
        self.epoch = np.zeros(blocks, np.int64)
        self._written = np.full((2, self.data.size), -1, np.int64)
        self._read = np.full((2, self.data.size), -1, np.int64)
        self._warps = warps_per_block

    def check(self, offset: Array, nbytes: int, block: Array, warp: Array, writes: bool, what: str) -> Array:
        """Return the places in ``data`` of accesses at ``offset``; raise on a fault or a hazard."""
        offset = offset.astype(np.int64)
        if ((offset < 0) | (offset + nbytes > self.nbytes)).any():
            raise PtxError(f"{what}: shared memory of {self.nbytes} bytes accessed at {offset.max()}")
        if (offset % nbytes).any():
            raise PtxError(f"{what}: a shared access of {nbytes} bytes is misaligned")
        place = block * self.nbytes + offset
        epoch = self.epoch[block]
        for step in range(0, nbytes, 2 if nbytes > 1 else 1):
            self._hazard(place + step, epoch, warp, writes, what)
        return place

    def _hazard(self, place: Array, epoch: Array, warp: Array, writes: bool, what: str) -> None:
        for table, earlier in ((self._written, "written"), (self._read, "read")):
            if earlier == "read" and not writes:
                continue
            clash = (table[0, place] == epoch) & (table[1, place] != warp)
            if clash.any():
                now = "write" if writes else "read"
                raise PtxError(
                    f"{what}: {now} of shared memory that another warp has {earlier} since the last barrier"
                )
        mine = self._written if writes else self._read
        several = ~np.bool_(writes) & (mine[0, place] == epoch) & (mine[1, place] != warp)
        mine[0, place] = epoch
        mine[1, place] = np.where(several, -2, warp)
