"""Arithmetic, comparison and logic of whole arrays with NumPy, with broadcasting, written in place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, ClassVar

import numpy as np
from tactician.builtin_kernels.cpu.numpy_tactic import (
    FLOATS,
    INTEGERS,
    NUMBERS,
    Array,
    Kernel,
    NumpyTactic,
    decline_types,
    dtype_of,
)
from tactician.plugins.target import Device
from tactician.signature import OpSignature
from tactician.tactics.tactic import Tactic

_UNARY: dict[str, tuple[Any, tuple[str, ...]]] = {
    "Abs": (np.absolute, NUMBERS),
    "Acos": (np.arccos, FLOATS),
    "Acosh": (np.arccosh, FLOATS),
    "Asin": (np.arcsin, FLOATS),
    "Asinh": (np.arcsinh, FLOATS),
    "Atan": (np.arctan, FLOATS),
    "Atanh": (np.arctanh, FLOATS),
    "BitwiseNot": (np.invert, INTEGERS),
    "Ceil": (np.ceil, FLOATS),
    "Cos": (np.cos, FLOATS),
    "Cosh": (np.cosh, FLOATS),
    "Exp": (np.exp, FLOATS),
    "Floor": (np.floor, FLOATS),
    "IsNaN": (np.isnan, FLOATS),
    "Log": (np.log, FLOATS),
    "Neg": (np.negative, NUMBERS),
    "Not": (np.logical_not, ("bool",)),
    "Reciprocal": (np.reciprocal, FLOATS),
    "Round": (np.rint, FLOATS),
    "Sign": (np.sign, NUMBERS),
    "Sin": (np.sin, FLOATS),
    "Sinh": (np.sinh, FLOATS),
    "Sqrt": (np.sqrt, FLOATS),
    "Tan": (np.tan, FLOATS),
    "Tanh": (np.tanh, FLOATS),
}
_BINARY: dict[str, tuple[Any, tuple[str, ...]]] = {
    "Add": (np.add, NUMBERS),
    "And": (np.logical_and, ("bool",)),
    "BitwiseAnd": (np.bitwise_and, INTEGERS),
    "BitwiseOr": (np.bitwise_or, INTEGERS),
    "BitwiseXor": (np.bitwise_xor, INTEGERS),
    "Equal": (np.equal, (*NUMBERS, "bool")),
    "Greater": (np.greater, NUMBERS),
    "GreaterOrEqual": (np.greater_equal, NUMBERS),
    "Less": (np.less, NUMBERS),
    "LessOrEqual": (np.less_equal, NUMBERS),
    "Mul": (np.multiply, NUMBERS),
    "Or": (np.logical_or, ("bool",)),
    "Sub": (np.subtract, NUMBERS),
    "Xor": (np.logical_xor, ("bool",)),
}
_VARIADIC = {"Max": np.maximum, "Mean": np.add, "Min": np.minimum, "Sum": np.add}


def _names(table: Any) -> tuple[str, ...]:
    return tuple(f"ai.onnx::{name}" for name in table)


@dataclass(frozen=True)
class NumpyUnary(NumpyTactic):
    """A function of each element, by one NumPy ufunc."""

    op: ClassVar[str | tuple[str, ...]] = _names(_UNARY)

    def decline(self, signature: OpSignature, device: Device) -> str | None:
        """Decline types that the ufunc is not defined for."""
        return decline_types(signature, _UNARY[signature.op_type][1])

    def kernel(self, signature: OpSignature, device: Device) -> Kernel:
        """Return the ufunc, writing in place."""
        return _in_place(_UNARY[signature.op_type][0], 1)


@dataclass(frozen=True)
class NumpyBinary(NumpyTactic):
    """A function of pairs of elements, by NumPy, with broadcasting."""

    op: ClassVar[str | tuple[str, ...]] = _names((*_BINARY, "BitShift", "Div", "Mod", "Pow"))

    def decline(self, signature: OpSignature, device: Device) -> str | None:
        """Decline other types, and the explicit broadcasting of opsets before 7."""
        if signature.attribute("axis") is not None or signature.attribute("broadcast") is not None:
            return "broadcasting along an axis, as before opset 7, is not implemented"
        if signature.op_type == "Pow":  # integers to a negative power are an error of NumPy
            return decline_types(signature, FLOATS) or decline_types(signature, NUMBERS, (1,))
        allowed = INTEGERS[4:] if signature.op_type == "BitShift" else NUMBERS
        return decline_types(signature, _BINARY.get(signature.op_type, (None, allowed))[1], (0, 1))

    def kernel(self, signature: OpSignature, device: Device) -> Kernel:
        """Return the ufunc, writing in place, or what ONNX means where no ufunc is the same."""
        if signature.op_type in _BINARY:
            return _in_place(_BINARY[signature.op_type][0], 2)
        is_float = dtype_of(signature) in FLOATS
        match signature.op_type:
            case "BitShift":
                left = signature.attribute("direction") in ("LEFT", b"LEFT")
                return _in_place(np.left_shift if left else np.right_shift, 2)
            case "Mod":
                return _in_place(np.fmod if signature.attribute("fmod", 0) else np.mod, 2)
            case "Pow":
                return lambda inputs, outputs, _: [np.power(inputs[0], inputs[1]).astype(inputs[0].dtype)]
            case _ if is_float:
                return _in_place(np.divide, 2)
            case _:
                return lambda inputs, outputs, _: [_truncating_divide(inputs[0], inputs[1])]


@dataclass(frozen=True)
class NumpyVariadic(NumpyTactic):
    """Sum, mean, maximum or minimum of any number of arrays, one after the other in place."""

    op: ClassVar[str | tuple[str, ...]] = _names(_VARIADIC)

    def decline(self, signature: OpSignature, device: Device) -> str | None:
        """Decline types that are no numbers."""
        return decline_types(signature, NUMBERS, range(len(signature.inputs)))

    def kernel(self, signature: OpSignature, device: Device) -> Kernel:
        """Return a fold over the inputs."""
        ufunc, is_mean = _VARIADIC[signature.op_type], signature.op_type == "Mean"
        if dtype_of(signature) not in ("float32", "float64"):
            return lambda inputs, outputs, _: [_fold_wide(ufunc, inputs, is_mean)]

        def kernel(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any) -> list[Any]:
            out = outputs[0]
            if out is None:
                result = reduce(ufunc, inputs)
                return [result / len(inputs) if is_mean else result]
            first = inputs[1:] and ufunc(inputs[0], inputs[1], out=out) is out
            if not first:
                np.copyto(out, inputs[0])
            for array in inputs[2:]:
                ufunc(out, array, out=out)
            if is_mean:
                np.divide(out, len(inputs), out=out)
            return [out]

        return kernel


@dataclass(frozen=True)
class NumpyWhere(NumpyTactic):
    """Elements of one array or another by a condition."""

    op: ClassVar[str | tuple[str, ...]] = "ai.onnx::Where"

    def kernel(self, signature: OpSignature, device: Device) -> Kernel:
        """Return ``numpy.where``, or two masked copies in place."""

        def kernel(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any) -> list[Any]:
            condition, x, y = inputs
            out = outputs[0]
            if out is None:
                return [np.where(condition, x, y)]
            np.copyto(out, y)
            np.copyto(out, x, where=condition)
            return [out]

        return kernel


def _in_place(ufunc: Callable[..., Any], count: int) -> Kernel:
    def kernel(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any) -> list[Any]:
        return [ufunc(*inputs[:count], out=outputs[0])]

    return kernel


def _truncating_divide(x: Array, y: Array) -> Array:
    """Return the quotient of integers rounded towards zero, as C and ONNX do; a divisor of 0 gives 0."""
    quotient = np.floor_divide(x, y)
    if x.dtype.kind == "u":
        return np.asarray(quotient)
    inexact = np.multiply(quotient, y) != x
    return np.asarray(quotient + (inexact & ((x < 0) != (y < 0)) & (y != 0)).astype(x.dtype))


def _fold_wide(ufunc: Callable[..., Any], inputs: Sequence[Array], is_mean: bool) -> Array:
    arrays = [a.astype(np.float32) if a.dtype.kind in "fV" else a for a in inputs]
    result = reduce(ufunc, arrays)
    return np.asarray(result / len(arrays) if is_mean else result)


TACTICS: list[type[Tactic]] = [NumpyUnary, NumpyBinary, NumpyVariadic, NumpyWhere]
