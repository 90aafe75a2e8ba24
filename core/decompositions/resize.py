"""Resize as a gather of the elements around each place, and a sum of these with their weights, dimension by dimension.

Places and weights are written as nodes: they are folded where the scales are constants.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from tactician.decompositions.call import FLOATS, Call, ints, require, reshaped, shape_of, zero_of
from tactician.passes.writer import Writer

CROP = "tf_crop_and_resize"
WIDE = onnx.TensorProto.DOUBLE


@dataclass(frozen=True)
class Axis:
    """How one dimension is resized.

    Parameters
    ----------
    number
        Which one it is.
    size, out
        Elements before and after.
    scale
        What the call gives for ``out / size``, which may have been rounded: one float64.
    crop
        Where it begins and ends, for ``tf_crop_and_resize``.
    """

    number: int
    size: int
    out: int
    scale: ir.Value
    crop: tuple[ir.Value, ir.Value] | None

    def sources(self, op: Writer, mode: str) -> ir.Value:
        """Return where each element of the result lies between those of the input: [out]."""
        places, length = np.arange(self.out, dtype=np.float64), op.Mul(self.scale, float(self.size))
        is_one = op.Equal(length, 1.0)
        found: ir.Value = op.Sub(op.Div(places + 0.5, self.scale), 0.5)
        match mode:
            case "align_corners":
                along = op.Div(places * (self.size - 1), op.Sub(length, 1.0))
                found = op.Where(is_one, np.zeros(self.out), along)
            case "asymmetric":
                found = op.Div(places, self.scale)
            case "tf_crop_and_resize" if self.crop is not None:
                begin, end = self.crop
                extent = op.Mul(op.Sub(end, begin), self.size - 1.0)
                along = op.Div(op.Mul(extent, places), op.Sub(length, 1.0))
                middle = op.Add(np.zeros(self.out), op.Div(extent, 2.0))
                found = op.Add(op.Mul(begin, self.size - 1.0), op.Where(is_one, middle, along))
            case "pytorch_half_pixel":
                found = op.Where(is_one, np.full(self.out, -0.5), found)
            case "half_pixel_symmetric":
                shift = op.Mul(op.Sub(1.0, op.Div(float(self.out), length)), self.size / 2)
                found = op.Add(found, shift)
        return found


def resize(op: Writer, call: Call) -> ir.Value:
    """Write an interpolation dimension by dimension, those that become smaller first: there is less to compute then."""
    require(call.type().dtype in FLOATS, f"elements of type {call.type().dtype} are not interpolated")
    require(0 not in (*call.type().dims, *call.result().dims), "there is nothing to resize")
    require(str(call.attribute("mode", "nearest")) in ("nearest", "linear", "cubic"), "the mode is unknown")
    value = call.input(0)
    for axis in sorted(_axes(op, call), key=lambda axis: axis.out / axis.size):
        value = _resized(op, call, value, axis)
    return value


def _axes(op: Writer, call: Call) -> list[Axis]:
    """Return the dimensions in which anything changes."""
    before, after = call.type().dims, call.result().dims
    chosen = [int(a) % len(before) for a in call.attribute("axes", range(len(before)))]
    crops: list[ir.Value] = []
    if call.attribute("coordinate_transformation_mode") == CROP:
        crops = _parts(op, op.Cast(call.input(1), to=WIDE), 2 * len(chosen))
    axes = []
    for i, (number, scale) in enumerate(zip(chosen, _scales(op, call, chosen), strict=True)):
        crop = (crops[i], crops[i + len(chosen)]) if crops else None
        if crop or before[number] != after[number] or not _is_one(call, i):
            axes.append(Axis(number, before[number], after[number], scale, crop))
    return axes


def _scales(op: Writer, call: Call, chosen: list[int]) -> list[ir.Value]:
    """Return the scale of each chosen dimension: one float64."""
    before, after = call.type().dims, call.result().dims
    policy = str(call.attribute("keep_aspect_ratio_policy", "stretch"))
    if call.has(2) and call.type(2).size:
        return _parts(op, op.Cast(call.input(2), to=WIDE), len(chosen))
    if policy == "stretch":
        return [op.Identity(np.array([after[n] / before[n]])) for n in chosen]
    asked = op.Div(op.Cast(call.input(3), to=WIDE), np.array([float(before[n]) for n in chosen]))
    common = (op.ReduceMin if policy == "not_larger" else op.ReduceMax)(asked, ints(0), keepdims=1)
    return [common] * len(chosen)


def _is_one(call: Call, index: int) -> bool:
    """Return whether a dimension that keeps its size is known to keep its scale, too."""
    if call.has(2) and call.type(2).size:
        scales = call.known(2)
        return scales is not None and math.isclose(float(scales[index]), 1)
    return str(call.attribute("keep_aspect_ratio_policy", "stretch")) == "stretch"


def _parts(op: Writer, value: ir.Value, count: int) -> list[ir.Value]:
    return [value] if count == 1 else list(op.Split(value, ints(*[1] * count), axis=0, _outputs=count))


def _resized(op: Writer, call: Call, value: ir.Value, axis: Axis) -> ir.Value:
    """Return ``value`` resized along one dimension."""
    shape, kind = list(shape_of(value)), call.type().numpy_dtype
    outer, inner = math.prod(shape[: axis.number]), math.prod(shape[axis.number + 1 :])
    shape[axis.number] = axis.out
    sources = axis.sources(op, str(call.attribute("coordinate_transformation_mode", "half_pixel")))
    value = reshaped(op, value, [outer, axis.size, inner])
    made: ir.Value
    if call.attribute("mode", "nearest") == "nearest":
        made = op.Gather(value, _index(op, _nearest(op, sources, call), axis), axis=1)
    else:
        places, weights = _taps(op, sources, axis, call)
        taps = shape_of(places)[1]
        found = op.Gather(value, reshaped(op, _index(op, places, axis), [axis.out * taps]), axis=1)
        found = reshaped(op, found, [outer, axis.out, taps, inner])
        weights = op.Cast(reshaped(op, weights, [axis.out, taps, 1]), to=int(call.input(0).dtype or WIDE))
        made = op.ReduceSum(op.Mul(found, weights), ints(2), keepdims=0)
    if axis.crop is not None:
        outside = op.Or(op.Less(sources, 0.0), op.Greater(sources, axis.size - 1.0))
        filling = np.array(call.attribute("extrapolation_value", 0.0), kind)
        made = op.Where(reshaped(op, outside, [axis.out, 1]), filling, made)
    return reshaped(op, made, shape)


def _index(op: Writer, places: ir.Value, axis: Axis) -> ir.Value:
    """Return places as indices: beyond the edges the outermost elements repeat."""
    index: ir.Value = op.Cast(op.Max(op.Min(places, axis.size - 1.0), 0.0), to=onnx.TensorProto.INT64)
    return index


def _nearest(op: Writer, sources: ir.Value, call: Call) -> ir.Value:
    found: ir.Value
    match str(call.attribute("nearest_mode", "round_prefer_floor")):
        case "floor":
            found = op.Floor(sources)
        case "ceil":
            found = op.Ceil(sources)
        case "round_prefer_ceil":
            found = op.Floor(op.Add(sources, 0.5))
        case _:
            found = op.Ceil(op.Sub(sources, 0.5))
    return found


def _taps(op: Writer, sources: ir.Value, axis: Axis, call: Call) -> tuple[ir.Value, ir.Value]:
    """Return the places of the elements that count, and their weights: [out, taps]."""
    squeeze, reach = None, 2 if call.attribute("mode") == "cubic" else 1
    if call.attribute("antialias", 0):
        squeeze = op.Min(axis.scale, 1.0)
        # a scale that is not known yet is hardly smaller than what the sizes give, which are rounded
        reach = math.ceil(reach * max(1.0, axis.size / (axis.out - 0.5)))
    column = op.Unsqueeze(sources, ints(1))
    places = op.Add(op.Floor(column), np.arange(1 - reach, reach + 1, dtype=np.float64))
    distances = op.Abs(op.Sub(places, column))
    if squeeze is not None:
        distances = op.Mul(distances, squeeze)
    weights = _kernel(op, distances, call)
    if call.attribute("exclude_outside", 0):
        inside = op.And(op.GreaterOrEqual(places, 0.0), op.LessOrEqual(places, axis.size - 1.0))
        weights = op.Where(inside, weights, zero_of(weights))
    return places, op.Div(weights, op.ReduceSum(weights, ints(1), keepdims=1))


def _kernel(op: Writer, distances: ir.Value, call: Call) -> ir.Value:
    if call.attribute("mode") == "cubic":
        return cubic(op, distances, float(call.attribute("cubic_coeff_a", -0.75)))
    made: ir.Value = op.Max(op.Sub(1.0, distances), 0.0)
    return made


def cubic(op: Writer, distance: ir.Value, a: float) -> ir.Value:
    """Return the cubic convolution kernel at a distance."""
    square = op.Mul(distance, distance)
    near = op.Add(op.Mul(op.Sub(op.Mul(distance, a + 2), a + 3), square), 1.0)
    far = op.Mul(op.Sub(op.Mul(op.Add(op.Mul(op.Sub(distance, 5.0), distance), 8.0), distance), 4.0), a)
    beyond = op.Where(op.Less(distance, 2.0), far, zero_of(distance))
    made: ir.Value = op.Where(op.LessOrEqual(distance, 1.0), near, beyond)
    return made
