"""A network written with standard operators again: what anybody's runtime can read."""

from __future__ import annotations

import onnx_ir as ir
from tactician.layouts.twins import Twins, first_order, last_order


def standard(network: ir.Model, twins: Twins) -> ir.Model:
    """Return ``network`` with every twin as the operator that it is in another layout, between transposes; it stays as it is.

    Twins within functions, which fused nodes call, are written so too.
    """
    names = {name: (of, mark) for of, (name, mark) in twins.found.items()}
    if not any(f"{n.domain}::{n.op_type}" in names for graph in _graphs(network) for n in graph):
        return network
    copy = network.clone()
    for graph in _graphs(copy):
        for node in list(graph):
            known = names.get(f"{node.domain}::{node.op_type}")
            if known is not None:
                _replace(graph, node, known[0], known[1].moved)
                graph.opset_imports.setdefault("", copy.graph.opset_imports[""])
    return copy


def _graphs(network: ir.Model) -> list[ir.Graph | ir.Function]:
    return [network.graph, *network.functions.values()]


def _replace(graph: ir.Graph | ir.Function, node: ir.Node, of: str, moved: tuple[int, ...]) -> None:
    result = node.outputs[0]
    rank = len(result.shape or ())
    nodes: list[ir.Node] = []

    def transposed(value: ir.Value, order: tuple[int, ...], name: str) -> ir.Value:
        made = ir.node("Transpose", [value], {"perm": list(order)}, num_outputs=1, name=name)
        made.outputs[0].name = name
        nodes.append(made)
        return made.outputs[0]

    inputs = [
        transposed(v, first_order(rank), f"{result.name}_input{i}") if i in moved and v is not None else v
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
    call.outputs[0].name = f"{result.name}_first"
    nodes.append(call)
    last = transposed(call.outputs[0], last_order(rank), f"{result.name}_last")
    last.type, last.shape = result.type, result.shape
    ir.convenience.replace_nodes_and_values(graph, node, [node], nodes, [result], [last])
