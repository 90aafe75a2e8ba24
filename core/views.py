"""Views: nodes whose result is their input's bytes in another shape. They get no tactic and no step: nothing runs."""

from __future__ import annotations

import onnx_ir as ir
from tactician.config import BuilderConfig
from tactician.network import tensor_type
from tactician.recognition.layout import Layout, after, is_view, static_shape

VIEWS = "views"
"""What ``--without`` takes: every reshape then is a node with a tactic."""


def view_nodes(network: ir.Model, config: BuilderConfig) -> set[str]:
    """Return the names of the nodes of the main graph whose result can lie where their input does.

    The input must be computed by another node, since where a caller's tensor lies is not known before it is bound; and
    the result must not be an output, which has memory of its own. A node that a ``--tactic`` rule names keeps its tactic.
    """
    if VIEWS in config.without:
        return set()
    named = {pattern for pattern, _ in config.tactic_rules}
    return {n.name or "" for n in network.graph if (n.name or "") not in named and _shares_memory(n)}


def _shares_memory(node: ir.Node) -> bool:
    source = node.inputs[0] if is_view(node) else None
    if source is None or source.producer() is None or source.is_graph_output():
        return False
    result = node.outputs[0]
    shape, kind = static_shape(source), tensor_type(source)
    if result.is_graph_output() or shape is None or static_shape(result) is None:
        return False
    lies = after(node, Layout.contiguous(shape))
    return (
        kind is not None and kind.dtype != "string" and lies == Layout.contiguous(static_shape(result) or ())
    )
