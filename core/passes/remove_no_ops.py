"""Nodes that change nothing are removed: Identity, inference Dropout, casts, reshapes and transposes to what is there."""

from __future__ import annotations

import onnx_ir as ir

from tactician.network import tensor_type


class RemoveNoOps(ir.passes.InPlacePass):
    """Let the readers of a no-op read its input.

    1. Identity; Dropout whose mask nobody reads and that is not in training mode
    2. Cast to the type that the input has
    3. Reshape, Squeeze, Unsqueeze, Flatten and Expand to the same static shape
    4. Transpose by the identity permutation
    5. Concat, Sum, Max, Min and Mean of one input

    An output of the graph keeps its node if its input is an input, a constant or another output of the graph: it
    needs a value of its own.
    """

    name = "remove_no_ops"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run on ``model`` in place."""
        modified = False
        for node in list(model.graph):
            source = node.inputs[0] if node.inputs else None
            if source is None or not _is_no_op(node) or not _can_go(node, source):
                continue
            result = node.outputs[0]
            if result.is_graph_output():
                _take_name(model.graph, source, result)
            result.replace_all_uses_with(source)
            model.graph.remove(node, safe=True)
            modified = True
        return ir.passes.PassResult(model, modified=modified)


def _is_no_op(node: ir.Node) -> bool:
    if node.domain not in ("", "ai.onnx"):
        return False
    source, result = node.inputs[0], node.outputs[0]
    if source is None:
        return False
    before, after = tensor_type(source), tensor_type(result)
    match node.op_type:
        case "Identity":
            return True
        case "Dropout":
            return len(node.inputs) < 3 and all(
                not v.uses() and not v.is_graph_output() for v in node.outputs[1:]
            )
        case "Cast":
            return before is not None and after is not None and before.dtype == after.dtype
        case "Reshape" | "Squeeze" | "Unsqueeze" | "Flatten" | "Expand":
            return before is not None and before == after and before.is_static
        case "Transpose":
            permutation = node.attributes.get("perm")
            return permutation is not None and list(permutation.as_ints()) == list(
                range(len(permutation.as_ints()))
            )
        case "Concat" | "Sum" | "Max" | "Min" | "Mean":
            return len(node.inputs) == 1
    return False


def _can_go(node: ir.Node, source: ir.Value) -> bool:
    if not node.outputs[0].is_graph_output():
        return True
    inner = source.producer() is not None and source.graph is node.graph
    return inner and not source.is_graph_output() and source.const_value is None


def _take_name(graph: ir.Graph, source: ir.Value, result: ir.Value) -> None:
    """Make ``source`` the graph output that ``result`` was, under the same name."""
    for i, output in enumerate(graph.outputs):
        if output is result:
            graph.outputs[i] = source
    name, result.name = result.name, f"{result.name}_removed"
    source.name = name
    if source.shape is None:
        source.shape = result.shape
    if source.type is None:
        source.type = result.type
