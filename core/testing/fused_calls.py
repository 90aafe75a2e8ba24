"""Calls of fused nodes to hold tactics to: of a network's subgraphs, or made of an operator's own calls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import onnx
from onnx import ModelProto, helper
from tactician.errors import TacticianError
from tactician.importer import import_model
from tactician.plugins.node_model import node_model
from tactician.plugins.op import Op
from tactician.plugins.reference import ops_in_use
from tactician.regions import find_regions
from tactician.signature import OpSignature
from tactician.tactics.fused_form import FusedForm

MOST_PER_FORM = 24
"""Pairs of an anchor and a neighbour that are made for one form."""


def fused_signatures(model: Any, *forms: FusedForm, ops: Mapping[str, Op] | None = None) -> list[OpSignature]:
    """Return the calls that subgraphs of these forms would become.

    Parameters
    ----------
    model
        What ``tactician.build`` takes: a path, bytes, a ``tactician.Network`` …
    ops
        Custom operators by name; those of the plugins loaded last, if None.

    Raises
    ------
    InvalidModelError, ShapeError, UnknownOpError
        If it can't be imported.
    """
    network = import_model(model, {}, ops_in_use() if ops is None else ops)
    return [region.signature for form in forms for region in find_regions(network, form)]


def neighbour_signatures(form: FusedForm, calls: Iterable[OpSignature]) -> list[OpSignature]:
    """Return fused calls of two operators: an anchor's call out of ``calls`` with one operator before or after it.

    Operators that the anchor's types don't fit, or that have no inputs to connect, are left out.
    """
    anchors = [call for call in calls if call.op in form.anchors and call.is_static and not call.parts]
    found: dict[str, OpSignature] = {}
    for anchor, op, after in _pairs(anchors, form):
        model = _with_neighbour(anchor, op, after=after)
        if model is None:
            continue
        try:
            signatures = fused_signatures(model, form)
        except TacticianError:  # its types don't fit
            continue
        found.update((s.key, s) for s in signatures if len(s.parts) == 2)
        if len(found) >= MOST_PER_FORM:
            break
    return list(found.values())


def _pairs(anchors: Sequence[OpSignature], form: FusedForm) -> Iterator[tuple[OpSignature, str, bool]]:
    """Yield anchors with neighbours, so that a few pairs have as many different ones of both as can be."""
    neighbours = [(op, True) for op in form.epilogue] + [(op, False) for op in form.prologue]
    for turn in range(len(neighbours)):
        for i, anchor in enumerate(anchors):
            yield anchor, *neighbours[(i + turn) % len(neighbours)]


def _with_neighbour(anchor: OpSignature, op: str, *, after: bool) -> ModelProto | None:
    """Return a model of the anchor's call and one call of ``op`` behind it, or before its first input."""
    model = node_model(anchor)
    domain, _, op_type = op.partition("::")
    (node,) = model.graph.node
    outer = model.graph.output if after else model.graph.input
    if not outer or len(node.output) != 1:
        return None
    kind, name = outer[0].type, outer[0].name
    others = _other_inputs(op_type, domain, anchor)
    if others is None:
        return None
    extra = [helper.make_value_info(f"neighbour/input_{i}", kind) for i in range(others)]
    model.graph.input.extend(extra)
    if after:
        neighbour = helper.make_node(
            op_type, [name, *(e.name for e in extra)], ["neighbour/output"], "neighbour"
        )
        outer[0].name = "neighbour/output"
    else:
        read = [f"neighbour/{name}", *(e.name for e in extra)]
        neighbour = helper.make_node(op_type, read, [name], "neighbour")
        outer[0].name = f"neighbour/{name}"
    neighbour.domain = "" if domain == "ai.onnx" else domain
    model.graph.node.insert(1 if after else 0, neighbour)
    if neighbour.domain not in {entry.domain for entry in model.opset_import}:
        model.opset_import.append(helper.make_opsetid(neighbour.domain, 1))
    return model


def _other_inputs(op_type: str, domain: str, anchor: OpSignature) -> int | None:
    """Return how many tensors an operator needs besides its first; None where that is not known."""
    if domain != "ai.onnx":
        return None
    version = anchor.version if anchor.domain == "ai.onnx" else onnx.defs.onnx_opset_version()
    try:
        return max(0, int(onnx.defs.get_schema(op_type, version).min_input) - 1)
    except onnx.defs.SchemaError:
        return None
