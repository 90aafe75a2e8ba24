"""How many terms the longest sum of an operator has: what its rounding errors grow with."""

from __future__ import annotations

import math
from collections.abc import Callable

from tactician.signature import OpSignature, TensorType


def reduction_length(signature: OpSignature) -> int:
    """Return the number of terms of the operator's longest sum; for fused and custom ones, an estimate."""
    if signature.parts:
        return max(reduction_length(part.signature) for part in signature.parts)
    rule = None if signature.body is not None else _LENGTHS.get(signature.op_type)
    try:
        if rule is not None:
            return max(1, rule(signature))
        standard = signature.domain in ("ai.onnx", "ai.onnx.ml") and signature.body is None
        return 1 if standard else max([1, *(_inner_size(t) for t in signature.inputs)])
    except (ValueError, IndexError, TypeError, ZeroDivisionError):
        return 1024  # shapes are not known: the length of an ordinary layer


def _inner_size(tensor: TensorType | None) -> int:
    """Return the elements of one row of a weight or activation."""
    if tensor is None or not tensor.is_static or not tensor.rank:
        return 1
    return tensor.size // max(1, tensor.dims[0]) if tensor.rank > 1 else tensor.size


def _dims(signature: OpSignature, index: int) -> tuple[int, ...]:
    tensor = signature.input(index)
    return () if tensor is None else tensor.dims


def _reduced(signature: OpSignature) -> int:
    """Return how many elements of input 0 go into one of output 0."""
    output = signature.outputs[0]
    return math.prod(_dims(signature, 0)) // max(1, 1 if output is None else output.size)


def _axis(default: int) -> Callable[[OpSignature], int]:
    return lambda s: _dims(s, 0)[s.attribute("axis", default)]


def _from_axis(signature: OpSignature) -> int:
    return math.prod(_dims(signature, 0)[signature.attribute("axis", -1) :])


def _recurrent(signature: OpSignature) -> int:
    steps, _, width = _dims(signature, 0)
    return steps * (width + _dims(signature, 2)[-1])


_LENGTHS: dict[str, Callable[[OpSignature], int]] = (
    {
        "MatMul": lambda s: _dims(s, 0)[-1],
        "Gemm": lambda s: _dims(s, 0)[0 if s.attribute("transA", 0) else 1],
        "Einsum": lambda s: max(_inner_size(t) for t in s.inputs),
        "Conv": lambda s: math.prod(_dims(s, 1)[1:]),
        "DeformConv": lambda s: math.prod(_dims(s, 1)[1:]),
        "QLinearConv": lambda s: math.prod(_dims(s, 3)[1:]),
        "QLinearMatMul": lambda s: _dims(s, 0)[-1],
        "ConvTranspose": lambda s: math.prod(_dims(s, 1)) // _dims(s, 1)[1],
        "AveragePool": lambda s: math.prod(s.attribute("kernel_shape", ())),
        "LpPool": lambda s: math.prod(s.attribute("kernel_shape", ())),
        "LRN": lambda s: int(s.attribute("size", 5)),
        "Softmax": _from_axis,
        "LogSoftmax": _from_axis,
        "Hardmax": _axis(-1),
        "LpNormalization": _axis(-1),
        "LayerNormalization": _from_axis,
        "RMSNormalization": _from_axis,
        "GroupNormalization": lambda s: math.prod(_dims(s, 0)[1:]),
        "InstanceNormalization": lambda s: math.prod(_dims(s, 0)[2:]),
        "MeanVarianceNormalization": lambda s: math.prod(_dims(s, 0)),
        "BatchNormalization": lambda _: 4,
        "CumSum": lambda s: max(_dims(s, 0)),
        "CumProd": lambda s: max(_dims(s, 0)) ** 2,
        "ReduceProd": lambda s: _reduced(s) ** 2,  # relative errors of factors add up, and none cancel
        "Attention": lambda s: max(_dims(s, 0)[-1], *_dims(s, 1)[-2:]),
        "LSTM": _recurrent,
        "GRU": _recurrent,
        "RNN": _recurrent,
        "Resize": lambda _: 16,
        "Upsample": lambda _: 16,
        "GridSample": lambda _: 16,
        "RoiAlign": lambda _: 64,
        "DFT": lambda s: max(_dims(s, 0)),
        "STFT": lambda s: max(_dims(s, 0)),
        "Det": lambda s: _dims(s, 0)[-1] ** 2,
        "ScatterElements": lambda s: max(_dims(s, 1)),
        "SoftmaxCrossEntropyLoss": lambda s: math.prod(_dims(s, 0)),
        "NegativeLogLikelihoodLoss": lambda s: math.prod(_dims(s, 0)),
        "GlobalAveragePool": _reduced,
        "GlobalLpPool": _reduced,
        "Sum": lambda s: len(s.inputs),
        "Mean": lambda s: len(s.inputs),
    }
    | dict.fromkeys(
        (
            "ReduceSum",
            "ReduceMean",
            "ReduceL1",
            "ReduceL2",
            "ReduceLogSum",
            "ReduceLogSumExp",
            "ReduceSumSquare",
        ),
        _reduced,
    )
)
