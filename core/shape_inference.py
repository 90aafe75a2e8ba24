"""Types and shapes of every value: onnx's own inference, plugins' operators, and clear errors where shapes clash."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx
import onnx_ir as ir
from onnx import ModelProto, ValueInfoProto

from tactician.errors import InvalidModelError, ShapeError

SMALL_BYTES = 1024
"""Initializers up to this size keep their values for inference; larger ones matter by type alone."""


def infer_types(proto: ModelProto, ops: Mapping[str, Any]) -> ModelProto:
    """Return ``proto`` with the types and shapes of its values filled in as far as they can be known.

    Raises
    ------
    ShapeError
        If shapes of a node's inputs do not fit together.
    """
    light = _without_weights(proto)
    light = _infer(light)
    custom = [n for n in proto.graph.node if f"{n.domain}::{n.op_type}" in ops]
    for node in custom:
        if _infer_custom(light, node, ops):
            light = _infer(light)
    known = {v.name for v in light.graph.input} - {v.name for v in proto.graph.input}
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(v for v in light.graph.value_info if v.name not in known)
    del proto.graph.output[:]
    proto.graph.output.extend(light.graph.output)
    for node, typed in zip(proto.graph.node, light.graph.node, strict=True):
        for attribute, inferred in zip(node.attribute, typed.attribute, strict=True):
            if attribute.type == onnx.AttributeProto.GRAPH:
                attribute.g.CopyFrom(inferred.g)
    return proto


def _without_weights(proto: ModelProto) -> ModelProto:
    """Return a copy in which large initializers are inputs, so that inference does not carry their bytes about."""
    light = ModelProto()
    light.ir_version = proto.ir_version
    light.opset_import.extend(proto.opset_import)
    light.graph.name = proto.graph.name or "graph"
    light.graph.node.extend(proto.graph.node)
    light.graph.input.extend(proto.graph.input)
    light.graph.output.extend(proto.graph.output)
    light.graph.value_info.extend(proto.graph.value_info)
    light.graph.sparse_initializer.extend(proto.graph.sparse_initializer)
    for tensor in proto.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL and tensor.ByteSize() <= SMALL_BYTES:
            light.graph.initializer.append(tensor)
        else:
            light.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    return light


def _infer(proto: ModelProto) -> ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    except Exception as error:
        strict = error
    try:
        lenient = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except Exception as error:
        raise InvalidModelError(f"shapes can't be inferred: {' '.join(str(error).split())[:600]}") from error
    text = " ".join(str(strict).split())
    clash = _explain(lenient) or (text if _is_clash(text) else "")
    if clash:
        raise ShapeError(clash[:800]) from strict
    return lenient


def _is_clash(text: str) -> bool:
    marks = (
        "ncompatible dimensions",
        "Dimension mismatch",
        "imensions do not match",
        "inconsistent type",
        "must match",
        "Mismatch",
    )
    return any(mark in text for mark in marks)


def _explain(proto: ModelProto) -> str:
    """Return what clashes at the first convolution, product or broadcast whose shapes do not fit."""
    shapes = {
        v.name: [d.dim_value if d.HasField("dim_value") else None for d in v.type.tensor_type.shape.dim]
        for v in (*proto.graph.input, *proto.graph.value_info)
        if v.type.tensor_type.HasField("shape")
    } | {t.name: list(t.dims) for t in proto.graph.initializer}
    for node in proto.graph.node:
        known = [shapes.get(name) for name in node.input]
        where = f"{node.op_type} '{node.name or node.output[0]}'"
        if node.op_type == "Conv" and len(known) > 1 and known[0] and known[1]:
            group = next((a.i for a in node.attribute if a.name == "group"), 1)
            x, w = known[0], known[1]
            if len(x) > 1 and len(w) > 1 and None not in (x[1], w[1]) and x[1] != w[1] * group:
                return (
                    f"{where}: weight is {w} but input has {x[1]} channels; with group {group} the input '{node.input[0]}' "
                    f"must have {w[1] * group}"
                )
        if node.op_type == "MatMul" and len(known) == 2 and known[0] and known[1] and len(known[1]) > 1:
            a, b = known
            if None not in (a[-1], b[-2]) and a[-1] != b[-2]:
                return f"{where}: '{node.input[0]}' is {a} and '{node.input[1]}' is {b}; {a[-1]} columns do not fit {b[-2]} rows"
        if node.op_type in ("Add", "Sub", "Mul", "Div") and len(known) == 2 and known[0] and known[1]:
            for p, q in zip(reversed(known[0]), reversed(known[1]), strict=False):
                if None not in (p, q) and p != q and 1 not in (p, q):
                    return f"{where}: '{node.input[0]}' is {known[0]} and '{node.input[1]}' is {known[1]}; they do not broadcast"
    return ""


def _infer_custom(light: ModelProto, node: onnx.NodeProto, ops: Mapping[str, Any]) -> bool:
    """Set the output types of a plugin's node from its ``Op.infer``."""
    from tactician.network import signature_of

    model = ir.serde.deserialize_model(light)
    found = next((n for n in model.graph if [o.name for o in n.outputs] == list(node.output)), None)
    if found is None:
        return False
    signature = signature_of(found, model)
    try:
        types = ops[signature.op].infer(signature)
    except Exception as error:
        raise ShapeError(
            f"{node.op_type} '{node.name}': its plugin can't infer the output of {signature}: {error}"
        ) from error
    for name, inferred in zip(node.output, types, strict=False):
        info = ValueInfoProto(name=name)
        data_type = {"float32": "FLOAT", "float64": "DOUBLE"}.get(inferred.dtype, inferred.dtype.upper())
        info.type.CopyFrom(
            onnx.helper.make_tensor_type_proto(onnx.TensorProto.DataType.Value(data_type), inferred.shape)
        )
        existing = next((v for v in light.graph.output if v.name == name), None)
        if existing is None:
            light.graph.value_info.append(info)
        else:
            existing.type.CopyFrom(info.type)
    return True
