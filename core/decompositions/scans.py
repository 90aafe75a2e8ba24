"""Cumulative sums and products: over an axis that is known only at run time, and products in doubling steps."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from tactician.decompositions.call import Call, ints, require
from tactician.passes.writer import Writer

MOST_AXES = 3
"""Dimensions up to which a scan is computed over all of them, for one to be chosen."""


def scan(op: Writer, call: Call) -> ir.Value:
    """Write a scan over a known axis; of an axis that is not known, those over all of them, and a choice."""
    rank, known = len(call.type().dims), call.known(1)
    require(rank > 0 and 0 not in call.type().dims, "there is nothing to scan")
    along = _product if call.signature.op_type == "CumProd" else _sum
    if known is not None:
        require(along is _product, "the sum's axis is known")
        return along(op, call, int(known.reshape(-1)[0]) % rank)
    require(rank <= MOST_AXES, f"{rank} dimensions that the axis may be")
    result = along(op, call, rank - 1)
    kind = call.type(1).numpy_dtype
    for axis in range(rank - 1):
        front, back = (op.Equal(call.input(1), np.array(n, kind)) for n in (axis, axis - rank))
        result = op.Where(op.Or(front, back), along(op, call, axis), result)
    return result


def _sum(op: Writer, call: Call, axis: int) -> ir.Value:
    flags = {name: int(call.attribute(name, 0)) for name in ("exclusive", "reverse")}
    total: ir.Value = op.CumSum(call.input(0), np.array(axis, np.int64), **flags)
    return total


def _product(op: Writer, call: Call, axis: int) -> ir.Value:
    """Return the products of all before: each step multiplies with what stands twice as far away as in the last one."""
    value, size = call.input(0), call.type().dims[axis]
    if call.attribute("exclusive", 0):
        value = _shifted(op, call, value, axis, 1)
    distance = 1
    while distance < size:
        value = op.Mul(value, _shifted(op, call, value, axis, distance))
        distance *= 2
    return value


def _shifted(op: Writer, call: Call, value: ir.Value, axis: int, distance: int) -> ir.Value:
    """Return ``value`` moved along ``axis``, with ones in the place of what came from outside."""
    rank, size = len(call.type().dims), call.type().dims[axis]
    backward = bool(call.attribute("reverse", 0))
    pads = [0] * (2 * rank)
    pads[axis + (rank if backward else 0)] = distance
    one = np.ones((), call.type().numpy_dtype)
    start = distance if backward else 0
    moved: ir.Value = op.Slice(op.Pad(value, ints(*pads), one), ints(start), ints(start + size), ints(axis))
    return moved
