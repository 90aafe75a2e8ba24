"""One node with constant inputs, computed: what constant folding stands on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from tactician.passes.quiet import quiet

NEVER = frozenset(
    # different at every run
    (
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
        "Multinomial",
        "Bernoulli",
        "Dropout",
    )
    # a quantized constant is kept small on purpose
    + ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
    # heavy, and seldom constant: kernels are faster than the reference
    + (
        "Conv",
        "ConvTranspose",
        "ConvInteger",
        "QLinearConv",
        "DeformConv",
        "MaxPool",
        "AveragePool",
        "LpPool",
        "MaxUnpool",
    )
    + (
        "LSTM",
        "GRU",
        "RNN",
        "Resize",
        "Upsample",
        "GridSample",
        "ImageDecoder",
        "STFT",
        "DFT",
        "RoiAlign",
        "MaxRoiPool",
    )
    + ("NonMaxSuppression", "Attention", "Einsum", "Det")
)
_FLATTENING = ("Softmax", "LogSoftmax", "Hardmax")
"""Before opset 13 they take all later axes as one, which the reference does not."""

_BOUNDED = frozenset(("NonZero", "Unique", "Compress", "Slice", "TopK"))
"""What makes no more elements than it reads (NonZero: per dimension), however many these are."""

_PRODUCTS = ("MatMul", "Gemm", "MatMulInteger", "QLinearMatMul")
LARGEST_PRODUCT = 1 << 20
"""Bytes of the operands of a product that is worth computing now."""


def result_bytes(node: ir.Node, versions: Mapping[str, int]) -> int | None:
    """Return how many bytes the results of ``node`` will take; None where that is not known before."""
    total = 0
    for value, known in zip(node.outputs, _inferred(node, versions), strict=True):
        if not value.name and not value.uses():
            continue
        if known is None:
            return None
        total += known
    return total


def may_be_computed(node: ir.Node, versions: Mapping[str, int]) -> bool:
    """Return whether the kind of ``node`` allows it to be computed now: deterministic, standard, without subgraphs."""
    if node.domain != "" or not node.outputs or (node.op_type in NEVER and not _is_wide(node)):
        return False
    if node.op_type in _FLATTENING and versions.get("", 0) < 13:
        return False
    if node.op_type in _PRODUCTS and _read_bytes(node) > LARGEST_PRODUCT:
        return False
    kinds = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return not any(a.type in kinds or a.is_ref() for a in node.attributes.values())


def _is_wide(node: ir.Node) -> bool:
    """Return whether ``node`` dequantises what takes no less memory than its result: a bias, quantized to 32 bits."""
    source = node.inputs[0] if node.inputs else None
    return node.op_type == "DequantizeLinear" and source is not None and source.dtype == ir.DataType.INT32


def evaluate(node: ir.Node, versions: Mapping[str, int]) -> list[ir.TensorProtocol] | None:
    """Return the values of all outputs of ``node``, whose inputs are constants, by ONNX's reference.

    None where the reference fails, or where what it gives is not of the type that the node must have.
    """
    from onnx.reference import ReferenceEvaluator

    proto = ir.serde.serialize_node(node)
    del proto.input[:], proto.output[:]
    proto.input.extend("" if v is None else f"input_{i}" for i, v in enumerate(node.inputs))
    proto.output.extend(f"output_{i}" if v.name or v.uses() else "" for i, v in enumerate(node.outputs))
    feeds = {f"input_{i}": _array(v) for i, v in enumerate(node.inputs) if v is not None}
    graph = onnx.helper.make_graph(
        [proto],
        "node",
        [onnx.helper.make_empty_tensor_value_info(name) for name in feeds],
        [onnx.helper.make_empty_tensor_value_info(name) for name in proto.output if name],
    )
    imports = [onnx.helper.make_opsetid(domain, version) for domain, version in versions.items()]
    try:
        with quiet():
            results = iter(
                ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=imports)).run(None, feeds)
            )
        return [
            _checked(value, next(results)) if name else ir.tensor(0)
            for value, name in zip(node.outputs, proto.output, strict=True)
        ]
    except Exception:  # of many types; the node stays, and a kernel computes it at run time
        return None


def _checked(value: ir.Value, result: Any) -> ir.TensorProtocol:
    if not isinstance(result, np.ndarray | np.generic):
        raise TypeError("no tensor")
    array = np.asarray(result)
    if array.dtype.kind in "OUST":
        raise TypeError("strings stay")
    tensor = ir.Tensor(array, dtype=value.dtype or ir.DataType.from_numpy(array.dtype), name=value.name)
    if value.dtype is not None and value.dtype.numpy() != array.dtype:
        raise TypeError("not of the type that inference says")
    for known, extent in zip(value.shape or (), array.shape, strict=value.shape is not None):
        if isinstance(known, int) and known != extent:
            raise ValueError("not of the shape that inference says")
    return tensor


def _array(value: ir.Value) -> np.ndarray[Any, Any]:
    if value.const_value is None:
        raise ValueError(f"'{value.name}' is no constant")
    return np.asarray(value.const_value.numpy())


def _inferred(node: ir.Node, versions: Mapping[str, int]) -> list[int | None]:
    """Return the bytes of each output, from the network's own types or else from onnx's inference on this node."""
    own = [_bytes(v.dtype, v.shape) for v in node.outputs]
    if all(size is not None for size in own):
        return own
    if node.op_type in _BOUNDED:
        return [64 * _read_bytes(node)] * len(node.outputs)
    types = {v.name or "": _type(v) for v in node.inputs if v is not None}
    data = {
        v.name or "": ir.serde.serialize_tensor(v.const_value)
        for v in node.inputs
        if v is not None and v.const_value is not None and v.const_value.nbytes <= 1024
    }
    try:
        schema = onnx.defs.get_schema(node.op_type, versions[""], "")
        found = onnx.shape_inference.infer_node_outputs(schema, ir.serde.serialize_node(node), types, data)
    except Exception:  # nothing is known, then
        return [None] * len(node.outputs)
    sizes = []
    for value in node.outputs:
        kind = found.get(value.name or "")
        shape = None if kind is None else ir.serde.deserialize_type_proto_for_shape(kind)
        dtype = (
            None
            if kind is None or not kind.HasField("tensor_type")
            else ir.DataType(kind.tensor_type.elem_type)
        )
        sizes.append(_bytes(dtype, shape))
    return sizes


def _read_bytes(node: ir.Node) -> int:
    return sum(v.const_value.nbytes for v in node.inputs if v is not None and v.const_value is not None)


def _type(value: ir.Value) -> onnx.TypeProto:
    tensor = value.const_value
    if tensor is None:
        raise ValueError(f"'{value.name}' is no constant")
    return onnx.helper.make_tensor_type_proto(int(tensor.dtype), [int(d) for d in tensor.shape])


def _bytes(dtype: ir.DataType | None, shape: ir.Shape | None) -> int | None:
    if dtype is None or shape is None or not all(isinstance(d, int) for d in shape):
        return None
    size: int | None = math.ceil(math.prod(int(d) for d in shape if isinstance(d, int)) * dtype.itemsize)
    return size
