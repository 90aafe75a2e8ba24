"""Nodes that change nothing are removed: Identity, inference Dropout, casts, reshapes, pads and slices to what is there."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from tactician.network import domain_of, tensor_type


class RemoveNoOps(ir.passes.InPlacePass):
    """Let the readers of a no-op read its input.

    1. Identity; Dropout whose mask nobody reads and that is not in training mode
    2. Cast to the type that the input has
    3. Reshape, Squeeze, Unsqueeze, Flatten, Expand and Tile to the same static shape
    4. Transpose by the identity permutation
    5. Pad by nothing, Slice of all
    6. Concat, Sum, Max, Min and Mean of one input

    An output of the graph keeps its node if its input is an input, a constant or another output of the graph: it
    needs a value of its own.
    """

    name = "remove_no_ops"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run on ``model`` in place."""
        modified = False
        for node in list(model.graph):
            source = node.inputs[0] if node.inputs else None
            if source is None or not is_no_op(node) or not _can_go(node, source):
                continue
            result = node.outputs[0]
            if result.is_graph_output():
                _take_name(model.graph, source, result)
            result.replace_all_uses_with(source)
            model.graph.remove(node, safe=True)
            modified = True
        return ir.passes.PassResult(model, modified=modified)


def is_no_op(node: ir.Node) -> bool:
    """Return whether the first output of ``node`` is always its first input, and nobody reads the others."""
    if domain_of(node) != "ai.onnx" or not node.inputs or node.inputs[0] is None:
        return False
    if any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
        return False
    before, after = tensor_type(node.inputs[0]), tensor_type(node.outputs[0])
    same_shape = before is not None and before == after and before.is_static
    match node.op_type:
        case "Identity":
            return True
        case "Dropout":
            return len(node.inputs) < 3 or node.inputs[2] is None or _is_zero(node.inputs[2])
        case "Cast":
            return before is not None and after is not None and before.dtype == after.dtype
        case "Reshape" | "Squeeze" | "Unsqueeze" | "Flatten" | "Expand" | "Tile":
            return same_shape
        case "Transpose":
            return _permutation(node) == list(range(len(_permutation(node) or [0, 1])))
        case "Pad":
            return _pads_nothing(node)
        case "Slice":
            return same_shape and _steps_forward(node)
        case "Concat" | "Sum" | "Max" | "Min" | "Mean":
            return len(node.inputs) == 1
    return False


def _permutation(node: ir.Node) -> list[int] | None:
    if "perm" in node.attributes:
        return list(node.attributes["perm"].as_ints())
    source = node.inputs[0]
    rank = None if source is None or source.shape is None else len(source.shape)
    return None if rank is None else list(range(rank))[::-1]


def _pads_nothing(node: ir.Node) -> bool:
    if "pads" in node.attributes:
        return not any(node.attributes["pads"].as_ints())
    return len(node.inputs) > 1 and _is_zero(node.inputs[1])


def _steps_forward(node: ir.Node) -> bool:
    """Return whether no step of a slice is negative: one that reverses has its input's shape, too."""
    if len(node.inputs) < 5 or node.inputs[4] is None:
        return True
    steps = _known(node.inputs[4])
    return steps is not None and bool((steps > 0).all())


def _is_zero(value: ir.Value | None) -> bool:
    array = _known(value)
    return array is not None and not array.any()


def _known(value: ir.Value | None) -> np.ndarray[Any, Any] | None:
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    return np.asarray(value.const_value.numpy())


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
    name, result.name = result.name, f"{result.name}/removed"
    source.name = name
    if source.shape is None:
        source.shape = result.shape
    if source.type is None:
        source.type = result.type
