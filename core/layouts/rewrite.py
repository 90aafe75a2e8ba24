"""Puts nodes that work with the channels innermost in the place of others, with transposes where layouts meet."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set

import numpy as np
import onnx_ir as ir
from tactician.layouts.twins import (
    REDUCTIONS,
    Twins,
    attributes_of,
    first_order,
    known_tensor,
    last_order,
    moved_constant,
    moved_type,
    reduced_axes,
)
from tactician.network import constant, tensor_type
from tactician.node_inference import data_type
from tactician.recognition.layout import Layout, static_shape
from tactician.signature import OpSignature, TensorType

AXES_ARE_INPUTS = 18
"""The opset from which on ReduceMean takes its axes as an input."""


def conversion(value: ir.Value, *, to_last: bool, version: int) -> OpSignature | None:
    """Return the Transpose that moves the channels of ``value``; None where that moves no byte."""
    kind = tensor_type(value)
    if kind is None or not kind.is_static:
        return None
    rank = len(kind.dims)
    order, back = last_order(rank), first_order(rank)
    here = Layout.contiguous(kind.dims)
    there = here.transposed(order)
    if there == Layout.contiguous(there.shape):
        return None
    moved = moved_type(kind)
    before, after, perm = (kind, moved, order) if to_last else (moved, kind, back)
    return OpSignature("ai.onnx::Transpose", version, (("perm", perm),), (before,), (after,), (None,))


def convert(network: ir.Model, twins: Twins, last: Set[ir.Node]) -> None:
    """Let the nodes ``last`` work with the channels innermost, in place; those without a twin follow."""
    rewriter = _Rewriter(network, twins)
    for node in [n for n in network.graph if n in last]:
        rewriter.replace(node)
    rewriter.finish()


class _Rewriter:
    """Keeps the value with the channels innermost for each that has one."""

    def __init__(self, network: ir.Model, twins: Twins) -> None:
        self._graph, self._twins = network.graph, twins
        self._last: dict[ir.Value, ir.Value] = {}
        self._old: list[ir.Node] = []

    def replace(self, node: ir.Node) -> None:
        """Put a node with the channels innermost before ``node``, which goes at the end."""
        result = node.outputs[0]
        rank = len(static_shape(result) or ())
        twin = self._twins.of_node(node)
        if twin is not None:
            name, mark = twin
            inputs = [self._moved(v, node, rank) if i in mark.moved else v for i, v in enumerate(node.inputs)]
            domain, _, op_type = name.rpartition("::")
            made = ir.Node(domain, op_type, inputs, node.attributes.values(), num_outputs=1, version=1)
            self._graph.opset_imports.setdefault(domain, 1)
        elif node.op_type == "GlobalAveragePool":
            made = self._reduction(node, "ReduceMean", tuple(range(1, rank - 1)), [])
        elif node.op_type in REDUCTIONS:
            order = last_order(len(static_shape(node.inputs[0]) or ()))
            axes = tuple(order.index(axis) for axis in reduced_axes(node) or ())
            made = self._reduction(node, node.op_type, axes, attributes_of(node))
        else:
            inputs = [self._moved(v, node, rank) for v in node.inputs]
            made = ir.Node("", node.op_type, inputs, attributes_of(node), num_outputs=1, version=node.version)
        made.name = node.name
        _describe(made.outputs[0], f"{result.name}_channels_last", result, moved_type if rank > 2 else _same)
        self._graph.insert_before(node, made)
        self._last[result] = made.outputs[0]
        self._old.append(node)

    def finish(self) -> None:
        """Convert back what others read, and drop the old nodes."""
        old = set(self._old)
        for node in self._old:
            result = node.outputs[0]
            if not result.is_graph_output() and all(use.node in old for use in result.uses()):
                continue
            made = self._last[result]
            rank = len(static_shape(result) or ())
            if rank < 3:
                ir.convenience.replace_nodes_and_values(self._graph, node, [], [], [result], [made])
                continue
            back = _transpose(made, first_order(rank), f"{result.name}_channels_first")
            _describe(back.outputs[0], f"{result.name}_channels_first", result, _same)
            ir.convenience.replace_nodes_and_values(
                self._graph, node, [], [back], [result], [back.outputs[0]]
            )
        for node in reversed(self._old):
            self._graph.remove(node, safe=True)

    def _moved(self, value: ir.Value | None, reader: ir.Node, rank: int) -> ir.Value | None:
        """Return ``value`` with the channels innermost; what is computed in the other layout is converted once."""
        if value is None or value in self._last:
            return None if value is None else self._last[value]
        if known_tensor(value) is not None:
            return moved_constant(value, rank, f"{value.name}_channels_last_{rank}", self._graph)
        node = _transpose(value, last_order(rank), f"{value.name}_channels_last")
        _describe(node.outputs[0], f"{value.name}_channels_last", value, moved_type)
        self._graph.insert_before(reader, node)
        self._last[value] = node.outputs[0]
        return node.outputs[0]

    def _reduction(
        self, node: ir.Node, op_type: str, axes: Sequence[int], attributes: Sequence[ir.Attr]
    ) -> ir.Node:
        source = node.inputs[0]
        inputs = [self._moved(source, node, len(static_shape(source) or ()) if source is not None else 0)]
        version = self._graph.opset_imports.get("", 0)
        if (op_type == node.op_type and "axes" in node.attributes) or version < AXES_ARE_INPUTS:
            attributes = [*attributes, ir.AttrInt64s("axes", list(axes))]
        else:
            inputs.append(constant(np.array(axes, np.int64), f"{node.name}_axes", self._graph))
        return ir.Node("", op_type, inputs, attributes, num_outputs=1)


def _same(kind: TensorType) -> TensorType:
    return kind


def _describe(value: ir.Value, name: str, like: ir.Value, change: Callable[[TensorType], TensorType]) -> None:
    """Name a value, and give it the type of another one with its dimensions changed."""
    kind = tensor_type(like)
    assert kind is not None
    made = change(kind)
    value.name, value.type, value.shape = name, ir.TensorType(data_type(made.dtype)), ir.Shape(made.dims)


def _transpose(value: ir.Value, order: tuple[int, ...], name: str) -> ir.Node:
    return ir.node("Transpose", [value], {"perm": list(order)}, num_outputs=1, name=name)
