"""Slice and Pad by what is known at run time only, into a known shape: a gather along each dimension."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from tactician.decompositions.call import Call, ints, require, reshaped
from tactician.passes.writer import Writer


def slice_by_gathers(op: Writer, call: Call) -> ir.Value:
    """Write Slice with indices that begin at each start; how many there are, the shape of the result says."""
    before, after = call.type().dims, call.result().dims
    require(0 not in (*before, *after), "there is nothing to take")
    require(not all(call.known(i) is not None for i in (1, 2)), "the slice is known")
    hits = _hits(op, call, 3)
    starts = _by_dimension(op, hits, call.input(1))
    steps: Any = np.ones(len(before), np.int64)
    if call.has(4):
        more = op.Sub(op.Cast(call.input(4), to=onnx.TensorProto.INT64), np.array(1, np.int64))
        steps = op.Add(_by_dimension(op, hits, more), steps)
    starts = op.Where(op.Less(starts, np.array(0, np.int64)), op.Add(starts, ints(*before)), starts)
    value, ones = call.input(0), ints(*[1] * len(before))
    starts = op.Max(op.Min(starts, ints(*(n - 1 for n in before))), np.array(0, np.int64))
    lists = [_split(op, v, ones) for v in (starts, op.Identity(steps))]
    for axis, (start, step) in enumerate(zip(*lists, strict=True)):
        index = op.Add(start, op.Mul(step, np.arange(after[axis], dtype=np.int64)))
        value = op.Gather(value, _clipped(op, index, before[axis]), axis=axis)
    return value


def pad_by_gathers(op: Writer, call: Call) -> ir.Value:
    """Write Pad with the index that each element of the result comes from, and a choice where it comes from outside."""
    before, after = call.type().dims, call.result().dims
    require(0 not in (*before, *after), "there is nothing to pad")
    require(call.known(1) is None, "the padding is known")
    mode = str(call.attribute("mode", "constant"))
    half = call.type(1).dims[0] // 2
    hits, ones = _hits(op, call, 3), ints(*[1] * len(before))
    pads = op.Split(call.input(1), ints(half, half), axis=0, _outputs=2)
    begins, ends = (_split(op, _by_dimension(op, hits, side), ones) for side in pads)
    value: ir.Value = call.input(0)
    inside: ir.Value | None = None
    for axis, (begin, end) in enumerate(zip(begins, ends, strict=True)):
        index, own = _padded(op, mode, (begin, end), before[axis], after[axis])
        value = op.Gather(value, _clipped(op, index, before[axis]), axis=axis)
        if own is not None:
            own = reshaped(op, own, [-1, *[1] * (len(before) - axis - 1)])
            inside = own if inside is None else op.And(inside, own)
    if inside is None:
        return value
    filling = call.input(2) if call.has(2) else np.zeros((), call.type().numpy_dtype)
    result: ir.Value = op.Where(inside, value, filling)
    return result


def _padded(
    op: Writer, mode: str, pads: tuple[ir.Value, ir.Value], before: int, after: int
) -> tuple[ir.Value, ir.Value | None]:
    """Return where the elements of a padded dimension come from, and which of them do at all.

    What a negative padding cuts off is not there for the other end either.
    """
    first, cut = (op.Max(op.Neg(pad), ints(0)) for pad in pads)
    extent = op.Sub(op.Sub(ints(before), first), cut)
    index = op.Sub(op.Sub(np.arange(after, dtype=np.int64), pads[0]), first)
    inside: ir.Value | None = None
    match mode:
        case "constant":
            inside = op.And(op.GreaterOrEqual(index, ints(0)), op.Less(index, extent))
        case "wrap":
            index = op.Mod(index, op.Max(extent, ints(1)))
        case "reflect":
            period = op.Max(op.Sub(op.Mul(extent, ints(2)), ints(2)), ints(1))
            index = op.Mod(index, period)
            index = op.Min(index, op.Sub(period, index))
        case _:
            index = op.Max(op.Min(index, op.Sub(extent, ints(1))), ints(0))
    return op.Add(index, first), inside


def _hits(op: Writer, call: Call, index: int) -> ir.Value:
    """Return, of each axis that is given, a one in its dimension: [axes, dimensions]; without axes, all in order."""
    rank = len(call.type().dims)
    if not call.has(index):
        made: ir.Value = op.Identity(np.eye(rank, dtype=np.int64)[: call.type(1).dims[0]])
        return made
    axes = op.Mod(op.Cast(call.input(index), to=onnx.TensorProto.INT64), ints(rank))
    hits = op.Equal(op.Unsqueeze(axes, ints(1)), np.arange(rank, dtype=np.int64))
    made = op.Cast(hits, to=onnx.TensorProto.INT64)
    return made


def _by_dimension(op: Writer, hits: ir.Value, values: ir.Value) -> ir.Value:
    """Return what is given for axes by dimension, and 0 where nothing is given."""
    column = op.Unsqueeze(op.Cast(values, to=onnx.TensorProto.INT64), ints(1))
    made: ir.Value = op.ReduceSum(op.Mul(hits, column), ints(0), keepdims=0)
    return made


def _split(op: Writer, value: ir.Value, sizes: Any) -> list[ir.Value]:
    return [value] if len(sizes) == 1 else list(op.Split(value, sizes, axis=0, _outputs=len(sizes)))


def _clipped(op: Writer, index: ir.Value, size: int) -> ir.Value:
    """Return an index that is one, whatever is given: what lies outside is not read."""
    made: ir.Value = op.Max(op.Min(index, ints(size - 1)), ints(0))
    return made
