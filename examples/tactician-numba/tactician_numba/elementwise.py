"""Tactics for functions of one element (Relu, Sigmoid, Gelu …) and for Add, Sub, Mul and Div."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from tactician import Device, Launch, OpSignature, Tactic

from tactician_numba.collapse import Loops, broadcast, collapse
from tactician_numba.tactic import NumbaTactic, dims_of, int64, own_device, text_attribute

UNARY = {
    "Erf": "erf",
    "Exp": "exp",
    "Gelu": "gelu",
    "HardSigmoid": "hard_sigmoid",
    "HardSwish": "hard_swish",
    "LeakyRelu": "leaky_relu",
    "Relu": "relu",
    "Sigmoid": "sigmoid",
    "Sqrt": "sqrt",
    "Tanh": "tanh",
}
"""Name of the kernel by operator."""
BINARY = {"Add": "add", "Div": "divide", "Mul": "multiply", "Sub": "subtract"}


@dataclass(frozen=True)
class Elementwise(NumbaTactic):
    """A function of each element."""

    op: ClassVar[tuple[str, ...]] = tuple(f"ai.onnx::{name}" for name in UNARY)

    def prepare(self, signature: OpSignature, device: Device) -> Launch:
        from tactician_numba import elementwise_kernels

        name = UNARY[signature.op_type]
        if text_attribute(signature, "approximate", "none") == "tanh":
            name = "gelu_tanh"
        compiled = getattr(elementwise_kernels, name).compile()
        first, second = (np.float32(value) for value in parameters(signature))
        split = own_device(device).split

        def launch(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any) -> None:
            x, y = inputs[0].flat, outputs[0].flat

            def piece(begin: int, end: int, part: int) -> None:
                compiled(x[begin:end], y[begin:end], first, second)

            split(piece, len(y), parallel=self.parallel)

        return launch


@dataclass(frozen=True)
class Clip(NumbaTactic):
    """Elements limited from below, from above, or both."""

    op: ClassVar[str] = "ai.onnx::Clip"
    float_inputs: ClassVar[tuple[int, ...]] = (0, 1, 2)

    def prepare(self, signature: OpSignature, device: Device) -> Launch:
        """Limits are attributes before opset 11, and inputs since."""
        from tactician_numba.elementwise_kernels import clip

        compiled, split = clip.compile(), own_device(device).split
        attributes = (signature.attribute("min", -math.inf), signature.attribute("max", math.inf))

        def launch(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any) -> None:
            x, y = inputs[0].flat, outputs[0].flat
            given = (*inputs[1:], None, None)
            low, high = (
                np.float32(value if tensor is None else tensor.flat[0])
                for value, tensor in zip(attributes, given, strict=False)
            )

            def piece(begin: int, end: int, part: int) -> None:
                compiled(x[begin:end], y[begin:end], low, high)

            split(piece, len(y), parallel=self.parallel)

        return launch


@dataclass(frozen=True)
class Arithmetic(NumbaTactic):
    """Add, subtract, multiply or divide, with broadcasting."""

    op: ClassVar[tuple[str, ...]] = tuple(f"ai.onnx::{name}" for name in BINARY)
    float_inputs: ClassVar[tuple[int, ...]] = (0, 1)

    def decline_call(self, signature: OpSignature) -> str | None:
        if signature.version < 7:
            return "broadcasting as before opset 7"
        return None

    def prepare(self, signature: OpSignature, device: Device) -> Launch:
        from tactician_numba import elementwise_kernels

        compiled = getattr(elementwise_kernels, BINARY[signature.op_type]).compile()
        loops, split = broadcast_loops(signature), own_device(device).split
        extents = int64(loops.extents)
        a_strides, b_strides = (int64(strides) for strides in loops.strides)

        def launch(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any) -> None:
            a, b, y = inputs[0].flat, inputs[1].flat, outputs[0].flat

            def rows(begin: int, end: int, part: int) -> None:
                compiled(a, b, y, extents, a_strides, b_strides, begin, end)

            def elements(begin: int, end: int, part: int) -> None:
                cut = slice(begin, end)
                u, v = (x[cut] if s[0] else x for x, s in zip((a, b), loops.strides, strict=True))
                compiled(u, v, y[cut], int64([end - begin]), a_strides, b_strides, 0, 1)

            if loops.rows > 1:
                split(rows, loops.rows, parallel=self.parallel)
            else:
                split(elements, len(y), parallel=self.parallel)

        return launch


def parameters(signature: OpSignature) -> tuple[float, float]:
    """Return the two parameters of a function of one element, 0 where it has none."""
    alpha, beta = signature.attribute("alpha"), signature.attribute("beta")
    match signature.op_type:
        case "HardSigmoid":
            return 0.2 if alpha is None else alpha, 0.5 if beta is None else beta
        case "HardSwish":
            return 1 / 6, 0.5
        case "LeakyRelu":
            return 0.01 if alpha is None else alpha, 0.0
        case _:
            return 0.0, 0.0


def broadcast_loops(signature: OpSignature) -> Loops:
    """Return the loops of an arithmetic call, over the output, with the strides of both operands."""
    output = signature.outputs[0]
    assert output is not None
    strides = (broadcast(dims_of(signature, i), output.dims) for i in (0, 1))
    return collapse(output.dims, *strides)


TACTICS: list[type[Tactic]] = [Elementwise, Clip, Arithmetic]
