"""Inputs that an operator is checked and timed on: random, within its domain, and never zeros."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from tactician.signature import OpSignature, TensorType
from tactician.tactics.operand_rules import RANDOM_OPS, SHAPE_LIKE, first_reader, rule_for
from tactician.tactics.operand_values import integer_range, is_float
from tactician.tactics.reduction import reduction_length

Array = np.ndarray[Any, Any]
Reference = Callable[[OpSignature], Callable[[Sequence[Any]], Sequence[Any]]]

REPRESENTATIVE = 8
"""What a dimension that is not known is taken for."""
MAX_TRIED_ELEMENTS = 1 << 22
"""Sizes with more input elements than this are not tried."""
HARD_MAGNITUDE = 20.0


class CannotSample(Exception):  # noqa: N818  # a state of the signature, not a failure
    """No inputs can be made up for a signature; the message says why."""


def sample_inputs(signature: OpSignature, rng: np.random.Generator) -> list[Array | None]:
    """Return random inputs for a signature whose inputs are static.

    Floats are standard normal unless the operator's domain is narrower, integers small, indices in range. A
    constant whose value the signature carries has that value.

    Raises
    ------
    CannotSample
        If an input has no static shape, says what to compute and is not known, or the operator is random.
    """
    _refuse(signature)
    return [_sample(signature, i, rng) for i in range(len(signature.inputs))]


def hard_inputs(signature: OpSignature, rng: np.random.Generator) -> list[Array | None]:
    """Return inputs with hard values: large, tiny, subnormal, equal, and negative zero, among ordinary ones.

    They are as large as sums over them stay finite. Inputs with a domain of their own are sampled as always.

    Raises
    ------
    CannotSample
        As ``sample_inputs``.
    """
    inputs = sample_inputs(signature, rng)
    for i, values in enumerate(inputs):
        tensor = signature.input(i)
        free = tensor is not None and signature.known(i) is None and rule_for(signature, i) is None
        if values is not None and tensor is not None and free and is_float(tensor.dtype):
            inputs[i] = _harden(values, reduction_length(signature), rng)
    return inputs


def representative(signature: OpSignature, reference: Reference | None = None) -> OpSignature:
    """Return ``signature`` with a number for every dimension that is symbolic or unknown.

    All get the same number. With ``reference``, numbers are tried until it runs, and the output types are
    those that it computes; without, outputs stay as they are.

    Raises
    ------
    CannotSample
        If an input has no known rank, or the reference runs with none of the numbers tried.
    """
    if all(t is None or t.is_static for t in signature.inputs) and (reference is None or signature.is_static):
        return signature
    problem = ""
    for number in _numbers(signature):
        inputs = tuple(_bind(t, number) for t in signature.inputs)
        if reference is None:
            return signature.bound(inputs, signature.outputs)
        # some inputs, such as the shape of a Reshape, are sampled to fit the outputs
        bound = signature.bound(inputs, tuple(_bind_if_possible(t, number) for t in signature.outputs))
        if sum(t.size for t in bound.inputs if t is not None) > MAX_TRIED_ELEMENTS:
            continue
        try:
            results = reference(bound)(sample_inputs(bound, np.random.default_rng(0)))
        except CannotSample:
            raise
        except Exception as error:
            problem = problem or f"{type(error).__name__}: {str(error).strip()[:200]}"
            continue
        types = tuple(map(_result_type, signature.outputs, results))
        if all(map(_agrees, signature.outputs, types)):
            return bound.bound(bound.inputs, types)
        problem = problem or f"at {number} the outputs would be {', '.join(map(str, types))}"
    raise CannotSample(
        f"its dimensions depend on data; the reference ran at no size that was tried ({problem})"
    )


def _refuse(signature: OpSignature) -> None:
    for part in signature.parts:
        _refuse(part.signature)
    if signature.op_type in RANDOM_OPS:
        raise CannotSample("its results are random, so there is no reference to hold them against")
    if signature.op_type == "Dropout" and any(np.any(v) for v in [signature.known(2)] if v is not None):
        raise CannotSample("dropout in training mode is random, so there is no reference to hold it against")
    if signature.op_type == "Loop" and signature.known(0) is None:
        raise CannotSample("a loop without a known number of turns may never end on made-up values")


def _sample(signature: OpSignature, index: int, rng: np.random.Generator) -> Array | None:
    tensor = signature.input(index)
    if tensor is None:
        return None
    if not tensor.is_static:
        raise CannotSample(f"input {index} is {tensor}, for which no values can be made up")
    known = signature.known(index)
    if known is not None:
        return np.array(known)
    reader, place = first_reader(signature, index)
    standard = reader.domain == "ai.onnx" and reader.body is None
    if standard and place in SHAPE_LIKE.get(reader.op_type, ()):
        raise CannotSample(f"input {index} says what to compute, and its value is not known")
    rule = rule_for(signature, index)
    if rule is None:
        return _plain(tensor, rng, 10 if standard else _index_limit(signature))
    try:
        return np.asarray(rule(signature, index, rng)).astype(tensor.numpy_dtype).reshape(tensor.dims)
    except (ValueError, IndexError, TypeError) as error:
        raise CannotSample(f"no legal values for input {index} can be made up: {error}") from error


def _plain(tensor: TensorType, random: np.random.Generator, limit: int = 10) -> Array:
    """Return ordinary values: standard normal floats, integers up to ``limit``, fair booleans, words."""
    shape, kind = tensor.dims, tensor.dtype
    if kind == "string":
        return random.choice(np.array(["a", "Bc", "def", "the quick", "x1"], object), shape)
    if kind == "bool":
        return random.random(shape) < 0.5
    if kind == "float8e8m0":
        return np.asarray(2.0 ** random.integers(-3, 3, shape)).astype(tensor.numpy_dtype)
    if kind.startswith("complex"):
        return np.asarray(random.standard_normal(shape) + 1j * random.standard_normal(shape)).astype(kind)
    if is_float(kind):
        values = random.standard_normal(shape, np.float64 if kind == "float64" else np.float32)
        return np.asarray(values).astype(tensor.numpy_dtype)
    low, high = integer_range(kind)
    return np.asarray(random.integers(max(low, -limit), min(high, limit) + 1, shape)).astype(
        tensor.numpy_dtype
    )


def _index_limit(signature: OpSignature) -> int:
    """Return the largest integer that is an index into every tensor of a fused or custom operator."""
    rows = [t.dims[0] for t in signature.inputs if t and t.rank and t.rank > 1 and is_float(t.dtype)]
    return max(0, min([10, *(n - 1 for n in rows)]))


def _harden(values: Array, length: int, rng: np.random.Generator) -> Array:
    """Overwrite two fifths of ``values``, a tenth each with large, tiny, equal and special ones."""
    info = ml_dtypes.finfo(values.dtype)
    large = min(HARD_MAGNITUDE, math.sqrt(0.1 * float(info.max) / length))
    kind = rng.integers(0, 10, values.size, np.uint8)
    result = values.reshape(-1).copy()
    with np.errstate(all="ignore"):
        changes: tuple[Callable[[Array], Array], ...] = (
            lambda some: np.clip(some, -2, 2) * large / 2,
            lambda some: some * 1e-3,
            lambda some: np.round(some * 2) / 2,
        )
        for number, change in enumerate(changes):
            where = np.flatnonzero(kind == number)
            result[where] = change(result[where].astype(np.float64)).astype(values.dtype)
        special = np.array([-0.0, 0.0, float(info.smallest_subnormal), -float(info.tiny)]).astype(
            values.dtype
        )
        where = np.flatnonzero(kind == 3)
        result[where] = special[rng.integers(0, 4, where.size)]
    return result.reshape(values.shape)


def _numbers(signature: OpSignature) -> Iterator[int]:
    """Yield what unknown dimensions are tried as: a small number, one, what stands elsewhere, larger ones."""
    static = {d for t in signature.inputs if t and t.shape for d in t.shape if isinstance(d, int) and d > 0}
    yield from dict.fromkeys((REPRESENTATIVE, 1, *sorted(static)[:4], 32, 224))


def _bind(tensor: TensorType | None, number: int) -> TensorType | None:
    if tensor is None or tensor.is_static:
        return tensor
    if not tensor.is_tensor or tensor.shape is None:
        raise CannotSample(f"an input is {tensor}, for which no values can be made up")
    return TensorType(tensor.dtype, tuple(d if isinstance(d, int) else number for d in tensor.shape))


def _agrees(declared: TensorType | None, computed: TensorType | None) -> bool:
    """Return whether a computed type has the numbers that the declared one fixes."""
    if declared is None or computed is None or declared.shape is None or computed.shape is None:
        return True
    return len(declared.shape) == len(computed.shape) and all(
        not isinstance(d, int) or d == c for d, c in zip(declared.shape, computed.shape, strict=True)
    )


def _bind_if_possible(tensor: TensorType | None, number: int) -> TensorType | None:
    return tensor if tensor is None or not tensor.is_tensor or tensor.shape is None else _bind(tensor, number)


def _result_type(tensor: TensorType | None, result: Any) -> TensorType | None:
    if tensor is None or not tensor.is_tensor or not isinstance(result, np.ndarray):
        return tensor
    return TensorType(tensor.dtype, result.shape)
