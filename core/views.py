"""Views: nodes whose result is their input's bytes in another shape. They get no tactic and no step: nothing runs."""

from __future__ import annotations

import onnx_ir as ir
from tactician.config import BuilderConfig
from tactician.memory import ALIGNMENT
from tactician.network import domain_of, tensor_type
from tactician.recognition.layout import Layout, after, is_view, static_shape
from tactician.signature import TensorType

VIEWS = "views"
"""What ``--without`` takes: every reshape then is a node with a tactic."""


def view_nodes(network: ir.Model, config: BuilderConfig) -> set[str]:
    """Return the names of the nodes of the main graph whose result can lie where their input does.

    The input must be computed by another node, since where a caller's tensor lies is not known before it is bound; and
    the result must not be an output, which has memory of its own. Parts that a Split cuts off lie there too, if all
    begin where a tensor may. A node that a ``--tactic`` rule names keeps its tactic.
    """
    if VIEWS in config.without:
        return set()
    named = {pattern for pattern, _ in config.tactic_rules}
    names = {node.name or "": node for node in network.graph}
    return {name for name, node in names.items() if name not in named and view_offsets(node) is not None}


def view_offsets(node: ir.Node) -> tuple[int, ...] | None:
    """Return where each result of ``node`` lies in its first input, in bytes, where they can lie there."""
    source = node.inputs[0] if is_view(node) or _is_split(node) else None
    if source is None or source.producer() is None or source.is_graph_output():
        return None
    shape, kind = static_shape(source), tensor_type(source)
    shapes = [static_shape(v) for v in node.outputs]
    if shape is None or kind is None or kind.dtype == "string" or any(s is None for s in shapes):
        return None
    if any(v.is_graph_output() for v in node.outputs):
        return None
    if _is_split(node):
        return _of_split(node, shape, kind)
    return (0,) if after(node, Layout.contiguous(shape)) == Layout.contiguous(shapes[0] or ()) else None


def _of_split(node: ir.Node, shape: tuple[int, ...], kind: TensorType) -> tuple[int, ...] | None:
    """Return the offsets of parts that lie one after the other, each where a tensor may begin."""
    attribute = node.attributes.get("axis")
    axis = (attribute.as_int() if attribute is not None else 0) % len(shape)
    if any(n != 1 for n in shape[:axis]):
        return None
    offsets, offset = [], 0
    for value in node.outputs:
        offsets.append(offset)
        offset += TensorType(kind.dtype, static_shape(value)).nbytes
    return tuple(offsets) if all(o % ALIGNMENT == 0 for o in offsets) else None


def _is_split(node: ir.Node) -> bool:
    return node.op_type == "Split" and domain_of(node) == "ai.onnx"
