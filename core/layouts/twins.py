"""What a node is with the channels innermost: an operator of its own, or itself with its constants and axes moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from tactician.network import constant, domain_of, signature_of, tensor_type
from tactician.passes.match import known
from tactician.plugins.op import ChannelsLast
from tactician.recognition.layout import static_shape
from tactician.signature import Constant, OpSignature, TensorType, make_constant

ELEMENTWISE = frozenset({
    "Abs", "Add", "And", "Cast", "Ceil", "Celu", "Clip", "Div", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid",
    "HardSwish", "LeakyRelu", "Log", "Max", "Mean", "Min", "Mish", "Mul", "Neg", "Not", "Or", "Pow", "PRelu",
    "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Swish",
    "Tanh", "ThresholdedRelu", "Where", "Xor",
})  # fmt: skip
"""Operators that do the same to every element, whatever its place."""


@dataclass(frozen=True)
class Twins:
    """Operators with a twin for channels that lie innermost, by name: the twin's name, and what it says of itself."""

    found: Mapping[str, tuple[str, ChannelsLast]]

    @classmethod
    def of(cls, ops: Mapping[str, Any]) -> Twins:
        """Return those of the plugins' operators, by name."""
        marked = ((name, op.channels_last) for name, op in ops.items() if op.channels_last is not None)
        return cls({mark.of: (name, mark) for name, mark in marked})

    def of_node(self, node: ir.Node) -> tuple[str, ChannelsLast] | None:
        """Return the twin of the operator of ``node`` by name, and what it says of itself."""
        return self.found.get(f"{domain_of(node)}::{node.op_type}")

    def signature(self, node: ir.Node, network: ir.Model) -> OpSignature | None:
        """Return the call of the twin of ``node``, where it has one and its operands are fit for it."""
        twin = self.of_node(node)
        if twin is None or not _is_fit(node, twin[1]):
            return None
        name, mark = twin
        plain = signature_of(node, network)
        inputs = tuple(
            moved_type(t) if i in mark.moved and t is not None else t for i, t in enumerate(plain.inputs)
        )
        outputs = tuple(None if t is None else moved_type(t) for t in plain.outputs)
        constants = tuple(
            _moved_value(v) if i in mark.moved and c is not None and c.value is not None else c
            for i, (v, c) in enumerate(zip(node.inputs, plain.constants, strict=False))
        )
        return replace(plain, op=name, version=1, inputs=inputs, outputs=outputs, constants=constants)


REDUCTIONS = frozenset(
    f"Reduce{name}"
    for name in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
)


def follows(node: ir.Node) -> bool:
    """Return whether a node can do what it does in either layout."""
    if domain_of(node) != "ai.onnx" or len(node.outputs) != 1:
        return False
    if node.op_type in REDUCTIONS:
        return _reduces_pixels(node)
    shape = static_shape(node.outputs[0])
    if shape is None or len(shape) < 3:
        return False
    if node.op_type == "GlobalAveragePool":
        return True
    if node.op_type not in ELEMENTWISE and node.op_type != "Concat":
        return False
    data = operands(node)
    values = [v for v in node.inputs if v is not None]
    shapes = [static_shape(v) for v in values]
    return bool(data) and all(
        s is not None and (len(s) == len(shape) if v in data else len(s) <= len(shape))
        for v, s in zip(values, shapes, strict=True)
    )


def reduced_axes(node: ir.Node) -> tuple[int, ...] | None:
    """Return the axes of a reduction, none of them negative, where they are known and some."""
    shape = None if node.inputs[0] is None else static_shape(node.inputs[0])
    attribute = node.attributes.get("axes")
    given = node.inputs[1] if len(node.inputs) > 1 else None
    array = known(given) if given is not None else None
    axes = (
        attribute.as_ints() if attribute is not None else () if array is None else array.reshape(-1).tolist()
    )
    return tuple(int(a) % len(shape) for a in axes) if shape and axes else None


def keeps_dims(node: ir.Node) -> bool:
    """Return whether a reduction leaves a dimension of 1 for each that it reduces."""
    attribute = node.attributes.get("keepdims")
    return attribute is None or bool(attribute.as_int())


def operands(node: ir.Node) -> list[ir.Value]:
    """Return the inputs of a node that are computed, not constants."""
    return [v for v in node.inputs if v is not None and known_tensor(v) is None]


def known_tensor(value: ir.Value) -> ir.TensorProtocol | None:
    """Return the tensor of a constant, without reading it."""
    return None if value.is_graph_input() else ir.convenience.get_const_tensor(value)


def last_order(rank: int) -> tuple[int, ...]:
    """Return the permutation that moves the second dimension to the end."""
    return (0, *range(2, rank), 1)


def first_order(rank: int) -> tuple[int, ...]:
    """Return the permutation that undoes ``last_order``."""
    return (0, rank - 1, *range(1, rank - 1))


def moved_type(kind: TensorType) -> TensorType:
    """Return the type with its second dimension at the end."""
    dims = kind.dims
    return TensorType(kind.dtype, tuple(dims[i] for i in last_order(len(dims))))


def moved_constant(value: ir.Value, rank: int, name: str, graph: ir.Graph) -> ir.Value:
    """Return a constant of ``graph``, of ``rank`` dimensions once it is broadcast, with the channels innermost."""
    array = known(value)
    assert array is not None
    if array.size > 1:
        wide = array.reshape((1,) * (rank - array.ndim) + array.shape)
        array = np.ascontiguousarray(wide.transpose(last_order(rank)))
    return constant(array, name, graph)


def attributes_of(node: ir.Node) -> Sequence[ir.Attr]:
    """Return the attributes of a node that follows, with its axis moved."""
    found = []
    rank = len(static_shape(node.outputs[0]) or ())
    for attribute in node.attributes.values():
        if node.op_type == "Concat" and attribute.name == "axis":
            axis = attribute.as_int() % rank
            attribute = ir.AttrInt64("axis", last_order(rank).index(axis))
        if not (node.op_type in REDUCTIONS and attribute.name == "axes"):
            found.append(attribute)
    return found


def _reduces_pixels(node: ir.Node) -> bool:
    shape, axes = static_shape(node.inputs[0]) if node.inputs[0] is not None else None, reduced_axes(node)
    if shape is None or axes is None or len(shape) < 3:
        return False
    # without dimensions of 1, what is left must be in the same order in both layouts, and no longer have one
    return keeps_dims(node) or set(range(2, len(shape))) <= set(axes)


def _moved_value(value: ir.Value | None) -> Constant | None:
    array = None if value is None else known(value)
    return None if array is None else make_constant(array.transpose(last_order(array.ndim)))


def _is_fit(node: ir.Node, mark: ChannelsLast) -> bool:
    kinds = [None if v is None else tensor_type(v) for v in node.inputs]
    result = tensor_type(node.outputs[0])
    if result is None or not result.is_static or len(node.outputs) != 1:
        return False
    for i in mark.moved:
        kind = kinds[i] if i < len(kinds) else None
        if kind is None or not kind.is_static or len(kind.dims) < 3:
            return False
    given = [node.inputs[i] for i in mark.constant if i < len(node.inputs)]
    return all(v is None or known_tensor(v) is not None for v in given)
