"""The PTX interpreter's clusters: addresses in the shared memory of another block of the same cluster."""

from __future__ import annotations

from typing import Any

import numpy as np
from ptx_arithmetic import PtxError

Array = np.ndarray[Any, np.dtype[Any]]

RANK_BIT = 24
"""An address in another block's shared memory has one more than the block's number in the cluster from this bit on."""


def map_address(run: Any, i: Any, lanes: Any) -> None:
    """``mapa``: the address of the same place in the shared memory of another block."""
    address, rank = (run.get(operand, "u32", lanes) for operand in i.operands[1:3])
    if (rank >= run.kernel.cluster).any():
        raise PtxError(f"{i.text}: block {rank.max()} of a cluster of {run.kernel.cluster}")
    run.put(i.operands[0], address + (rank + np.uint32(1) << np.uint32(RANK_BIT)), lanes)


def in_cluster(run: Any, address: Array, number: Array, what: str) -> tuple[Array, Array]:
    """Return what ``address`` means to the threads ``number``: a place in shared memory, and whose it is.

    Raises
    ------
    PtxError
        If a thread reaches for the memory of a block that has ended.
    """
    rank = (address >> RANK_BIT) - 1
    own = run.block[number]
    block = np.where(rank < 0, own, own - own % run.kernel.cluster + rank)
    alive = np.bincount(run.block[run.live], minlength=int(run.block[-1]) + 1) > 0
    if not alive[block].all():
        raise PtxError(f"{what}: shared memory of a block that has ended")
    return address & ((1 << RANK_BIT) - 1), block
