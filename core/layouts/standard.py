"""A network written with standard operators again: what anybody's runtime can read."""

from __future__ import annotations

import onnx_ir as ir
from tactician.layouts.twins import Twins, first_order, last_order


def standard(network: ir.Model, twins: Twins) -> ir.Model:
    """Return ``network`` with every twin as the operator that it is in another layout, between transposes; it stays as it is."""
    names = {name: (of, mark) for of, (name, mark) in twins.found.items()}
    if not any(f"{node.domain}::{node.op_type}" in names for node in network.graph):
        return network
    copy = network.clone()
    for node in list(copy.graph):
        known = names.get(f"{node.domain}::{node.op_type}")
        if known is not None:
            _replace(copy, node, known[0], known[1].moved)
    return copy


def _replace(model: ir.Model, node: ir.Node, of: str, moved: tuple[int, ...]) -> None:
    result = node.outputs[0]
    rank = len(result.shape or ())
    nodes: list[ir.Node] = []

    def transposed(value: ir.Value, order: tuple[int, ...], name: str) -> ir.Value:
        made = ir.node("Transpose", [value], {"perm": list(order)}, num_outputs=1, name=name)
        made.outputs[0].name = name
        nodes.append(made)
        return made.outputs[0]

    inputs = [
        transposed(v, first_order(rank), f"{node.name}_input{i}") if i in moved and v is not None else v
        for i, v in enumerate(node.inputs)
    ]
    domain, _, op_type = of.rpartition("::")
    call = ir.Node(
        "" if domain == "ai.onnx" else domain,
        op_type,
        inputs,
        node.attributes.values(),
        num_outputs=1,
        name=node.name,
    )
    call.outputs[0].name = f"{node.name}_first"
    nodes.append(call)
    last = transposed(call.outputs[0], last_order(rank), f"{node.name}_last")
    last.type, last.shape = result.type, result.shape
    ir.convenience.replace_nodes_and_values(model.graph, node, [node], nodes, [result], [last])
