"""Operators that choose elements by their place, or one of many by its value: comparisons, and Where."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from tactician.decompositions.call import Call, ints
from tactician.passes.writer import Writer


def trilu(op: Writer, call: Call) -> ir.Value:
    """Write the triangle of a matrix as a choice between its elements and zeros; the mask is a constant if ``k`` is."""
    x = call.type()
    rows, columns = (np.arange(n, dtype=np.int64) for n in x.dims[-2:])
    start = op.Add(rows[:, None], call.input(1)) if call.has(1) else rows[:, None]
    compare = op.GreaterOrEqual if call.attribute("upper", 1) else op.LessOrEqual
    kept: ir.Value = op.Where(compare(columns, start), call.input(0), np.zeros((), x.numpy_dtype))
    return kept


def hardmax(op: Writer, call: Call) -> ir.Value:
    """Write a one at the first of the largest elements as a comparison of places with that of ArgMax."""
    x, axis = call.type(), call.axis(-1)
    places = np.arange(x.dims[axis], dtype=np.int64).reshape([-1] + [1] * (len(x.dims) - axis - 1))
    is_largest = op.Equal(op.ArgMax(call.input(0), axis=axis, keepdims=1), places)
    one: ir.Value = op.Cast(is_largest, to=int(call.input(0).dtype or 1))
    return one


def one_hot(op: Writer, call: Call) -> ir.Value:
    """Write OneHot as a comparison with places; the depth is that of the result."""
    indices, result = call.type(), call.result()
    axis = call.axis(-1, len(result.dims))
    depth = result.dims[axis]
    places = np.arange(depth, dtype=indices.numpy_dtype).reshape([-1] + [1] * (len(result.dims) - axis - 1))
    wanted = op.Unsqueeze(call.input(0), ints(axis))
    wanted = op.Where(op.Less(wanted, 0), op.Add(wanted, depth), wanted)
    off, on = op.Split(call.input(2), ints(1, 1), axis=0, _outputs=2)
    chosen: ir.Value = op.Where(op.Equal(wanted, places), on, off)
    return chosen
