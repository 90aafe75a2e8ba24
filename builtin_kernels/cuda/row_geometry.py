"""How many threads share a row, and how much of it each of them holds in registers."""

from __future__ import annotations

from tactician.builtin_kernels.cuda.indexing import ceil_div, power_of_two_below

ACCESS_BYTES = 16
HELD_ELEMENTS = 64
"""Elements of a row that one thread may hold in registers; longer rows are read again instead."""
GROUPS = (4, 8, 16, 32, 128, 256, 512, 1024)


def row_vector(length: int, itemsize: int) -> int:
    """Return the number of elements of the widest access that divides a row of ``length`` elements."""
    return power_of_two_below(length, max(ACCESS_BYTES // itemsize, 1))


def row_groups(length: int, itemsize: int) -> list[int]:
    """Return the numbers of threads per row that are worth timing, best guess first."""
    vector = row_vector(length, itemsize)
    vectors = ceil_div(length, vector)
    fitting = [
        g
        for g in GROUPS
        if vector * ceil_div(vectors, g) <= HELD_ELEMENTS and (g <= vectors or g == GROUPS[0])
    ]
    if not fitting:
        return [1024, 512]
    # about two vectors for each thread keep enough loads in flight without idle threads
    return sorted(fitting, key=lambda g: abs(ceil_div(vectors, g) - 2))[:4]


def block_threads(group: int) -> int:
    """Return the threads of a block: short rows share one."""
    return max(group, 128)
