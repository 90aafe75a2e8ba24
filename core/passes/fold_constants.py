"""Constant folding: what depends on constants and known shapes alone is computed once, now."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
from tactician.passes.evaluate import evaluate, may_be_computed, result_bytes
from tactician.passes.lift_constants import LiftConstants, make_initializer
from tactician.passes.quiet import quiet
from tactician.shape_inference import refresh_types

logger = logging.getLogger(__name__)

LARGEST_GROWTH = 64 << 20
"""Bytes that folding may add to the network's constants: bigger ones cost more to load than to compute."""

_MOST_ROUNDS = 4
"""What one round finds out (a shape, a branch) can make more constant; few networks need a third."""


class FoldConstants(ir.passes.InPlacePass):
    """Replace nodes by the constants that they compute.

    1. Nodes whose inputs are all constant, also in subgraphs, by ONNX's reference.
    2. Shape and Size of static tensors.
    3. What follows from partly known shapes, and If with a constant condition, which its branch replaces, by
       onnxscript's folder.

    Shapes that this makes known are inferred on the way; ``ops`` are the plugins' operators by name. A result that
    would add more than ``LARGEST_GROWTH`` bytes to the network is left to run time.
    """

    name = "fold_constants"

    def __init__(self, ops: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self._ops = ops or {}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run on ``model`` in place."""
        modified = False
        budget = _Budget(LARGEST_GROWTH)
        absent = [v for node in model.graph.all_nodes() for v in node.outputs if not v.name and not v.uses()]
        for _ in range(_MOST_ROUNDS):
            changed = _settle_types(model.graph)
            changed |= _fold_graph(model.graph, model.opset_imports, budget, inner=False)
            changed |= _fold_partly(model)
            if not changed:
                break
            modified = True
            common.RemoveUnusedNodesPass()(model)
            refresh_types(model, self._ops)
        for value in absent:
            # onnxscript's folder names every value, and one with a name would be an output that somebody wants
            if not value.uses() and not value.is_graph_output():
                value.name = ""
        return ir.passes.PassResult(model, modified=modified)


@dataclass
class _Budget:
    """Bytes that may still be added."""

    left: int


def _fold_graph(graph: ir.Graph, versions: dict[str, int], budget: _Budget, *, inner: bool) -> bool:
    changed = False
    for node in list(graph):
        if inner and any(v.is_graph_output() for v in node.outputs):
            continue  # what a branch or a loop's body gives back must be computed in it
        if _fold_node(node, graph, versions, budget):
            changed = True
            continue
        for attribute in node.attributes.values():
            for subgraph in _subgraphs(attribute):
                changed |= _fold_graph(subgraph, versions, budget, inner=True)
    return changed


def _fold_node(node: ir.Node, graph: ir.Graph, versions: dict[str, int], budget: _Budget) -> bool:
    tensors = _shape_of(node) or _computed(node, versions, budget)
    if tensors is None:
        return False
    for value, tensor in zip(list(node.outputs), tensors, strict=True):
        if value.name or value.uses():
            make_initializer(value, tensor)
    graph.remove(node, safe=True)
    return True


def _settle_types(graph: ir.Graph) -> bool:
    """Turn CastLike into Cast, with all of its attributes: the type to cast to is known."""
    changed = False
    for node in ir.traversal.RecursiveGraphIterator(graph):
        like = node.inputs[1] if node.op_type == "CastLike" and node.domain == "" else None
        if like is None or like.dtype is None or node.graph is None:
            continue
        attributes = [*node.attributes.values(), ir.AttrInt64("to", int(like.dtype))]
        cast = ir.Node(
            "", "Cast", node.inputs[:1], attributes, outputs=[_twin(node.outputs[0])], name=node.name
        )
        ir.convenience.replace_nodes_and_values(node.graph, node, [node], [cast], node.outputs, cast.outputs)
        changed = True
    return changed


def _twin(value: ir.Value) -> ir.Value:
    return ir.Value(name=value.name, type=value.type, shape=value.shape)


def _shape_of(node: ir.Node) -> list[ir.TensorProtocol] | None:
    """Return what Shape or Size gives where the dimensions it reads are known."""
    source = node.inputs[0] if node.inputs else None
    if node.domain != "" or node.op_type not in ("Shape", "Size") or source is None or source.shape is None:
        return None
    dims = list(source.shape)
    if node.op_type == "Shape":
        start, end = (node.attributes.get(name) for name in ("start", "end"))
        dims = dims[None if start is None else start.as_int() : None if end is None else end.as_int()]
    known = [d for d in dims if isinstance(d, int)]
    if len(known) != len(dims):
        return None
    value = np.array(known, np.int64) if node.op_type == "Shape" else np.prod(known, dtype=np.int64)
    return [ir.tensor(np.asarray(value), name=node.outputs[0].name)]


def _computed(node: ir.Node, versions: dict[str, int], budget: _Budget) -> list[ir.TensorProtocol] | None:
    if any(v is not None and (v.const_value is None or v.is_graph_input()) for v in node.inputs):
        return None
    if not may_be_computed(node, versions):
        return None
    size = result_bytes(node, versions)
    freed = sum(v.const_value.nbytes for v in _own_constants(node) if v.const_value is not None)
    if size is None or size - freed > budget.left:
        return None
    tensors = evaluate(node, versions)
    if tensors is not None:
        budget.left -= max(0, sum(t.nbytes for t in tensors) - freed)
    return tensors


def _own_constants(node: ir.Node) -> list[ir.Value]:
    """Return the constants that only this node reads: they go when it goes."""
    return [v for v in set(node.inputs) if v is not None and len(v.uses()) == 1 and not v.is_graph_output()]


def _fold_partly(model: ir.Model) -> bool:
    """Let onnxscript's folder do what it knows of shapes, sequences and branches; constants are ours."""
    from onnxscript import optimizer

    before = model.graph.num_nodes()
    try:
        with quiet("onnxscript"):
            modified = bool(optimizer.fold_constants(model, should_fold=lambda _: False).modified)
    except Exception as error:  # it leaves what it can't do as it was, and what it has done is complete
        logger.debug("onnxscript's folder stopped: %s", error)
        modified = True
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        for value in node.outputs:
            value.const_value = None  # the folder's notes on values that stay computed
    LiftConstants()(model)
    common.NameFixPass()(model)
    return modified or model.graph.num_nodes() != before


def _subgraphs(attribute: ir.Attr) -> list[ir.Graph]:
    if attribute.type == ir.AttributeType.GRAPH:
        return [attribute.as_graph()]
    return list(attribute.as_graphs()) if attribute.type == ir.AttributeType.GRAPHS else []
