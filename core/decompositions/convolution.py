"""Transposed convolutions as convolutions: one that computes all phases of the stride, which then are interleaved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir
from tactician.decompositions.call import Call, ints, require, reshaped, transposed
from tactician.passes.writer import Writer


@dataclass(frozen=True)
class Axis:
    """One spatial dimension of a transposed convolution.

    The result without padding is ``y[q s + r] = sum over j of x[q - j] w[j s + r]``: for each phase ``r`` a convolution
    with every ``s``-th tap. Convolved are ``count`` positions from ``first`` on.
    """

    size: int
    out: int
    taps: int
    stride: int
    dilation: int
    begin: int

    @property
    def phase_taps(self) -> int:
        """Taps of each phase, some of which may be zeros."""
        return -(-self.taps * self.dilation // self.stride)

    @property
    def first(self) -> int:
        """The first position that is needed and that a convolution without cropping can begin with."""
        return min(self.begin // self.stride, self.phase_taps - 1)

    @property
    def count(self) -> int:
        """How many positions are computed: all that are needed, and where that is less, all that pads allow."""
        last = -(-(self.begin + self.out) // self.stride)
        return max(last, self.size) - self.first

    @property
    def pads(self) -> tuple[int, int]:
        """What is padded before and after the input."""
        return self.phase_taps - 1 - self.first, self.count + self.first - self.size


def conv_transpose(op: Writer, call: Call) -> ir.Value:
    """Write a transposed convolution as one with ``stride`` times the channels for each dimension, interleaved."""
    x, weights = call.type(), call.type(1).dims
    batch, channels = x.dims[:2]
    result = call.result().dims
    # of an output that is asked to be smaller than the input, onnx's inference gives some of the dimensions
    require(len(result) == len(x.dims) and 0 not in (*x.dims, *weights, *result), "the shape is not known")
    groups = int(call.attribute("group", 1))
    axes = _axes(call)
    phases = math.prod(axis.stride for axis in axes)
    outputs = groups * weights[1]
    operands = [call.input(0), _filters(op, call.input(1), axes, (groups, channels // groups, weights[1]))]
    if call.has(2):
        operands.append(_repeated(op, call.input(2), outputs, phases))
    pads = [axis.pads for axis in axes]
    y = op.Conv(*operands, group=groups, pads=[p[0] for p in pads] + [p[1] for p in pads])
    return _interleaved(op, y, (batch, outputs), axes)


def _axes(call: Call) -> list[Axis]:
    sizes, out, taps = call.type().dims[2:], call.result().dims[2:], call.type(1).dims[2:]
    rank = len(sizes)
    strides, dilations, more = (
        list(call.attribute(name, (default,) * rank))
        for name, default in (("strides", 1), ("dilations", 1), ("output_padding", 0))
    )
    auto = str(call.attribute("auto_pad", "NOTSET"))
    given = list(call.attribute("pads", (0,) * (2 * rank)))
    axes = []
    for i in range(rank):
        total = strides[i] * (sizes[i] - 1) + more[i] + (taps[i] - 1) * dilations[i] + 1 - out[i]
        if auto in ("SAME_UPPER", "SAME_LOWER") or call.attribute("output_shape") is not None:
            total = max(total, 0)  # of an output that is larger than what is computed, the end is zeros
            begin = total // 2 if auto == "SAME_UPPER" else total - total // 2
        else:
            begin = 0 if auto == "VALID" else given[i]
        axes.append(Axis(sizes[i], out[i], taps[i], strides[i], dilations[i], begin))
    return axes


def _filters(op: Writer, weights: ir.Value, axes: Sequence[Axis], channels: tuple[int, int, int]) -> ir.Value:
    """Return the filters of all phases: [groups x outputs x phases, inputs, taps of a phase ...], from last to first."""
    groups, inputs, outputs = channels
    rank = len(axes)
    if any(axis.dilation > 1 for axis in axes):
        apart = [n for axis in axes for n in (axis.taps, 1)]
        weights = reshaped(op, weights, [groups * inputs, outputs, *apart])
        ends = [n for axis in axes for n in (0, axis.dilation - 1)]
        weights = op.Pad(weights, ints(*[0] * (2 + 2 * rank), 0, 0, *ends))
        weights = reshaped(op, weights, [groups * inputs, outputs, *(a.taps * a.dilation for a in axes)])
    missing = [a.phase_taps * a.stride - a.taps * a.dilation for a in axes]
    if any(missing):
        weights = op.Pad(weights, ints(*[0] * (2 + rank), 0, 0, *missing))
    split = [n for axis in axes for n in (axis.phase_taps, axis.stride)]
    weights = reshaped(op, weights, [groups, inputs, outputs, *split])
    taps = [3 + 2 * i for i in range(rank)]
    weights = op.Slice(
        weights, ints(*[-1] * rank), ints(*[-(1 << 31)] * rank), ints(*taps), ints(*[-1] * rank)
    )
    weights = transposed(op, weights, [0, 2, *(t + 1 for t in taps), 1, *taps])
    phases = math.prod(axis.stride for axis in axes)
    return reshaped(op, weights, [groups * outputs * phases, inputs, *(a.phase_taps for a in axes)])


def _repeated(op: Writer, bias: ir.Value, outputs: int, phases: int) -> ir.Value:
    if phases == 1:
        return bias
    return reshaped(
        op, op.Expand(reshaped(op, bias, [outputs, 1]), ints(outputs, phases)), [outputs * phases]
    )


def _interleaved(op: Writer, y: ir.Value, outer: tuple[int, int], axes: Sequence[Axis]) -> ir.Value:
    """Return the phases, which are channels of ``y``, side by side, and of that the part that is the result."""
    rank = len(axes)
    if any(axis.stride > 1 for axis in axes):
        y = reshaped(op, y, [*outer, *(a.stride for a in axes), *(a.count for a in axes)])
        y = transposed(op, y, [0, 1, *(n for i in range(rank) for n in (2 + rank + i, 2 + i))])
        y = reshaped(op, y, [*outer, *(a.count * a.stride for a in axes)])
    starts = [a.begin - a.first * a.stride for a in axes]
    ends = [start + a.out for start, a in zip(starts, axes, strict=True)]
    cropped: ir.Value = op.Slice(y, ints(*starts), ints(*ends), ints(*range(2, 2 + rank)))
    return cropped
