"""Fused bodies as pointwise programs: reads the ONNX function that a fused node stands for. Needs onnx."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from tactician.builtin_kernels.cuda.pointwise_ops import Operand, UnsupportedError
from tactician.builtin_kernels.cuda.pointwise_program import PointwiseProgram, ProgramBuilder, constant
from tactician.signature import OpSignature


@lru_cache(maxsize=1024)
def body_program(signature: OpSignature) -> PointwiseProgram | str:
    """Return the program of ``signature.body``, or why it has none, in words."""
    try:
        return _program(signature)
    except UnsupportedError as reason:
        return str(reason)


def _program(signature: OpSignature) -> PointwiseProgram:
    import onnx

    function = onnx.FunctionProto.FromString(signature.body or b"")
    versions = {o.domain or "ai.onnx": o.version for o in function.opset_import}
    builder = ProgramBuilder(signature)
    values: dict[str, Operand | None] = {"": None}
    unread = {name: i for i, name in enumerate(function.input)}

    def value(name: str) -> Operand | None:
        # inputs are loaded at their first use, so that only those that are read become parameters
        if name in unread:
            values[name] = builder.operand(unread.pop(name))
        if name not in values:
            raise UnsupportedError(f"the body reads '{name}', which nothing in it computes")
        return values[name]

    for node in function.node:
        if node.domain not in ("", "ai.onnx"):
            raise UnsupportedError(f"{node.domain}::{node.op_type} is not an elementwise operator")
        attributes = _attributes(node)
        if node.op_type == "Constant":
            values[node.output[0]] = _constant(attributes)
            continue
        if sum(map(bool, node.output)) != 1:
            raise UnsupportedError(f"{node.op_type} has more than one output")
        operands = [value(name) for name in node.input]
        values[node.output[0]] = builder.apply(
            node.op_type, versions.get("ai.onnx", signature.version), attributes, operands
        )
    outputs = [value(name) for name in function.output]
    if any(o is None for o in outputs):
        raise UnsupportedError("an output is absent")
    return builder.finish([o for o in outputs if o is not None])


def _attributes(node: Any) -> dict[str, Any]:
    from onnx import helper

    attributes = {}
    for attribute in node.attribute:
        if attribute.ref_attr_name:
            raise UnsupportedError(
                f"attribute '{attribute.name}' of {node.op_type} is a parameter of the function"
            )
        found = helper.get_attribute_value(attribute)
        attributes[attribute.name] = found.decode() if isinstance(found, bytes) else found
    return attributes


def _constant(attributes: dict[str, Any]) -> Operand:
    import numpy as np
    from onnx import numpy_helper

    kinds = {"value_float": np.float32, "value_int": np.int64}
    name, found = next(iter(attributes.items()))
    if name == "value":
        array = numpy_helper.to_array(found)
    elif name in kinds:
        array = np.asarray(found, kinds[name])
    else:
        raise UnsupportedError(f"a Constant with '{name}' is not supported")
    if array.size != 1:
        raise UnsupportedError(
            f"a constant of {array.size} elements lies inside of the body; pass it as an input"
        )
    return constant(array)
