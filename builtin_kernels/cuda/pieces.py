"""Data movement as pieces: boxes of an input that lie as boxes of the same shape in an output."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tactician.builtin_kernels.cuda.indexing import Shape, collapse, contiguous_strides, power_of_two_below
from tactician.signature import OpSignature, TensorType

WIDEST_WORD = 16
"""Bytes of the widest access of one thread."""


class MovementError(Exception):
    """A call that can't be expressed as pieces; the message is the reason to decline with."""


@dataclass(frozen=True)
class Piece:
    """A box of elements, and where they lie in an input and in an output.

    Element ``i`` of the box is number ``source_offset + Σ i source_strides`` of the input and number
    ``target_offset + Σ i target_strides`` of the output.
    """

    input: int
    output: int
    shape: Shape
    source_strides: Shape
    target_strides: Shape
    source_offset: int = 0
    target_offset: int = 0

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def in_words(self, itemsize: int) -> tuple[Piece, int]:
        """Return the same piece, collapsed, in the widest words that both sides allow, and their bytes."""
        shape, (source, target) = collapse(self.shape, self.source_strides, self.target_strides)
        factor = 1
        if source[-1] == target[-1] == 1:
            numbers = (shape[-1], *source[:-1], *target[:-1], self.source_offset, self.target_offset)
            factor = power_of_two_below(math.gcd(*numbers), max(WIDEST_WORD // itemsize, 1))
        if factor == 1:
            return Piece(
                self.input, self.output, shape, source, target, self.source_offset, self.target_offset
            ), itemsize
        return (
            Piece(
                self.input,
                self.output,
                (*shape[:-1], shape[-1] // factor),
                (*(s // factor for s in source[:-1]), 1),
                (*(s // factor for s in target[:-1]), 1),
                self.source_offset // factor,
                self.target_offset // factor,
            ),
            itemsize * factor,
        )


def pieces_of(signature: OpSignature) -> list[Piece]:
    """Return the pieces of a movement operator, those without elements left out.

    Raises
    ------
    MovementError
        If starts, axes or the like are not known.
    """
    permuted = permutation_of(signature)
    pieces = [permutation_piece(*permuted)] if permuted else _BUILDERS[signature.op_type](signature)
    return [p for p in pieces if p.count]


def permutation_of(signature: OpSignature) -> tuple[Shape, Shape] | None:
    """Return the input's shape, reshaped where needed, and how it is permuted; None for other operators."""
    dims = _dims(signature.input(0))
    if signature.op_type == "Transpose":
        rank = len(dims)
        return dims, tuple(p % rank for p in signature.attribute("perm") or reversed(range(rank)))
    if signature.op_type not in ("DepthToSpace", "SpaceToDepth"):
        return None
    if len(dims) != 4:
        raise MovementError(f"{signature.op_type} needs 4 dimensions, not {len(dims)}")
    n, c, h, w = dims
    b = int(signature.attribute("blocksize"))
    if signature.op_type == "SpaceToDepth":
        return (n, c, h // b, b, w // b, b), (0, 3, 5, 1, 2, 4)
    if signature.attribute("mode", "DCR") == "DCR":
        return (n, b, b, c // b**2, h, w), (0, 3, 4, 1, 5, 2)
    return (n, c // b**2, b, b, h, w), (0, 1, 4, 2, 5, 3)


def permutation_piece(dims: Shape, permutation: Shape) -> Piece:
    """Return the one piece that permutes the dimensions of a tensor of shape ``dims``."""
    own = contiguous_strides(dims)
    shape = tuple(dims[p] for p in permutation)
    return Piece(0, 0, shape, tuple(own[p] for p in permutation), contiguous_strides(shape))


def integers(signature: OpSignature, index: int, attribute: str) -> tuple[int, ...] | None:
    """Return integers that are an attribute in older opsets and the constant input ``index`` in newer ones.

    Raises
    ------
    MovementError
        If the input is there but not known.
    """
    found = signature.attribute(attribute)
    if found is not None:
        return tuple(found) if isinstance(found, tuple) else (int(found),)
    if signature.input(index) is None:
        return None
    known = signature.known(index)
    if known is None:
        raise MovementError(f"'{attribute}' is not a known constant")
    return tuple(int(v) for v in known.reshape(-1))


def _dims(tensor: TensorType | None) -> Shape:
    if tensor is None:
        raise MovementError("the first input is absent")
    return tensor.dims


def _slice(signature: OpSignature) -> list[Piece]:
    dims = _dims(signature.input(0))
    starts, ends = integers(signature, 1, "starts"), integers(signature, 2, "ends")
    if starts is None or ends is None:
        raise MovementError("starts or ends are absent")
    axes = integers(signature, 3, "axes") or tuple(range(len(starts)))
    steps = integers(signature, 4, "steps") or (1,) * len(starts)
    own = contiguous_strides(dims)
    shape, strides, offset = list(dims), list(own), 0
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        d = axis % len(dims)
        chosen = range(*slice(start, end, step).indices(dims[d]))
        shape[d], strides[d] = len(chosen), own[d] * step
        offset += own[d] * (chosen.start if len(chosen) else 0)
    return [Piece(0, 0, tuple(shape), tuple(strides), contiguous_strides(shape), offset)]


def _concat(signature: OpSignature) -> list[Piece]:
    target = _dims(signature.outputs[0])
    axis = int(signature.attribute("axis", 1)) % len(target)
    strides = contiguous_strides(target)
    pieces, start = [], 0
    for i, tensor in enumerate(signature.inputs):
        dims = _dims(tensor)
        pieces.append(Piece(i, 0, dims, contiguous_strides(dims), strides, 0, start * strides[axis]))
        start += dims[axis]
    return pieces


def _split(signature: OpSignature) -> list[Piece]:
    source = _dims(signature.input(0))
    axis = int(signature.attribute("axis", 0)) % len(source)
    strides = contiguous_strides(source)
    pieces, start = [], 0
    for i, tensor in enumerate(signature.outputs):
        if tensor is None:
            raise MovementError("an output is absent")
        pieces.append(
            Piece(0, i, tensor.dims, strides, contiguous_strides(tensor.dims), start * strides[axis])
        )
        start += tensor.dims[axis]
    return pieces


def _tile(signature: OpSignature) -> list[Piece]:
    dims, target = _dims(signature.input(0)), _dims(signature.outputs[0])
    own = contiguous_strides(dims)
    shape = tuple(n for d, t in zip(dims, target, strict=True) for n in (t // d if d else 0, d))
    strides = tuple(s for stride in own for s in (0, stride))
    return [Piece(0, 0, shape, strides, contiguous_strides(shape))]


_BUILDERS: dict[str, Callable[[OpSignature], Sequence[Piece]]] = {
    "Slice": _slice,
    "Concat": _concat,
    "Split": _split,
    "Tile": _tile,
}
