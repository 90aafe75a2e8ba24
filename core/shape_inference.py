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
from tactician.shape_errors import Types, find_clash
from tactician.signature import TensorType
from tactician.tensor_checks import bits

logger = logging.getLogger(__name__)

DATA_DEPENDENT_OPS = frozenset({"Compress", "NonMaxSuppression", "NonZero", "StringSplit", "Unique"})
"""Operators whose output shapes depend on the values of their inputs."""

_MADE_UP = "unk__"
"""How names begin that onnx's inference gives to dimensions it can't know."""

_MOST_ROUNDS = 64
"""Plugins' operators that feed each other are inferred one after the other, this often at most."""


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
    _forget_data_dependent(proto)
    result = _infer(proto)
    for _ in range(_MOST_ROUNDS):
        if not _infer_custom(result, ops):
            break
        result = _infer(result)
    _drop_made_up_symbols(result.graph)
    _check_sizes(result)
    return result


def refresh_types(model: ir.Model) -> None:
    """Infer the types of ``model`` anew, in place, where they are not fully known: a pass has made more known."""
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


def _infer(proto: ModelProto) -> ModelProto:
    clear = proto
    try:
        result = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
        thorough = False
    except Exception:  # strict inference also fails where nothing is wrong: at types that are not known
        clear = _without_declared(proto)
        try:
            result = onnx.shape_inference.infer_shapes(
                clear, check_type=False, strict_mode=False, data_prop=True
            )
        except Exception as error:
            raise InvalidModelError(f"shapes can't be inferred: {one_line(error)}") from error
        thorough = True
    clash = find_clash(result, thorough=thorough)
    if clash:
        raise ShapeError(clash)
    return result


def _forget_data_dependent(proto: ModelProto) -> None:
    """Drop declared shapes of all that comes of operators whose output shapes depend on their inputs' values.

    A model may declare what came out once; what comes out next depends on the data.
    """
    dependent: set[str] = set()
    for node in proto.graph.node:
        if (not node.domain and node.op_type in DATA_DEPENDENT_OPS) or not dependent.isdisjoint(node.input):
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
    """Set output types of plugins' nodes whose input types are known; return whether there were any."""
    known = Types.of(proto).types
    waiting = [
        list(node.output)
        for node in proto.graph.node
        if f"{node.domain or 'ai.onnx'}::{node.op_type}" in ops
        and any(o and not _has_shape(known.get(o)) for o in node.output)
        and all(_has_shape(known.get(i)) for i in node.input if i)
    ]
    if not waiting:
        return False
    from tactician.network import signature_of

    model = ir.serde.deserialize_model(proto)
    _mark_constants(model)
    by_outputs = {tuple(o.name for o in node.outputs): node for node in model.graph}
    progress = False
    for outputs in waiting:
        node = by_outputs[tuple(outputs)]
        signature = signature_of(node, model)
        where = f"{node.op_type} '{node.name or outputs[0]}'"
        try:
            types = tuple(ops[signature.op].infer(signature))
        except Exception as error:
            raise ShapeError(
                f"{where}: its plugin can't infer the outputs of {signature}: {one_line(error)}"
            ) from error
        if len(types) < len(outputs):
            raise ShapeError(f"{where}: its plugin infers {len(types)} outputs, the node has {len(outputs)}")
        for name, inferred in zip(outputs, types, strict=False):
            if name:
                progress |= _set_type(proto, name, inferred)
    return progress


def _has_shape(kind: onnx.TypeProto | None) -> bool:
    return kind is not None and (not kind.HasField("tensor_type") or kind.tensor_type.HasField("shape"))


def _mark_constants(model: ir.Model) -> None:
    """Nothing to do for initializers; Constant nodes lend their value to the value they compute."""
    for node in model.graph:
        if node.op_type == "Constant" and "value" in node.attributes:
            node.outputs[0].const_value = node.attributes["value"].as_tensor()


def _set_type(proto: ModelProto, name: str, inferred: TensorType) -> bool:
    kind = onnx.helper.make_tensor_type_proto(int(data_type(inferred.dtype)), inferred.shape)
    for value in proto.graph.output:
        if value.name == name:
            changed = value.type != kind
            value.type.CopyFrom(kind)
            return bool(changed)
    for value in proto.graph.value_info:
        if value.name == name:
            changed = value.type != kind
            value.type.CopyFrom(kind)
            return bool(changed)
    proto.graph.value_info.append(ValueInfoProto(name=name, type=kind))
    return True


def data_type(dtype: str) -> ir.DataType:
    """Return the ONNX element type that ``TensorType`` spells ``dtype``.

    Raises
    ------
    InvalidModelError
        If there is none of that name.
    """
    try:
        return ir.DataType[{"float32": "FLOAT", "float64": "DOUBLE"}.get(dtype, dtype.upper())]
    except KeyError as error:
        raise InvalidModelError(
            f"'{dtype}' is no ONNX element type; use a name such as float32, float16, int64"
        ) from error


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
