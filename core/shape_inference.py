"""Types and shapes of every value: onnx's own inference, and that of plugins' operators."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from typing import Any

import onnx
import onnx_ir as ir
from onnx import GraphProto, ModelProto, ValueInfoProto
from tactician.errors import InvalidModelError, ShapeError
from tactician.model_checks import all_nodes, node_text, one_line, subgraphs
from tactician.model_file import without_weights
from tactician.node_inference import infer_custom_node, infer_node
from tactician.shape_errors import Types, find_clash
from tactician.tensor_checks import bits

logger = logging.getLogger(__name__)

DATA_DEPENDENT_OPS = frozenset({"Compress", "NonMaxSuppression", "NonZero", "StringSplit", "Unique"})
"""Operators whose output shapes depend on the values of their inputs."""

_MADE_UP = "unk__"
"""How names begin that onnx's inference gives to dimensions it can't know."""

_MOST_ROUNDS = 4
"""What plugins' operators make known, onnx's inference can make more of within subgraphs, and these again."""

_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def infer_types(proto: ModelProto, ops: Mapping[str, Any]) -> ModelProto:
    """Return ``proto`` with the types and shapes of its values filled in as far as they can be known.

    Parameters
    ----------
    proto
        A checked model; its large weights are inputs.
    ops
        Plugins' operators by name.

    Raises
    ------
    ShapeError
        If shapes of a node's inputs do not fit together, or a tensor is larger than the memory of this machine.
    """
    _forget_data_dependent(proto, ops)
    result, thorough = _infer(proto)
    for _ in range(_MOST_ROUNDS):
        if not ops or not _infer_custom(result, ops):
            break
        result, thorough = _infer(result)
    clash = find_clash(result, thorough=thorough)
    if clash:
        raise ShapeError(clash)
    _drop_made_up_symbols(result.graph)
    _check_sizes(result)
    return result


def refresh_types(model: ir.Model, ops: Mapping[str, Any]) -> None:
    """Infer the types of ``model`` anew, in place, where they are not fully known: a pass has made more known.

    Parameters
    ----------
    ops
        Plugins' operators by name.

    Raises
    ------
    ShapeError
        If a plugin can't infer the outputs of its operator from what is known now.
    """
    for _ in range(_MOST_ROUNDS):
        _refresh_standard(model)
        if not _refresh_custom(model, ops):
            break


def _refresh_custom(model: ir.Model, ops: Mapping[str, Any]) -> bool:
    """Infer the types of plugins' nodes that are not fully known; return whether any became known better."""
    changed = False
    for node in model.graph:
        if f"{node.domain}::{node.op_type}" in ops and not all(map(_is_static, node.outputs)):
            before = [str(v.shape) for v in node.outputs]
            infer_custom_node(node, model, ops)
            changed |= [str(v.shape) for v in node.outputs] != before
    return changed


def _refresh_standard(model: ir.Model) -> None:
    values = [v for node in model.graph for v in node.outputs if v.name]
    waiting = {v.name: v for v in values if v.type is None or not _is_static(v)}
    if not waiting:
        return
    proto = without_weights(model).proto
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except Exception as error:  # types stay as they were
        logger.debug("types are not refreshed: %s", error)
        return
    _drop_made_up_symbols(inferred.graph)
    for info in (*inferred.graph.value_info, *inferred.graph.output):
        value = waiting.get(info.name)
        if value is None or info.type.WhichOneof("value") is None:
            continue
        value.type = value.type or ir.serde.deserialize_type_proto_for_type(info.type)
        shape = ir.serde.deserialize_type_proto_for_shape(info.type)
        if shape is not None:
            value.shape = _merged(value.shape, shape)


def _is_static(value: ir.Value) -> bool:
    return value.shape is not None and all(isinstance(d, int) for d in value.shape)


def _merged(old: ir.Shape | None, new: ir.Shape) -> ir.Shape:
    if old is None or len(old) != len(new):
        return new
    return ir.Shape([n if isinstance(n, int) or _unknown(o) else o for o, n in zip(old, new, strict=True)])


def _unknown(dim: Any) -> bool:
    return not isinstance(dim, int) and dim.value is None


def _infer(proto: ModelProto) -> tuple[ModelProto, bool]:
    """Return ``proto`` with inferred types, and whether inference found something to complain of.

    That need not be an error: it also complains of types that are not known.
    """
    try:
        return onnx.shape_inference.infer_shapes(
            proto, check_type=True, strict_mode=True, data_prop=True
        ), False
    except Exception:  # onnx has several kinds for it; which node it is, and why, is found out later
        clear = _without_declared(proto)
    try:
        return onnx.shape_inference.infer_shapes(clear, data_prop=True), True
    except Exception as error:
        raise InvalidModelError(f"shapes can't be inferred: {one_line(error)}") from error


def _forget_data_dependent(proto: ModelProto, ops: Mapping[str, Any]) -> None:
    """Drop declared shapes of all that comes of operators whose output shapes may depend on their inputs' values.

    A model may declare what came out once; what comes out next depends on the data. Of plugins' operators it is not
    known here: what comes of their outputs is inferred anew, the outputs themselves are their plugin's business.
    """
    dependent: set[str] = set()
    custom: set[str] = set()
    for node in proto.graph.node:
        if f"{node.domain}::{node.op_type}" in ops:
            custom.update(name for name in node.output if name)
        elif (not node.domain and node.op_type in DATA_DEPENDENT_OPS) or not (dependent | custom).isdisjoint(
            node.input
        ):
            dependent.update(name for name in node.output if name)
    if not dependent:
        return
    for output in proto.graph.output:
        if output.name in dependent and output.type.HasField("tensor_type"):
            output.type.tensor_type.ClearField("shape")
    kept = [ValueInfoProto.FromString(v.SerializeToString()) for v in proto.graph.value_info]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(v for v in kept if v.name not in dependent)


def _without_declared(proto: ModelProto) -> ModelProto:
    """Return a copy without what the model itself says of shapes inside of it, which may be wrong."""
    copy = ModelProto()
    copy.CopyFrom(proto)
    custom = {name for node in all_nodes(proto.graph.node) if node.domain for name in node.output}
    kept = [
        ValueInfoProto.FromString(v.SerializeToString()) for v in proto.graph.value_info if v.name in custom
    ]
    del copy.graph.value_info[:]
    copy.graph.value_info.extend(kept)
    for output in copy.graph.output:
        if output.type.HasField("tensor_type") and output.name not in custom:
            output.type.tensor_type.ClearField("shape")
    return copy


def _infer_custom(proto: ModelProto, ops: Mapping[str, Any]) -> bool:
    """Set output types of plugins' nodes, and of what follows from them; return whether any became known.

    What a plugin infers counts for more than what the model declares.
    """
    domains = {name.partition("::")[0] for name in ops}
    if not any((node.domain or "ai.onnx") in domains for node in proto.graph.node):
        return False
    model = ir.serde.deserialize_model(proto)
    opset = model.graph.opset_imports.get("", 0)
    found: dict[str, ir.Value] = {}
    for node in model.graph:
        before = [(str(v.type), str(v.shape)) for v in node.outputs]
        if f"{node.domain or 'ai.onnx'}::{node.op_type}" in ops:
            infer_custom_node(node, model, ops)
        elif all(v.shape is not None or not v.name for v in node.outputs):
            continue
        elif node.domain == "" and not any(a.type in _GRAPHS for a in node.attributes.values()):
            infer_node(node, opset)
        found |= {
            v.name or "": v
            for v, known in zip(node.outputs, before, strict=True)
            if v.shape is not None and (str(v.type), str(v.shape)) != known
        }
    progress = bool(found)
    for value in proto.graph.output:
        if value.name in found:
            value.type.CopyFrom(ir.serde.serialize_value(found.pop(value.name)).type)
    kept = [ValueInfoProto.FromString(v.SerializeToString()) for v in proto.graph.value_info]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(v for v in kept if v.name not in found)
    proto.graph.value_info.extend(ir.serde.serialize_value(v) for v in found.values() if v.name)
    return progress


def _drop_made_up_symbols(graph: GraphProto) -> None:
    """Make dimensions unknown that inference has made up a symbol for: equal nodes would differ by its number."""
    for value in (*graph.value_info, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param.startswith(_MADE_UP):
                dim.ClearField("dim_param")
    for node in graph.node:
        for inner in subgraphs(node):
            _drop_made_up_symbols(inner)


def _check_sizes(proto: ModelProto) -> None:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    types = Types.of(proto)
    for name, kind in types.types.items():
        dims = types.dims(name)
        if dims is None or None in dims:
            continue
        size = math.prod(d or 0 for d in dims) * bits(kind.tensor_type.elem_type) // 8
        if size > memory:
            makers = [node_text(n) for n in proto.graph.node if name in n.output]
            raise ShapeError(
                f"{types.text(name)}{f', computed by {makers[0]},' if makers else ''} would take {size / 2**30:.4g} GiB; "
                f"this machine has {memory / 2**30:.4g} GiB"
            )
