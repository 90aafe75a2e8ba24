"""Constant nodes become initializers, so that passes and tactics meet constants in one form only."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common


class LiftConstants(ir.passes.InPlacePass):
    """Turn Constant nodes into initializers of their graph, those that compute outputs of the graph too."""

    name = "lift_constants"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run on ``model`` in place."""
        lifted = common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        outputs = [n for n in model.graph if _is_constant(n) and n.outputs[0].is_graph_output()]
        for node in outputs:
            make_initializer(node.outputs[0], node.attributes["value"].as_tensor())
            model.graph.remove(node, safe=True)
        return ir.passes.PassResult(model, modified=bool(lifted.modified or outputs))


def make_initializer(value: ir.Value, tensor: ir.TensorProtocol) -> ir.Value:
    """Let an initializer that holds ``tensor`` take the place of ``value``, which a node computes, and its name."""
    graph = value.graph
    if not isinstance(graph, ir.Graph):
        raise ValueError(f"'{value.name}' is a function's value; functions have no initializers")
    name, value.name = value.name, f"{value.name}_replaced"
    constant = ir.Value(
        name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape), const_value=tensor
    )
    for i, output in enumerate(graph.outputs):
        if output is value:
            graph.outputs[i] = constant
    value.replace_all_uses_with(constant)
    graph.register_initializer(constant)
    return constant


def _is_constant(node: ir.Node) -> bool:
    return node.op_type == "Constant" and node.domain == "" and list(node.attributes) == ["value"]
