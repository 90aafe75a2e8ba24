"""Broadcasting and permutation as loops: extents and strides, with as few dimensions as will do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Loops:
    """A nest of loops over the output, outermost first, and by how much each moves an operand.

    Parameters
    ----------
    extents
        Turns of each loop; at least one loop.
    strides
        For each operand, the elements that one turn of each loop moves it by; 0 where it is broadcast.
    """

    extents: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]

    @property
    def rows(self) -> int:
        """Turns of all loops but the innermost."""
        count = 1
        for extent in self.extents[:-1]:
            count *= extent
        return count


def contiguous(dims: Sequence[int]) -> tuple[int, ...]:
    """Return the strides, in elements, of a row-major tensor."""
    strides, step = [], 1
    for extent in reversed(dims):
        strides.append(step)
        step *= extent
    return tuple(reversed(strides))


def broadcast(dims: Sequence[int], output: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of a tensor of ``dims`` that is broadcast to ``output``."""
    missing = len(output) - len(dims)
    steps = (0 if extent == 1 else stride for extent, stride in zip(dims, contiguous(dims), strict=True))
    return (*(0,) * missing, *steps)


def collapse(extents: Sequence[int], *strides: Sequence[int]) -> Loops:
    """Drop loops of one turn, and join those that are one walk for every operand and for the output."""
    output = contiguous(extents)
    kept = [d for d, extent in enumerate(extents) if extent != 1]
    joined: list[list[int]] = []  # [extent, stride of each operand and of the output]
    for d in kept:
        steps = [s[d] for s in (*strides, output)]
        if joined and all(
            outer == inner * extents[d] for outer, inner in zip(joined[-1][1:], steps, strict=True)
        ):
            joined[-1] = [joined[-1][0] * extents[d], *steps]
        else:
            joined.append([extents[d], *steps])
    joined = joined or [[1, *(0 for _ in strides), 0]]
    return Loops(
        tuple(loop[0] for loop in joined),
        tuple(tuple(loop[1 + i] for loop in joined) for i in range(len(strides))),
    )
