"""Types of one node's outputs, from the types of its inputs: by onnx's inference or by a plugin's."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Mapping
from typing import Any

import onnx
import onnx_ir as ir
from tactician.errors import InvalidModelError, ShapeError, UnknownOpError
from tactician.signature import Dim

LARGEST_VALUE = 1024
"""Bytes of the largest constant whose value takes part in inference."""


def infer_node(node: ir.Node, opset: int) -> None:
    """Set the types of the outputs of ``node``, a standard one, where those of its inputs are known.

    Raises
    ------
    UnknownOpError
        If the opset has no such operator.
    ShapeError
        If the inputs do not fit together, or an attribute is none of the operator's.
    """
    schema = _schema(node.op_type, opset)
    inputs = [v for v in node.inputs if v is not None]
    if any(v.type is None for v in inputs):
        return
    types = {v.name or "": ir.serde.serialize_value(v).type for v in inputs}
    data = {
        v.name or "": ir.serde.serialize_tensor(t) for v in inputs if (t := _small_constant(v)) is not None
    }
    proto = ir.serde.serialize_node(node)
    imports = [onnx.helper.make_opsetid("", opset)]
    try:
        onnx.checker.check_node(proto, _context(opset))
        found = onnx.shape_inference.infer_node_outputs(schema, proto, types, data, opset_imports=imports)
    except Exception as error:  # onnx has several kinds for the one thing that its own message says
        given = ", ".join(f"'{v.name}' {v.dtype}{v.shape}" for v in inputs)
        said = " ".join(str(error).split())
        raise ShapeError(f"{node.op_type} '{node.name}': {said} (inputs: {given})") from error
    for value in node.outputs:
        kind = found.get(value.name or "")
        if kind is not None and kind.WhichOneof("value"):
            value.type = ir.serde.deserialize_type_proto_for_type(kind)
            value.shape = ir.serde.deserialize_type_proto_for_shape(kind)


def infer_custom_node(node: ir.Node, model: ir.Model, ops: Mapping[str, Any]) -> None:
    """Set the types of the outputs of ``node``, a plugin's, where the shapes of its inputs are known.

    What the plugin leaves open, a shape or a dimension that is None, stays as it was: a model may declare it.

    Raises
    ------
    ShapeError
        If the plugin fails to infer them, gives too few, or one that is no type.
    """
    from tactician.network import signature_of

    if not all(v is None or _is_known(v) for v in node.inputs):
        return
    signature = signature_of(node, model)
    where = f"{node.op_type} '{node.name or node.outputs[0].name}'"
    try:
        types = tuple(ops[signature.op].infer(signature))
    except Exception as error:  # of any type: it is another's code
        said = " ".join(str(error).split())
        raise ShapeError(f"{where}: its plugin can't infer the outputs of {signature}: {said}") from error
    if len(types) < len(node.outputs):
        raise ShapeError(f"{where}: its plugin infers {len(types)} outputs, the node has {len(node.outputs)}")
    for i, (value, inferred) in enumerate(zip(node.outputs, types, strict=False)):
        if not _is_type(inferred):
            raise ShapeError(
                f"{where}: its plugin infers {inferred!r} for output {i}; return a TensorType of an ONNX element type, "
                "with dimensions of 0 or more, names, or None"
            )
        value.type = ir.TensorType(data_type(inferred.dtype))
        value.shape = _settled(inferred.shape, value.shape)


def _is_type(inferred: Any) -> bool:
    try:
        data_type(inferred.dtype)
        return all(d is None or isinstance(d, str) or operator.index(d) >= 0 for d in inferred.shape or ())
    except (AttributeError, TypeError, InvalidModelError):
        return False


def _settled(inferred: tuple[Dim, ...] | None, declared: ir.Shape | None) -> ir.Shape | None:
    if inferred is None or declared is None or len(inferred) != len(declared):
        return declared if inferred is None else ir.Shape(inferred)
    return ir.Shape([old if new is None else new for new, old in zip(inferred, declared, strict=True)])


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


def _is_known(value: ir.Value) -> bool:
    """Return whether the type is known, and the rank if it is a tensor's."""
    return value.type is not None and (value.shape is not None or not isinstance(value.type, ir.TensorType))


def _schema(op_type: str, opset: int) -> onnx.defs.OpSchema:
    try:
        return onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError as error:
        near = difflib.get_close_matches(op_type, {s.name for s in onnx.defs.get_all_schemas()}, 3)
        hint = f" (did you mean {' or '.join(repr(n) for n in near)}?)" if near else ""
        raise UnknownOpError(
            f"ONNX has no operator '{op_type}' in opset {opset}{hint}; pass domain= for a plugin's operator"
        ) from error


def _small_constant(value: ir.Value) -> ir.TensorProtocol | None:
    tensor = ir.convenience.get_const_tensor(value)
    return tensor if tensor is not None and tensor.nbytes <= LARGEST_VALUE else None


def _context(opset: int) -> Any:
    context = onnx.checker.C.CheckerContext()
    context.ir_version = onnx.IR_VERSION
    context.opset_imports = {"": opset}
    return context
