"""Activation functions with NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from tactician.builtin_kernels.cpu.numpy_tactic import (
    FLOATS,
    INTEGERS,
    NARROW,
    NUMBERS,
    Array,
    Kernel,
    NumpyTactic,
    decline_types,
    dtype_of,
    wide,
)
from tactician.plugins.target import Device
from tactician.signature import OpSignature
from tactician.tactics.tactic import Tactic

Function = Callable[..., Any]
"""``function(x, out, **attributes)``: computes into ``out``, or into a new array for None."""


def relu(x: Array, out: Array | None) -> Array:
    """Return max(x, 0)."""
    return np.asarray(np.maximum(x, x.dtype.type(0), out=out))


def leaky_relu(x: Array, out: Array | None, alpha: float = 0.01) -> Array:
    """Return x, or alpha x where x is negative."""
    result = np.multiply(x, x.dtype.type(alpha), out=out)
    np.copyto(result, x, where=x >= 0)
    return np.asarray(result)


def sigmoid(x: Array, out: Array | None) -> Array:
    """Return 1 / (1 + exp(-x)); where exp overflows, the quotient is the right 0."""
    result = np.negative(x, out=out)
    np.exp(result, out=result)
    np.add(result, 1, out=result)
    return np.asarray(np.reciprocal(result, out=result))


def hard_sigmoid(x: Array, out: Array | None, alpha: float = 0.2, beta: float = 0.5) -> Array:
    """Return alpha x + beta, clipped to 0 and 1."""
    result = np.multiply(x, x.dtype.type(alpha), out=out)
    np.add(result, x.dtype.type(beta), out=result)
    return np.asarray(np.clip(result, 0, 1, out=result))


def hard_swish(x: Array, out: Array | None) -> Array:
    """Return x hard_sigmoid(x, 1/6, 1/2)."""
    result = hard_sigmoid(x, out, 1 / 6, 0.5)
    return np.asarray(np.multiply(result, x, out=result))


def swish(x: Array, out: Array | None, alpha: float = 1.0) -> Array:
    """Return x sigmoid(alpha x)."""
    result = sigmoid(np.multiply(x, x.dtype.type(alpha)), out)
    return np.asarray(np.multiply(result, x, out=result))


def elu(x: Array, out: Array | None, alpha: float = 1.0) -> Array:
    """Return x, or alpha (exp(x) - 1) where x is negative."""
    result = np.expm1(x, out=out)
    np.multiply(result, x.dtype.type(alpha), out=result)
    np.copyto(result, x, where=x >= 0)
    return np.asarray(result)


def selu(
    x: Array,
    out: Array | None,
    alpha: float = 1.67326319217681884765625,
    gamma: float = 1.05070102214813232421875,
) -> Array:
    """Return gamma elu(x, alpha)."""
    result = elu(x, out, alpha)
    return np.asarray(np.multiply(result, x.dtype.type(gamma), out=result))


def celu(x: Array, out: Array | None, alpha: float = 1.0) -> Array:
    """Return x, or alpha (exp(x / alpha) - 1) where x is negative."""
    result = np.expm1(x / x.dtype.type(alpha), out=out)
    np.multiply(result, x.dtype.type(alpha), out=result)
    np.copyto(result, x, where=x >= 0)
    return np.asarray(result)


def softplus(x: Array, out: Array | None) -> Array:
    """Return log(1 + exp(x))."""
    return np.asarray(np.logaddexp(x, x.dtype.type(0), out=out))


def softsign(x: Array, out: Array | None) -> Array:
    """Return x / (1 + |x|)."""
    result = np.absolute(x, out=out)
    np.add(result, 1, out=result)
    return np.asarray(np.divide(x, result, out=result))


def mish(x: Array, out: Array | None) -> Array:
    """Return x tanh(softplus(x))."""
    result = softplus(x, out)
    np.tanh(result, out=result)
    return np.asarray(np.multiply(result, x, out=result))


def thresholded_relu(x: Array, out: Array | None, alpha: float = 1.0) -> Array:
    """Return x, or 0 where x is not above alpha."""
    return np.asarray(np.multiply(x, x > alpha, out=out))


def erf(x: Array, out: Array | None) -> Array:
    """Return the error function of float32, right to 2e-7.

    By its power series below 1/2, where relative accuracy counts, and above by rational approximation 7.1.26
    of Abramowitz and Stegun, "Handbook of Mathematical Functions".
    """
    size = np.absolute(x)
    t = np.reciprocal(np.float32(0.3275911) * size + np.float32(1))
    tail = _polynomial(t, (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)) * t
    np.multiply(size, size, out=size)
    tail *= np.exp(-size)
    result = np.subtract(np.float32(1), tail, out=out)
    np.copysign(result, x, out=result)
    series = _polynomial(size, (-1 / 1320, 1 / 216, -1 / 42, 1 / 10, -1 / 3, 1.0))
    np.copyto(result, np.float32(2 / math.sqrt(math.pi)) * x * series, where=size < 0.25)
    return np.asarray(result)


def gelu(x: Array, out: Array | None, approximate: str = "none") -> Array:
    """Return x times the normal distribution function, with Erf or its tanh approximation."""
    if approximate == "tanh":
        inner = x * x
        inner *= x.dtype.type(0.044715)
        inner += 1
        inner *= x
        inner *= x.dtype.type(math.sqrt(2 / math.pi))
        np.tanh(inner, out=inner)
    else:
        inner = erf(x * x.dtype.type(math.sqrt(0.5)), None)
    inner += 1
    inner *= x.dtype.type(0.5)
    return np.asarray(np.multiply(inner, x, out=out))


def _polynomial(x: Array, coefficients: Sequence[float]) -> Array:
    """Return the polynomial of ``x``, highest power first, by Horner's rule."""
    result = np.full_like(x, coefficients[0])
    for c in coefficients[1:]:
        result *= x
        result += x.dtype.type(c)
    return result


_FUNCTIONS: dict[str, Function] = {
    "Celu": celu,
    "Elu": elu,
    "Erf": erf,
    "Gelu": gelu,
    "HardSigmoid": hard_sigmoid,
    "HardSwish": hard_swish,
    "LeakyRelu": leaky_relu,
    "Mish": mish,
    "Relu": relu,
    "Selu": selu,
    "Sigmoid": sigmoid,
    "Softplus": softplus,
    "Softsign": softsign,
    "Swish": swish,
    "ThresholdedRelu": thresholded_relu,
}


@dataclass(frozen=True)
class NumpyActivation(NumpyTactic):
    """An activation function by a few NumPy calls over the output's memory."""

    op: ClassVar[str | tuple[str, ...]] = tuple(f"ai.onnx::{name}" for name in _FUNCTIONS)

    def decline(self, signature: OpSignature, device: Device) -> str | None:
        """Decline other types, and double precision where the approximation of Erf is not good enough."""
        dtype = dtype_of(signature)
        uses_erf = (
            signature.op_type in ("Erf", "Gelu")
            and _attributes(signature).get("approximate", "none") == "none"
        )
        if uses_erf and dtype == "float64":
            return "the approximation of Erf is good to single precision only"
        return decline_types(signature, NUMBERS if signature.op_type == "Relu" else FLOATS)

    def kernel(self, signature: OpSignature, device: Device) -> Kernel:
        """Return the function with the node's attributes; narrow floats are computed in float32."""
        function, attributes = _FUNCTIONS[signature.op_type], _attributes(signature)
        narrow = dtype_of(signature) in NARROW
        return lambda inputs, outputs, _: [
            function(wide(inputs[0]), None if narrow else outputs[0], **attributes)
        ]


@dataclass(frozen=True)
class NumpyPRelu(NumpyTactic):
    """Leaky ReLU with a slope for each channel or element."""

    op: ClassVar[str | tuple[str, ...]] = "ai.onnx::PRelu"

    def decline(self, signature: OpSignature, device: Device) -> str | None:
        """Decline types that are no numbers."""
        return decline_types(signature, NUMBERS)

    def kernel(self, signature: OpSignature, device: Device) -> Kernel:
        """Return a product in place and a masked copy."""

        def kernel(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any) -> list[Any]:
            result = np.multiply(inputs[0], inputs[1], out=outputs[0])
            np.copyto(result, inputs[0], where=inputs[0] >= 0)
            return [result]

        return kernel


@dataclass(frozen=True)
class NumpyClip(NumpyTactic):
    """Elements limited from below, from above, or both."""

    op: ClassVar[str | tuple[str, ...]] = "ai.onnx::Clip"

    def decline(self, signature: OpSignature, device: Device) -> str | None:
        """Decline types that are no numbers."""
        return decline_types(signature, (*FLOATS, *INTEGERS))

    def kernel(self, signature: OpSignature, device: Device) -> Kernel:
        """Return maximum, then minimum, in place; limits are attributes before opset 11 and inputs since."""

        def kernel(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any) -> list[Any]:
            x, result = inputs[0], inputs[0]
            for index, name, ufunc in ((1, "min", np.maximum), (2, "max", np.minimum)):
                limit = inputs[index] if index < len(inputs) else signature.attribute(name)
                if limit is not None:
                    limit = np.asarray(limit, x.dtype).reshape(())
                    result = ufunc(result, limit, out=outputs[0])
            return [result if result is not x or outputs[0] is not None else x.copy()]

        return kernel


def _attributes(signature: OpSignature) -> dict[str, Any]:
    return {name: v.decode() if isinstance(v, bytes) else v for name, v in signature.attributes}


TACTICS: list[type[Tactic]] = [NumpyActivation, NumpyPRelu, NumpyClip]
