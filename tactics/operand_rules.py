"""What values an operator's inputs may have: indices in range, arguments in the domain, scales above zero."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
from tactician.signature import OpSignature, TensorType
from tactician.tactics.reduction import reduction_length

Array = np.ndarray[Any, Any]
Random = np.random.Generator
Rule = Callable[[OpSignature, int, Random], Array]
"""``rule(signature, index of the input, random) -> values``; the result is cast to the input's type."""


def rule_for(signature: OpSignature, index: int) -> Rule | None:
    """Return the rule for input ``index``, or None where any ordinary values will do."""
    if signature.body is not None or signature.domain not in ("ai.onnx", "ai.onnx.ml"):
        return None
    rules = RULES.get(signature.op_type, {})
    return rules.get(index, rules.get(EVERY))


def is_float(dtype: str) -> bool:
    """Return whether ``dtype`` names a real floating-point type."""
    return dtype.startswith(("float", "bfloat"))


def integer_range(dtype: str) -> tuple[int, int]:
    """Return the least and the largest number of an integer type."""
    info = ml_dtypes.iinfo(TensorType(dtype, ()).numpy_dtype)
    return int(info.min), int(info.max)


def _type(signature: OpSignature, index: int) -> TensorType:
    tensor = signature.input(index)
    if tensor is None:
        raise ValueError(f"input {index} of {signature} is absent")
    return tensor


def _castable(s: OpSignature, i: int, random: Random) -> Array:
    """Return ordinary values, as text where the input is text: it must read as a number."""
    numbers = random.integers(-9 if is_float(_output_dtype(s)) else 0, 10, _type(s, i).dims)
    if _type(s, i).dtype == "string":
        return np.asarray(numbers).astype(str).astype(object)
    return 3 * _normal(s, i, random) if is_float(_type(s, i).dtype) else np.asarray(numbers)


def _output_dtype(s: OpSignature) -> str:
    output = s.outputs[0]
    return "" if output is None else output.dtype


def _normal(s: OpSignature, i: int, random: Random) -> Array:
    return np.asarray(random.standard_normal(_type(s, i).dims))


def _full_range(s: OpSignature, i: int, random: Random) -> Array:
    """Return all values of a narrow integer type: saturation and sign errors show at its ends."""
    if is_float(_type(s, i).dtype):
        return _normal(s, i, random)
    low, high = integer_range(_type(s, i).dtype)
    return np.asarray(random.integers(max(low, -(2**15)), min(high, 2**15) + 1, _type(s, i).dims))


def _positive(s: OpSignature, i: int, random: Random) -> Array:
    return np.abs(_normal(s, i, random)) + 0.1


def _nonzero(s: OpSignature, i: int, random: Random) -> Array:
    sign = np.where(random.random(_type(s, i).dims) < 0.5, -1.0, 1.0)
    if is_float(_type(s, i).dtype):
        return sign * (np.abs(_normal(s, i, random)) + 0.5)
    magnitude = random.integers(1, 8, _type(s, i).dims)
    return magnitude if _type(s, i).dtype.startswith("u") else np.asarray(sign * magnitude)


def _uniform(low: float, high: float) -> Rule:
    return lambda s, i, random: np.asarray(random.uniform(low, high, _type(s, i).dims))


def _integers(low: int, high: int) -> Rule:
    """Return integers from ``low`` to ``high`` inclusive."""
    return lambda s, i, random: np.asarray(random.integers(low, high + 1, _type(s, i).dims))


def _fixed(value: float) -> Rule:
    return lambda s, i, _: np.full(_type(s, i).dims, value)


def _shift(s: OpSignature, i: int, random: Random) -> Array:
    return np.asarray(random.integers(0, 8 * _type(s, 0).itemsize, _type(s, i).dims))


def _base(s: OpSignature, i: int, random: Random) -> Array:
    return (
        _positive(s, i, random)
        if is_float(_type(s, i).dtype)
        else np.asarray(random.integers(0, 5, _type(s, i).dims))
    )


def _exponent(s: OpSignature, i: int, random: Random) -> Array:
    return (
        _normal(s, i, random)
        if is_float(_type(s, i).dtype)
        else np.asarray(random.integers(0, 4, _type(s, i).dims))
    )


def _small_factor(s: OpSignature, i: int, random: Random) -> Array:
    """Return factors near one, so that a long product neither vanishes nor overflows."""
    if not is_float(_type(s, i).dtype):
        return np.asarray(random.integers(1, 3, _type(s, i).dims))
    spread = 1 / math.sqrt(max(4, _type(s, i).size))
    return np.exp(spread * _normal(s, i, random)) * np.where(random.random(_type(s, i).dims) < 0.5, -1, 1)


def _small_square(s: OpSignature, i: int, random: Random) -> Array:
    """Return values whose squares add up to less than fp16's largest number."""
    return _normal(s, i, random) / math.sqrt(max(1.0, reduction_length(s) / 1e4))


def _gather_index(s: OpSignature, i: int, random: Random) -> Array:
    size = _type(s, 0).dims[s.attribute("axis", 0)]
    low = -size if s.version >= 11 else 0
    return np.asarray(random.integers(low, size, _type(s, i).dims))


def _gather_nd_index(s: OpSignature, i: int, random: Random) -> Array:
    start, shape = s.attribute("batch_dims", 0), _type(s, i).dims
    sizes = np.array(_type(s, 0).dims[start : start + shape[-1]])
    return np.asarray(random.integers(-sizes if s.version >= 12 else 0, sizes, shape))


def _scatter_index(s: OpSignature, i: int, random: Random) -> Array:
    """Return indices that differ along the axis: where two updates meet, the result is undefined."""
    axis = s.attribute("axis", 0) % len(_type(s, 0).dims)
    size, shape = _type(s, 0).dims[axis], _type(s, i).dims
    if shape[axis] > size:
        return np.asarray(random.integers(0, size, shape))
    moved = (*shape[:axis], *shape[axis + 1 :], size)
    order = random.permuted(np.broadcast_to(np.arange(size), moved), axis=-1)[..., : shape[axis]]
    return np.moveaxis(order, -1, axis)


def _scatter_nd_index(s: OpSignature, i: int, random: Random) -> Array:
    shape = _type(s, i).dims
    sizes = _type(s, 0).dims[: shape[-1]]
    count, total = math.prod(shape[:-1]), math.prod(sizes)
    flat = random.choice(total, count, replace=count > total)
    return np.stack(np.unravel_index(flat, sizes), axis=-1).reshape(shape)


def _class_index(s: OpSignature, i: int, random: Random) -> Array:
    return np.asarray(random.integers(0, _type(s, 0).dims[1], _type(s, i).dims))


def _steps(s: OpSignature, i: int, random: Random) -> Array:
    """Return lengths of sequences: from 1 to all steps, the longest at least once."""
    steps = _type(s, 0).dims[s.attribute("time_axis", 0)]
    lengths = random.integers(1, steps + 1, _type(s, i).dims)
    lengths.reshape(-1)[:1] = steps
    return np.asarray(lengths)


def _one_hot_depth(s: OpSignature, i: int, _: Random) -> Array:
    output = s.outputs[0]
    if output is None:
        raise ValueError("its output is absent")
    return np.full(_type(s, i).dims, output.dims[s.attribute("axis", -1)])


def _one_hot_index(s: OpSignature, i: int, random: Random) -> Array:
    depth = s.known(1)
    known = (
        int(depth.reshape(-1)[0]) if depth is not None else int(_one_hot_depth(s, 1, random).reshape(-1)[0])
    )
    return np.asarray(random.integers(-known, known, _type(s, i).dims))


def _output_shape(s: OpSignature, _i: int, _random: Random) -> Array:
    output = s.outputs[0]
    if output is None:
        raise ValueError("its output is absent")
    return np.array(output.dims)


def _repeats(s: OpSignature, i: int, random: Random) -> Array:
    return _output_shape(s, i, random) // np.array(_type(s, 0).dims)


def _scales(s: OpSignature, i: int, random: Random) -> Array:
    """Return scales that lead from the input's shape to the output's."""
    if _type(s, i).size == 0:
        return np.zeros(0)
    axes = list(s.attribute("axes", range(len(_type(s, 0).dims))))
    before, after = np.array(_type(s, 0).dims)[axes], _output_shape(s, i, random)[axes]
    exact = (after / before).astype(np.float32)
    # where rounding down would miss the output's size by one, a little more
    return np.where(np.floor(exact * before) == after, exact, (after + 0.01) / before)


def _sizes(s: OpSignature, i: int, random: Random) -> Array:
    axes = list(s.attribute("axes", range(len(_type(s, 0).dims))))
    return _output_shape(s, i, random)[axes]


def _top_k(s: OpSignature, i: int, random: Random) -> Array:
    return _output_shape(s, i, random)[[s.attribute("axis", -1)]]


def _boxes(s: OpSignature, i: int, random: Random) -> Array:
    """Return boxes by two corners, the first above and left of the second."""
    size = min(_type(s, 0).dims[-2:]) / float(s.attribute("spatial_scale", 1.0))
    corners = np.sort(random.uniform(0, size, (*_type(s, i).dims[:-1], 2, 2)), axis=-2)
    return np.asarray(corners.reshape(_type(s, i).dims))


def _batch_index(s: OpSignature, i: int, random: Random) -> Array:
    return np.asarray(random.integers(0, _type(s, 0).dims[0], _type(s, i).dims))


def _unpool_index(s: OpSignature, i: int, random: Random) -> Array:
    output = s.outputs[0]
    if output is None:
        raise ValueError("its output is absent")
    return random.choice(output.size, _type(s, i).size, replace=False).reshape(_type(s, i).dims)


def _position(s: OpSignature, i: int, random: Random) -> Array:
    return np.asarray(random.integers(0, _type(s, 1).dims[0], _type(s, i).dims))


def _zero_point(s: OpSignature, i: int, random: Random) -> Array:
    """Return zero points; zero where ONNX asks for it: signed weights, and 32-bit integers."""
    kind = _type(s, i).dtype
    if is_float(kind) or kind == "int32":
        return np.zeros(_type(s, i).dims)
    low, high = integer_range(kind)
    middle = (low + high + 1) // 2
    return np.asarray(random.integers(max(low, middle - 9), min(high, middle + 9) + 1, _type(s, i).dims))


def _output_scale(s: OpSignature, i: int, _: Random) -> Array:
    """Return a scale that spreads results over most of 8 bits, the operands' scales being about 0.02."""
    return np.full(_type(s, i).dims, (74 * 0.02) ** 2 * math.sqrt(reduction_length(s)) / 40)


_scale = _uniform(0.015, 0.025)
EVERY = -1

RULES: dict[str, dict[int, Rule]] = {
    "Cast": {0: _castable},
    "CastLike": {0: _castable},
    "Log": {0: _positive},
    "Sqrt": {0: _positive},
    "ReduceLogSum": {0: _positive},
    "Reciprocal": {0: _nonzero},
    "Div": {1: _nonzero},
    "Mod": {1: _nonzero},
    "Pow": {0: _base, 1: _exponent},
    "BitShift": {0: _integers(0, 127), 1: _shift},
    "Acos": {0: _uniform(-1, 1)},
    "Asin": {0: _uniform(-1, 1)},
    "Atanh": {0: _uniform(-0.95, 0.95)},
    "Acosh": {0: lambda s, i, random: 1 + _positive(s, i, random)},
    "Tan": {0: _uniform(-1.2, 1.2)},
    "ReduceProd": {0: _small_factor},
    "CumProd": {0: _small_factor},
    "ReduceSumSquare": {0: _small_square},
    "BatchNormalization": {4: _positive},
    "Clip": {
        1: lambda s, i, random: (
            -_positive(s, i, random) if not _type(s, i).dtype.startswith("u") else np.zeros(())
        ),
        2: lambda s, i, random: 1 + np.floor(4 * _positive(s, i, random)),
    },
    "Dropout": {1: _uniform(0.1, 0.6), 2: _fixed(0)},
    "Gather": {1: _gather_index},
    "GatherElements": {1: _gather_index},
    "GatherND": {1: _gather_nd_index},
    "Scatter": {1: _scatter_index},
    "ScatterElements": {1: _scatter_index},
    "ScatterND": {1: _scatter_nd_index},
    "OneHot": {0: _one_hot_index, 1: _one_hot_depth},
    "NegativeLogLikelihoodLoss": {1: _class_index, 2: _positive},
    "SoftmaxCrossEntropyLoss": {1: _class_index, 2: _positive},
    "ReverseSequence": {1: _steps},
    "LSTM": {4: _steps},
    "GRU": {4: _steps},
    "RNN": {4: _steps},
    "Reshape": {1: _output_shape},
    "Expand": {1: _output_shape},
    "ConstantOfShape": {0: _output_shape},
    "Tile": {1: _repeats},
    "Resize": {2: _scales, 3: _sizes},
    "Upsample": {1: _scales},
    "TopK": {1: _top_k},
    "MaxUnpool": {1: _unpool_index},
    "RoiAlign": {1: _boxes, 2: _batch_index},
    "GridSample": {1: _uniform(-1.1, 1.1)},
    "NonMaxSuppression": {EVERY: _uniform(0, 1)},
    "RotaryEmbedding": {3: _position},
    "QuantizeLinear": {1: _scale, 2: _zero_point},
    "DequantizeLinear": {0: _full_range, 1: _scale, 2: _zero_point},
    "ConvInteger": {0: _full_range, 1: _full_range, 2: _zero_point, 3: _zero_point},
    "MatMulInteger": {0: _full_range, 1: _full_range, 2: _zero_point, 3: _zero_point},
    "QLinearMatMul": dict(
        zip(range(8), (_full_range, _scale, _zero_point) * 2 + (_output_scale, _zero_point), strict=True)
    ),
    "QLinearConv": dict(
        zip(range(8), (_full_range, _scale, _zero_point) * 2 + (_output_scale, _zero_point), strict=True)
    )
    | {8: _integers(-500, 500)},
}

SHAPE_LIKE: dict[str, tuple[int, ...]] = {
    "Slice": (1, 2, 3, 4),
    "Pad": (1, 3),
    "Squeeze": (1,),
    "Unsqueeze": (1,),
    "Split": (1,),
    "SplitToSequence": (1,),
    "Range": (0, 1, 2),
    "CumSum": (1,),
    "CumProd": (1,),
    "Trilu": (1,),
    "AffineGrid": (1,),
    "CenterCropPad": (1,),
    "Col2Im": (1, 2),
    "DFT": (1, 2),
    "STFT": (1, 3),
    "MaxUnpool": (2,),
    "NonMaxSuppression": (2, 3, 4),
    "HannWindow": (0,),
    "HammingWindow": (0,),
    "BlackmanWindow": (0,),
    "MelWeightMatrix": (0, 1, 2, 3, 4),
    "TensorScatter": (2,),
} | dict.fromkeys(
    (
        "ReduceSum",
        "ReduceMean",
        "ReduceMax",
        "ReduceMin",
        "ReduceProd",
        "ReduceL1",
        "ReduceL2",
        "ReduceLogSum",
        "ReduceLogSumExp",
        "ReduceSumSquare",
    ),
    (1,),
)
"""Inputs that say what to compute, not on what: a value made up for them would be another operator."""

RANDOM_OPS = frozenset(
    ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli")
)
