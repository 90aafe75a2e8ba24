"""Operators that ONNX itself defines by others: their bodies take the place of calls."""

from __future__ import annotations

import onnx
import onnx_ir as ir
from onnx import ModelProto, NodeProto, inliner
from tactician.decompositions.call import UnexpandableError
from tactician.decompositions.piece import Piece
from tactician.model_checks import one_line

OLDEST_BODY = 13
"""Bodies that are written for older opsets are left alone: in this one, the last operators changed their meaning."""

SAME_SINCE_THEN = frozenset({
    "Cast", "CastLike", "Constant", "ConstantOfShape", "Cos", "Equal", "Flatten", "Identity", "If", "Pad", "Reshape", "Round",
    "Shape", "Size", "Squeeze", "Transpose", "Unsqueeze",
})  # fmt: skip
"""What bodies call and later opsets have again: for more types of elements, and with new attributes, but else the same."""

AXES_ARE_INPUTS = 18
"""The opset from which on all reductions take their axes as an input."""


def has_function(op_type: str, opset: int) -> bool:
    """Return whether ONNX defines the operator by others at ``opset``."""
    try:
        schema = onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return False
    return bool(schema.has_function or schema.has_context_dependent_function)


def inline(piece: Piece) -> None:
    """Let the body of the operator's function take the place of the one node of ``piece``.

    Raises
    ------
    UnexpandableError
        If the body means something else at the network's opset, or does not fit the call.
    """
    opset = piece.model.graph.opset_imports[""]
    proto = ir.serde.serialize_model(piece.model)
    (node,) = proto.graph.node
    version = _body_version(node.op_type, opset)
    _set_defaults(node, opset)
    try:
        inlined = inliner.inline_selected_functions(proto, [("", node.op_type)], inline_schema_functions=True)
        for inner in inlined.graph.node:
            _check(inner, version, opset)
        inferred = onnx.shape_inference.infer_shapes(_without_types(inlined), data_prop=True)
    except UnexpandableError:
        raise
    except Exception as error:  # the inliner and inference have no exceptions of their own
        raise UnexpandableError(
            f"ONNX's own body of {node.op_type} does not fit: {one_line(error)}"
        ) from error
    piece.model = ir.serde.deserialize_model(inferred)


def _body_version(op_type: str, opset: int) -> int:
    schema = onnx.defs.get_schema(op_type, opset, "")
    versions = (
        schema.function_opset_versions
        if schema.has_function
        else schema.context_dependent_function_opset_versions
    )
    version = max((v for v in versions if v <= opset), default=0)
    if version < OLDEST_BODY:
        raise UnexpandableError(f"its body is written for opset {version}")
    return int(version)


def _check(node: NodeProto, version: int, opset: int) -> None:
    """Make sure that a node of a body means the same at the network's opset as at the body's."""
    then = onnx.defs.get_schema(node.op_type, version, "").since_version
    now = onnx.defs.get_schema(node.op_type, opset, "").since_version
    same = node.op_type in SAME_SINCE_THEN
    if node.op_type.startswith("Reduce"):  # only how axes are given has changed
        same = then >= AXES_ARE_INPUTS or (len(node.input) == 1 and not _has(node, "axes"))
    if then != now and not same:
        raise UnexpandableError(f"its body has {node.op_type} of opset {then}, and the network's is of {now}")


def _has(node: NodeProto, attribute: str) -> bool:
    return any(a.name == attribute for a in node.attribute)


def _set_defaults(node: NodeProto, opset: int) -> None:
    """Set attributes to their defaults: the inliner leaves out what the call does not set."""
    for name, attribute in onnx.defs.get_schema(node.op_type, opset, "").attributes.items():
        if not _has(node, name) and attribute.default_value.type != onnx.AttributeProto.UNDEFINED:
            node.attribute.append(attribute.default_value)


def _without_types(proto: ModelProto) -> ModelProto:
    """Return ``proto`` without what it says of inner values: the inliner leaves types there that are none."""
    del proto.graph.value_info[:]
    return proto
