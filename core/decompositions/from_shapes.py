"""Operators that are told by an input at run time what the shape of their result says already.

What a network says of a shape holds at run time, or it does not run; so where only one value of the input gives that
shape, that is its value. Of a few values, the one is taken at run time.
"""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnx_ir as ir
from tactician.decompositions.call import FLOATS, Call, ints, require, reshaped, transposed
from tactician.network import domain_of, tensor_type
from tactician.passes.writer import Writer

OF_NOTHING = {
    "ReduceL1": 0, "ReduceL2": 0, "ReduceLogSum": -np.inf, "ReduceLogSumExp": -np.inf, "ReduceProd": 1, "ReduceSum": 0,
    "ReduceSumSquare": 0,
}  # fmt: skip
"""What reductions give where there are no elements; of the largest and the mean of none, each has its own idea."""


MOST_CHOICES = 4
"""Choices of axes up to which a reduction is computed for each, and one taken at run time."""

KEEP_SHAPES = frozenset({
    "Abs", "Cast", "Ceil", "Exp", "Floor", "Identity", "Log", "Neg", "Not", "Reciprocal", "Relu", "Round", "Sigmoid", "Sign", "Sqrt",
    "Tanh",
})  # fmt: skip
"""Operators whose input has the shape of their result."""


def settle_shapes(network: ir.Model) -> None:
    """Give values that elementwise operators read the shapes of what these compute, where only those are known."""
    for node in reversed(network.graph):
        if node.op_type not in KEEP_SHAPES or domain_of(node) != "ai.onnx" or node.inputs[0] is None:
            continue
        before, after = tensor_type(node.inputs[0]), tensor_type(node.outputs[0])
        if (
            before is not None
            and after is not None
            and before.is_tensor
            and after.is_static
            and not before.is_static
        ):
            node.inputs[0].shape = ir.Shape(after.dims)


def reduction(op: Writer, call: Call) -> ir.Value:
    """Write a reduction over axes that are given at run time as one over those that make the shape of the result."""
    nothing = OF_NOTHING.get(call.signature.op_type)
    if call.type().size == 0 and call.result().size and nothing is not None:
        require(np.isfinite(nothing) or call.type().dtype in FLOATS, "integers have no infinity")
        filled: ir.Value = op.Identity(np.full(call.result().dims, nothing, call.type().numpy_dtype))
        return filled
    require(call.has(1) and call.known(1) is None, "the axes are known")
    require(not call.attribute("noop_with_empty_axes", 0), "whether there are axes is known at run time only")
    (first, *others), after = _axes(call), call.result().dims
    reduce = getattr(op, call.signature.op_type)
    result = reduce(call.input(0), ints(*first), keepdims=1)
    result = reshaped(op, result, after)
    for axes in others:
        other = reshaped(op, reduce(call.input(0), ints(*axes), keepdims=1), after)
        result = op.Where(_are(op, call, axes), other, result)
    return result


def _axes(call: Call) -> list[tuple[int, ...]]:
    """Return the axes that give the shape of the result."""
    before, after = call.type().dims, call.result().dims
    rank, every = len(before), range(len(before))
    if call.attribute("keepdims", 1):
        found = [tuple(i for i in every if after[i] == 1)]
    else:
        # dimensions of one element don't matter: with or without them there is the same to add up
        long, wanted = [i for i in every if before[i] != 1], [n for n in after if n != 1]
        choices = itertools.combinations(long, len(wanted))
        kept = [set(choice) for choice in choices if [before[i] for i in choice] == wanted]
        found = [tuple(i for i in every if i not in choice) for choice in kept]
    require(rank > 0 and all(found), "no axes give this shape")
    require(0 < len(found) <= MOST_CHOICES, f"{len(found)} choices of axes give this shape")
    return found


def _are(op: Writer, call: Call, axes: tuple[int, ...]) -> ir.Value:
    """Return whether the axes that are given at run time are these."""
    dims = call.type().dims
    # those of one element may be given or not
    asked = [i for i, n in enumerate(dims) if n != 1]
    places = op.Unsqueeze(op.Mod(call.input(1), np.array(len(dims), np.int64)), ints(1))
    given = op.ReduceMax(
        op.Cast(op.Equal(places, ints(*asked)), to=onnx.TensorProto.INT64), ints(0), keepdims=0
    )
    same = op.Cast(op.Equal(given, ints(*(int(i in axes) for i in asked))), to=onnx.TensorProto.INT64)
    answer: ir.Value = op.Cast(op.ReduceMin(same, keepdims=0), to=onnx.TensorProto.BOOL)
    return answer


def center_crop_pad(op: Writer, call: Call) -> ir.Value:
    """Write CenterCropPad as a slice of what is too long, padded with zeros where it is too short."""
    before, after = call.type().dims, call.result().dims
    rank = len(before)
    starts = [max(0, old - new) // 2 for old, new in zip(before, after, strict=True)]
    ends = [start + min(old, new) for start, old, new in zip(starts, before, after, strict=True)]
    missing = [max(0, new - old) for old, new in zip(before, after, strict=True)]
    pads = [n // 2 for n in missing] + [n - n // 2 for n in missing]
    cut = op.Slice(call.input(0), ints(*starts), ints(*ends), ints(*range(rank)))
    padded: ir.Value = op.Pad(cut, ints(*pads)) if any(missing) else cut
    return padded


def affine_grid(op: Writer, call: Call) -> ir.Value:
    """Write AffineGrid as a product of the places of all pixels with the matrices."""
    batch, *sizes, rank = call.result().dims
    aligned = bool(call.attribute("align_corners", 0))
    require(0 not in call.result().dims, "the grid is empty")
    lines = [_places(n, aligned) for n in sizes]
    # the last dimension is x: coordinates come in the other order than dimensions
    grid = np.stack([*np.meshgrid(*lines, indexing="ij")[::-1], np.ones(sizes)], axis=-1)
    flat = grid.reshape(-1, rank + 1).astype(call.type().numpy_dtype)
    made = op.MatMul(flat, transposed(op, call.input(0), [0, 2, 1]))
    return reshaped(op, made, [batch, *sizes, rank])


def _places(size: int, aligned: bool) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    if aligned:
        return np.linspace(-1, 1, size) if size > 1 else np.zeros(1)
    return (2 * np.arange(size) + 1) / size - 1
