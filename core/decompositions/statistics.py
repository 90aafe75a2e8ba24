"""Normalizations by what reductions give: norms, and the statistics of a batch in training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from tactician.decompositions.call import Call, ints, require, reshaped
from tactician.passes.writer import Writer


def lp_normalization(op: Writer, call: Call) -> ir.Value:
    """Write LpNormalization as a division by a norm; where that is 0, so is the result."""
    p, axis = int(call.attribute("p", 2)), call.axis(-1)
    require(p in (1, 2), f"there is no reduction to the norm of order {p}")
    norm = (op.ReduceL1 if p == 1 else op.ReduceL2)(call.input(0), ints(axis), keepdims=1)
    zero = np.zeros((), call.type().numpy_dtype)
    result: ir.Value = op.Where(op.Equal(norm, zero), zero, op.Div(call.input(0), norm))
    return result


def batch_normalization(op: Writer, call: Call) -> Sequence[ir.Value | None]:
    """Write BatchNormalization in training: by the statistics of the batch, which also move the running ones."""
    require(bool(call.attribute("training_mode", 0)), "is for training")
    dtypes = {call.type(i).dtype for i in range(5)}
    require(dtypes <= {"float32", "float64"} and len(dtypes) == 1, "statistics of another type")
    dims = call.type().dims
    require(len(dims) >= 2 and 0 not in dims, "there are no channels")
    others, column = [0, *range(2, len(dims))], [dims[1]] + [1] * (len(dims) - 2)
    mean = op.ReduceMean(call.input(0), ints(*others), keepdims=1)
    centred = op.Sub(call.input(0), mean)
    variance = op.ReduceMean(op.Mul(centred, centred), ints(*others), keepdims=1)
    deviation = op.Sqrt(op.Add(variance, float(call.attribute("epsilon", 1e-5))))
    scale, bias = (reshaped(op, call.input(i), column) for i in (1, 2))
    y = op.Add(op.Mul(op.Div(centred, deviation), scale), bias)
    momentum = float(call.attribute("momentum", 0.9))
    running = [
        op.Add(op.Mul(call.input(i), momentum), op.Mul(reshaped(op, new, dims[1:2]), 1 - momentum))
        for i, new in ((3, mean), (4, variance))
    ]
    return [y, *running][: len(call.signature.outputs)]
