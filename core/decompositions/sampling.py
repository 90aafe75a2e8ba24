"""GridSample as one gather of all elements that lie around each place, and a sum of these with their weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from tactician.decompositions.call import FLOATS, Call, ints, require, reshaped, transposed
from tactician.decompositions.resize import cubic
from tactician.passes.writer import Writer

CUBIC = -0.75
"""The parameter of the cubic convolution kernel."""

TAPS = {
    "nearest": (0,),
    "linear": (0, 1),
    "bilinear": (0, 1),
    "cubic": (-1, 0, 1, 2),
    "bicubic": (-1, 0, 1, 2),
}
"""Elements of a dimension that have a weight, counted from the one before the place; by mode, as old and new opsets call it."""


@dataclass(frozen=True)
class Sampler:
    """What is common to all dimensions of one call."""

    op: Writer
    mode: str
    padding: str
    aligned: bool
    kind: np.dtype[Any]

    def number(self, value: float) -> Any:
        """Return a number as a constant of the type that places are computed in."""
        return np.array(value, self.kind)

    def axis(self, grid: ir.Value, size: int) -> tuple[ir.Value, ir.Value]:
        """Return the index and the weight of each tap: [batch, places, taps].

        Parameters
        ----------
        grid
            Where the places lie, from -1 to 1: [batch, places, 1].
        """
        op, number = self.op, self.number
        low, high = (0.0, size - 1.0) if self.aligned else (-0.5, size - 0.5)
        place = op.Add(op.Mul(op.Add(grid, number(1)), number((high - low) / 2)), number(low))
        if self.mode == "nearest":
            place = op.Round(place)
        if self.padding != "zeros":
            outside = op.Or(op.Less(place, number(low)), op.Greater(place, number(high)))
            inner = (
                self.reflected(place, low, high)
                if self.padding == "reflection"
                else self.clipped(place, size)
            )
            place = op.Where(outside, inner, place)
        before = op.Floor(place)
        taps = np.array(TAPS[self.mode], self.kind)
        indices = op.Add(before, taps)
        weights = self.weights(op.Abs(op.Sub(op.Sub(place, before), taps)))
        if self.padding == "reflection":
            indices = op.Round(self.reflected(indices, low, high))
        elif self.padding == "zeros":
            inside = op.And(op.GreaterOrEqual(indices, number(0)), op.LessOrEqual(indices, number(size - 1)))
            weights = op.Where(inside, weights, number(0))
        return op.Cast(self.clipped(indices, size), to=onnx.TensorProto.INT64), weights

    def weights(self, distance: ir.Value) -> ir.Value:
        """Return what an element counts at a distance from the place."""
        op, number, made = self.op, self.number, distance
        match len(TAPS[self.mode]):
            case 1:
                made = op.Add(op.Mul(distance, number(0)), number(1))
            case 2:
                made = op.Sub(number(1), distance)
            case _:
                made = cubic(op, distance, CUBIC)
        return made

    def clipped(self, place: ir.Value, size: int) -> ir.Value:
        """Return the nearest place that there is."""
        made: ir.Value = self.op.Max(self.op.Min(place, self.number(size - 1)), self.number(0))
        return made

    def reflected(self, place: ir.Value, low: float, high: float) -> ir.Value:
        """Return a place thrown back by the borders until it is between them."""
        op, number, extent = self.op, self.number, high - low
        shifted = op.Sub(place, number(low))
        turns = op.Floor(op.Div(shifted, number(2 * extent)))
        within = op.Sub(shifted, op.Mul(turns, number(2 * extent)))
        made: ir.Value = op.Sub(number(high), op.Abs(op.Sub(within, number(extent))))
        return made


def grid_sample(op: Writer, call: Call) -> ir.Value:
    """Write GridSample with GatherND: indices and weights of all dimensions are multiplied out."""
    (batch, channels, *sizes), (_, *out, rank) = call.type().dims, call.type(1).dims
    mode, padding = str(call.attribute("mode", "linear")), str(call.attribute("padding_mode", "zeros"))
    aligned = bool(call.attribute("align_corners", 0))
    require(mode in TAPS and call.type().dtype in FLOATS, f"mode '{mode}' of {call.type().dtype}")
    require(0 not in (*call.type().dims, *call.type(1).dims), "there is nothing to sample")
    require(not (aligned and padding == "reflection" and 1 in sizes), "between the borders there is no room")
    wide = "float64" in (call.type().dtype, call.type(1).dtype)
    number = onnx.TensorProto.DOUBLE if wide else onnx.TensorProto.FLOAT
    sampler = Sampler(op, mode, padding, aligned, np.dtype(np.float64 if wide else np.float32))
    places, taps = math.prod(out), len(TAPS[mode])
    grid = op.Cast(reshaped(op, call.input(1), [batch, places, rank]), to=number)
    parts = op.Split(grid, ints(*[1] * rank), axis=2, _outputs=rank) if rank > 1 else [grid]
    index = weight = None
    # the last coordinate is that of the first dimension
    for i, (part, size) in enumerate(zip(reversed(parts), sizes, strict=True)):
        own_index, own_weight = sampler.axis(part, size)
        if index is None:
            index, weight = own_index, own_weight
            continue
        count = taps ** (i + 1)
        index = op.Add(
            op.Mul(op.Unsqueeze(index, ints(3)), np.array(size, np.int64)), op.Unsqueeze(own_index, ints(2))
        )
        weight = op.Mul(op.Unsqueeze(weight, ints(3)), op.Unsqueeze(own_weight, ints(2)))
        index, weight = (reshaped(op, v, [batch, places, count]) for v in (index, weight))
    count = taps**rank
    pixels = transposed(op, reshaped(op, call.input(0), [batch, channels, math.prod(sizes)]), [0, 2, 1])
    found = op.GatherND(pixels, op.Reshape(index, ints(batch, places * count, 1)), batch_dims=1)
    found = op.Cast(reshaped(op, found, [batch, places, count, channels]), to=number)
    total = op.ReduceSum(op.Mul(found, op.Unsqueeze(weight, ints(3))), ints(2), keepdims=0)
    total = op.Cast(total, to=int(call.input(0).dtype or number))
    return reshaped(op, transposed(op, total, [0, 2, 1]), [batch, channels, *out])
