"""Values that inputs with a meaning of their own may have: indices, arguments of narrow domains, scales."""

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


def is_float(dtype: str) -> bool:
    """Return whether ``dtype`` names a real floating-point type."""
    return dtype.startswith(("float", "bfloat"))


def integer_range(dtype: str) -> tuple[int, int]:
    """Return the least and the largest number of an integer type."""
    info = ml_dtypes.iinfo(TensorType(dtype, ()).numpy_dtype)
    return int(info.min), int(info.max)


def input_type(signature: OpSignature, index: int) -> TensorType:
    """Return the type of input ``index``."""
    tensor = signature.input(index)
    if tensor is None:
        raise ValueError(f"input {index} of {signature} is absent")
    return tensor


def castable(s: OpSignature, i: int, random: Random) -> Array:
    """Return ordinary values, as text where the input is text: it must read as a number."""
    numbers = random.integers(-9 if is_float(output_dtype(s)) else 0, 10, input_type(s, i).dims)
    if input_type(s, i).dtype == "string":
        return np.asarray(numbers).astype(str).astype(object)
    return 3 * normal(s, i, random) if is_float(input_type(s, i).dtype) else np.asarray(numbers)


def output_dtype(s: OpSignature) -> str:
    """Return the first output's element type."""
    output = s.outputs[0]
    return "" if output is None else output.dtype


def normal(s: OpSignature, i: int, random: Random) -> Array:
    """Return standard normal values."""
    return np.asarray(random.standard_normal(input_type(s, i).dims))


def full_range(s: OpSignature, i: int, random: Random) -> Array:
    """Return all values of a narrow integer type: saturation and sign errors show at its ends."""
    if is_float(input_type(s, i).dtype):
        return normal(s, i, random)
    low, high = integer_range(input_type(s, i).dtype)
    return np.asarray(random.integers(max(low, -(2**15)), min(high, 2**15) + 1, input_type(s, i).dims))


def positive(s: OpSignature, i: int, random: Random) -> Array:
    """Return values of 0.1 and more."""
    return np.abs(normal(s, i, random)) + 0.1


def nonzero(s: OpSignature, i: int, random: Random) -> Array:
    """Return values of either sign, away from zero."""
    sign = np.where(random.random(input_type(s, i).dims) < 0.5, -1.0, 1.0)
    if is_float(input_type(s, i).dtype):
        return sign * (np.abs(normal(s, i, random)) + 0.5)
    magnitude = random.integers(1, 8, input_type(s, i).dims)
    return magnitude if input_type(s, i).dtype.startswith("u") else np.asarray(sign * magnitude)


def uniform(low: float, high: float) -> Rule:
    """Return a rule for values between ``low`` and ``high``."""
    return lambda s, i, random: np.asarray(random.uniform(low, high, input_type(s, i).dims))


def integers(low: int, high: int) -> Rule:
    """Return integers from ``low`` to ``high`` inclusive."""
    return lambda s, i, random: np.asarray(random.integers(low, high + 1, input_type(s, i).dims))


def fixed(value: float) -> Rule:
    """Return a rule for one value everywhere."""
    return lambda s, i, _: np.full(input_type(s, i).dims, value)


def shift(s: OpSignature, i: int, random: Random) -> Array:
    """Return shifts by less than the type's bits."""
    return np.asarray(random.integers(0, 8 * input_type(s, 0).itemsize, input_type(s, i).dims))


def base(s: OpSignature, i: int, random: Random) -> Array:
    """Return bases that any exponent may be applied to: zero to a negative power is no integer."""
    if is_float(input_type(s, i).dtype):
        return positive(s, i, random)
    least = int(is_float(input_type(s, 1).dtype))
    return np.asarray(random.integers(least, 5, input_type(s, i).dims))


def exponent(s: OpSignature, i: int, random: Random) -> Array:
    """Return exponents that keep powers in range."""
    return (
        normal(s, i, random)
        if is_float(input_type(s, i).dtype)
        else np.asarray(random.integers(0, 4, input_type(s, i).dims))
    )


def small_factor(s: OpSignature, i: int, random: Random) -> Array:
    """Return factors near one, so that a long product neither vanishes nor overflows."""
    if not is_float(input_type(s, i).dtype):
        return np.asarray(random.integers(1, 3, input_type(s, i).dims))
    spread = 1 / math.sqrt(max(4, input_type(s, i).size))
    return np.exp(spread * normal(s, i, random)) * np.where(random.random(input_type(s, i).dims) < 0.5, -1, 1)


def small_square(s: OpSignature, i: int, random: Random) -> Array:
    """Return values whose squares add up to less than fp16's largest number."""
    return normal(s, i, random) / math.sqrt(max(1.0, reduction_length(s) / 1e4))


def gather_index(s: OpSignature, i: int, random: Random) -> Array:
    """Return indices along ``axis``, from the end too where the opset allows."""
    size = input_type(s, 0).dims[s.attribute("axis", 0)]
    low = -size if s.version >= 11 else 0
    return np.asarray(random.integers(low, size, input_type(s, i).dims))


def gather_nd_index(s: OpSignature, i: int, random: Random) -> Array:
    """Return index tuples within the data."""
    start, shape = s.attribute("batch_dims", 0), input_type(s, i).dims
    sizes = np.array(input_type(s, 0).dims[start : start + shape[-1]])
    return np.asarray(random.integers(-sizes if s.version >= 12 else 0, sizes, shape))


def scatter_index(s: OpSignature, i: int, random: Random) -> Array:
    """Return indices that differ along the axis: where two updates meet, the result is undefined."""
    axis = s.attribute("axis", 0) % len(input_type(s, 0).dims)
    size, shape = input_type(s, 0).dims[axis], input_type(s, i).dims
    if shape[axis] > size:
        return np.asarray(random.integers(0, size, shape))
    moved = (*shape[:axis], *shape[axis + 1 :], size)
    order = random.permuted(np.broadcast_to(np.arange(size), moved), axis=-1)[..., : shape[axis]]
    return np.moveaxis(order, -1, axis)


def scatter_nd_index(s: OpSignature, i: int, random: Random) -> Array:
    """Return index tuples that differ."""
    shape = input_type(s, i).dims
    sizes = input_type(s, 0).dims[: shape[-1]]
    count, total = math.prod(shape[:-1]), math.prod(sizes)
    flat = random.choice(total, count, replace=count > total)
    return np.stack(np.unravel_index(flat, sizes), axis=-1).reshape(shape)


def class_index(s: OpSignature, i: int, random: Random) -> Array:
    """Return class numbers."""
    return np.asarray(random.integers(0, input_type(s, 0).dims[1], input_type(s, i).dims))


def steps(s: OpSignature, i: int, random: Random) -> Array:
    """Return lengths of sequences: from 1 to all steps, the longest at least once."""
    steps = input_type(s, 0).dims[s.attribute("time_axis", 0)]
    lengths = random.integers(1, steps + 1, input_type(s, i).dims)
    lengths.reshape(-1)[:1] = steps
    return np.asarray(lengths)


def one_hot_depth(s: OpSignature, i: int, _: Random) -> Array:
    """Return the depth that the output has."""
    output = s.outputs[0]
    if output is None:
        raise ValueError("its output is absent")
    return np.full(input_type(s, i).dims, output.dims[s.attribute("axis", -1)])


def one_hot_index(s: OpSignature, i: int, random: Random) -> Array:
    """Return indices within the depth."""
    depth = s.known(1)
    known = (
        int(depth.reshape(-1)[0]) if depth is not None else int(one_hot_depth(s, 1, random).reshape(-1)[0])
    )
    return np.asarray(random.integers(-known, known, input_type(s, i).dims))


def output_shape(s: OpSignature, _i: int, _random: Random) -> Array:
    """Return the output's shape."""
    output = s.outputs[0]
    if output is None:
        raise ValueError("its output is absent")
    return np.array(output.dims)


def repeats(s: OpSignature, i: int, random: Random) -> Array:
    """Return how often the input fits into the output."""
    return np.asarray(output_shape(s, i, random) // np.array(input_type(s, 0).dims))


def scales(s: OpSignature, i: int, random: Random) -> Array:
    """Return scales that lead from the input's shape to the output's."""
    if input_type(s, i).size == 0:
        return np.zeros(0)
    axes = list(s.attribute("axes", range(len(input_type(s, 0).dims))))
    before, after = np.array(input_type(s, 0).dims)[axes], output_shape(s, i, random)[axes]
    exact = (after / before).astype(np.float32)
    # where rounding down would miss the output's size by one, a little more
    return np.where(np.floor(exact * before) == after, exact, (after + 0.01) / before)


def sizes(s: OpSignature, i: int, random: Random) -> Array:
    """Return the output's sizes along the resized axes."""
    axes = list(s.attribute("axes", range(len(input_type(s, 0).dims))))
    return output_shape(s, i, random)[axes]


def top_k(s: OpSignature, i: int, random: Random) -> Array:
    """Return the output's length along the axis."""
    return output_shape(s, i, random)[[s.attribute("axis", -1)]]


def boxes(s: OpSignature, i: int, random: Random) -> Array:
    """Return boxes by two corners, the first above and left of the second."""
    size = min(input_type(s, 0).dims[-2:]) / float(s.attribute("spatial_scale", 1.0))
    corners = np.sort(random.uniform(0, size, (*input_type(s, i).dims[:-1], 2, 2)), axis=-2)
    return np.asarray(corners.reshape(input_type(s, i).dims))


def batch_index(s: OpSignature, i: int, random: Random) -> Array:
    """Return numbers of images."""
    return np.asarray(random.integers(0, input_type(s, 0).dims[0], input_type(s, i).dims))


def unpool_index(s: OpSignature, i: int, random: Random) -> Array:
    """Return different places in the output."""
    output = s.outputs[0]
    if output is None:
        raise ValueError("its output is absent")
    return random.choice(output.size, input_type(s, i).size, replace=False).reshape(input_type(s, i).dims)


def position(s: OpSignature, i: int, random: Random) -> Array:
    """Return rows of the cache of sines."""
    return np.asarray(random.integers(0, input_type(s, 1).dims[0], input_type(s, i).dims))


def zero_point(s: OpSignature, i: int, random: Random) -> Array:
    """Return zero points; zero where ONNX asks for it: signed weights, and 32-bit integers."""
    kind = input_type(s, i).dtype
    if is_float(kind) or kind == "int32":
        return np.zeros(input_type(s, i).dims)
    low, high = integer_range(kind)
    middle = (low + high + 1) // 2
    return np.asarray(random.integers(max(low, middle - 9), min(high, middle + 9) + 1, input_type(s, i).dims))


def output_scale(s: OpSignature, i: int, _: Random) -> Array:
    """Return a scale that spreads results over most of 8 bits, the operands' scales being about 0.02."""
    return np.full(input_type(s, i).dims, (74 * 0.02) ** 2 * math.sqrt(reduction_length(s)) / 40)


scale = uniform(0.015, 0.025)
