"""ONNX's reference evaluator with custom operators, faster convolution and pooling, and wider arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpFunctionContextDependant, OpRun, RuntimeContextError
from tactician.plugins import fast_reference
from tactician.plugins.error_function import erf
from tactician.plugins.op import Op, as_outputs
from tactician.signature import AttributeValue, Blob, OpSignature, TensorType, dtype_name

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)


def make_evaluator(model: ModelProto, ops: Mapping[str, Op]) -> ReferenceEvaluator:
    """Return an evaluator of ``model`` that knows the custom operators ``ops`` too, at any depth.

    Raises
    ------
    NotImplementedError
        If an operator is known to nobody.
    """

    class Evaluator(ReferenceEvaluator):
        # the class is handed on to functions and subgraphs; a list of operators (new_ops) would not be
        def _load_impl(self, node: NodeProto, input_types: Any = None) -> Any:
            if node.domain in ("", "ai.onnx") and len(node.output) == 1:
                own = _FAST | _flattening(self.opsets[node.domain])
                if node.op_type in own:
                    return own[node.op_type]
            if node.domain in ("", "ai.onnx") and node.op_type == "MaxPool":
                return MaxPool
            if op := ops.get(f"{node.domain}::{node.op_type}"):
                return _custom_class(op)
            try:
                return super()._load_impl(node, input_types)
            except RuntimeContextError:
                # an operator whose definition depends on types, within a function that states none
                if input_types is not None or self.all_types_:
                    raise
                return partial(OpFunctionContextDependant, parent=self)

    return Evaluator(model)


def widened(model: ModelProto) -> ModelProto:
    """Return ``model`` with doubles in place of narrower floats: constants and casts within its bodies.

    The types of the model's inputs need no change: the evaluator goes by the arrays that it is given.
    """
    result = ModelProto.FromString(model.SerializeToString())
    for function in result.functions:
        _widen_nodes(function.node)
    for node in result.graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                _widen_graph(attribute.g)
    return result


def _widen_graph(graph: GraphProto) -> None:
    for tensor in graph.initializer:
        _widen_tensor(tensor)
    _widen_nodes(graph.node)


def _widen_nodes(nodes: Sequence[NodeProto]) -> None:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                _widen_graph(attribute.g)
            elif attribute.type == AttributeProto.TENSOR:
                _widen_tensor(attribute.t)
            elif node.op_type == "Cast" and attribute.name == "to" and attribute.i in _FLOATS:
                attribute.i = TensorProto.DOUBLE
            elif node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
                values = attribute.f if attribute.name == "value_float" else list(attribute.floats)
                attribute.CopyFrom(
                    onnx.helper.make_attribute("value", numpy_helper.from_array(np.array(values, np.float64)))
                )


def _widen_tensor(tensor: TensorProto) -> None:
    if tensor.data_type in _FLOATS:
        tensor.CopyFrom(
            numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name)
        )


class _Fast(OpRun):
    """An operator computed by a function of ``fast_reference``, which takes the attributes by name."""

    compute: Any

    def _run(self, *inputs: Any, **attributes: Any) -> tuple[Any, ...]:
        return (type(self).compute(*inputs, **attributes),)


class MaxPool(OpRun):
    """Both outputs: ONNX's own evaluator counts from the padding where that is wider than the input."""

    op_domain = ""

    def _run(self, x: Any, **attributes: Any) -> tuple[Any, ...]:
        return fast_reference.max_pool(x, **attributes), fast_reference.max_pool_indices(x, **attributes)


def _fast(name: str, function: Any) -> type[OpRun]:
    return type(name, (_Fast,), {"op_domain": "", "compute": staticmethod(function)})


def _flattening(opset: int) -> dict[str, type[OpRun]]:
    """Return operators that take all axes from ``axis`` on as one in old opsets; ONNX's own forgot."""
    return _FLATTENING if opset < 13 else {}


_FAST = {
    "LogSoftmax": _fast("LogSoftmax", fast_reference.log_softmax),
    "Conv": _fast("Conv", fast_reference.conv),
    "Erf": _fast("Erf", erf),
    "MaxPool": _fast("MaxPool", fast_reference.max_pool),
    "AveragePool": _fast("AveragePool", fast_reference.average_pool),
}
_FLATTENING = {
    "LogSoftmax": _fast("LogSoftmax", fast_reference.flattening(fast_reference.log_softmax)),
    "Softmax": _fast("Softmax", fast_reference.flattening(fast_reference.softmax)),
}


def _custom_class(op: Op) -> type[OpRun]:
    """Return an evaluator's class for ``op`` within a body: its signature is only known once it runs."""

    class Custom(OpRun):
        def _load_attributes(self) -> None:
            self.has_linked_attribute = any(a.ref_attr_name for a in self.onnx_node.attribute)
            self.attributes_names_: set[str] = set()

        def run(
            self, *inputs: Any, linked_attributes: Any = None, context: Any = None, bindings: Any = None
        ) -> Any:
            signature = _node_signature(op.name, self.onnx_node, inputs, linked_attributes or {})
            return as_outputs(op.reference(signature, *inputs))

        def _run(self, *inputs: Any, **attributes: Any) -> Any:
            raise NotImplementedError("run() is overridden")

    return Custom


def _node_signature(
    name: str, node: NodeProto, inputs: Sequence[Any], linked: Mapping[str, Any]
) -> OpSignature:
    attributes = {
        a.name: linked[a.ref_attr_name] if a.ref_attr_name else attribute_value(a)
        for a in node.attribute
        if not a.ref_attr_name or a.ref_attr_name in linked
    }
    types = tuple(None if x is None else TensorType(dtype_name(x.dtype), x.shape) for x in inputs)
    outputs = (None,) * len(node.output)
    return OpSignature(name, 1, tuple(sorted(attributes.items())), types, outputs, (None,) * len(types))


def attribute_value(attribute: AttributeProto) -> AttributeValue:
    """Return an ONNX attribute as a signature holds it."""
    value = onnx.helper.get_attribute_value(attribute)
    match attribute.type:
        case AttributeProto.STRING:
            return bytes(value).decode(errors="surrogateescape")
        case AttributeProto.STRINGS:
            return tuple(bytes(v).decode(errors="surrogateescape") for v in value)
        case AttributeProto.INT | AttributeProto.FLOAT:
            return value  # type: ignore[no-any-return]  # by the type just matched
        case AttributeProto.INTS | AttributeProto.FLOATS:
            return tuple(value)
        case kind:
            protos = value if isinstance(value, Sequence) else [value]
            return Blob(
                AttributeProto.AttributeType.Name(kind).lower(), tuple(p.SerializeToString() for p in protos)
            )
