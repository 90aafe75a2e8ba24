"""Norms and normalizations over windows: averages of powers."""

from __future__ import annotations

import math

import onnx
import onnx_ir as ir
from tactician.decompositions.call import Call, require, reshaped
from tactician.passes.writer import Writer

NARROW = ("float16", "bfloat16")
"""Types in which squares overflow or lose too much: powers are summed in float32."""


def lp_pool(op: Writer, call: Call) -> ir.Value:
    """Write LpPool as the root of an average of powers, times the number of elements of a window."""
    require(not call.attribute("ceil_mode", 0), "windows that reach beyond the padding have fewer elements")
    p, kernel = int(call.attribute("p", 2)), call.attribute("kernel_shape")
    require(isinstance(kernel, tuple) and p > 0, "kernel_shape is absent")
    names = ("auto_pad", "dilations", "kernel_shape", "pads", "strides")
    attributes = {name: call.attribute(name) for name in names if call.attribute(name) is not None}
    size = op.Abs(_wide(op, call))
    powers = size if p == 1 else op.Mul(size, size) if p == 2 else op.Pow(size, float(p))
    sums = op.Mul(op.AveragePool(powers, count_include_pad=1, **attributes), float(math.prod(kernel)))
    return _narrow(op, call, sums if p == 1 else op.Sqrt(sums) if p == 2 else op.Pow(sums, 1.0 / p))


def local_response_normalization(op: Writer, call: Call) -> ir.Value:
    """Write LRN with an average of squares over neighbouring channels."""
    batch, channels, *pixels = call.type().dims
    size = int(call.attribute("size"))
    x = _wide(op, call)
    planes = reshaped(op, op.Mul(x, x), [batch, 1, channels, math.prod(pixels)])
    pads = [(size - 1) // 2, 0, size // 2, 0]
    mean = op.AveragePool(planes, kernel_shape=[size, 1], pads=pads, count_include_pad=1)
    mean = reshaped(op, mean, call.type().dims)
    total = op.Add(op.Mul(mean, float(call.attribute("alpha", 1e-4))), float(call.attribute("bias", 1.0)))
    return _narrow(op, call, op.Div(x, op.Pow(total, float(call.attribute("beta", 0.75)))))


def _wide(op: Writer, call: Call) -> ir.Value:
    if call.type().dtype not in NARROW:
        return call.input(0)
    value: ir.Value = op.Cast(call.input(0), to=onnx.TensorProto.FLOAT)
    return value


def _narrow(op: Writer, call: Call, value: ir.Value) -> ir.Value:
    if call.type().dtype not in NARROW:
        return value
    cast: ir.Value = op.Cast(value, to=int(call.input(0).dtype or onnx.TensorProto.FLOAT))
    return cast
