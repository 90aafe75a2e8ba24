"""Tensors in a model file: data as long as their shapes say, and shapes that no machine is brought down by."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto, numpy_helper
from tactician.errors import InvalidModelError

LARGEST_DENSE = 2**28
"""Bytes that a sparse tensor may grow to when it is made dense."""

_BITS = {
    TensorProto.BOOL: 8,
    TensorProto.COMPLEX64: 64,
    TensorProto.COMPLEX128: 128,
    TensorProto.BFLOAT16: 16,
    TensorProto.FLOAT16: 16,
    TensorProto.FLOAT: 32,
    TensorProto.DOUBLE: 64,
}
_TYPED = {
    TensorProto.FLOAT: "float_data",
    TensorProto.COMPLEX64: "float_data",
    TensorProto.DOUBLE: "double_data",
    TensorProto.COMPLEX128: "double_data",
    TensorProto.INT64: "int64_data",
    TensorProto.UINT32: "uint64_data",
    TensorProto.UINT64: "uint64_data",
    TensorProto.STRING: "string_data",
}


def check_tensors(proto: ModelProto) -> None:
    """Check every tensor of ``proto``, at any depth.

    Raises
    ------
    InvalidModelError
        If a tensor has a negative dimension, an unknown element type, or more or less data than its shape says.
    """
    for tensor in all_tensors(proto):
        check_tensor(tensor)


def check_tensor(tensor: TensorProto) -> None:
    """Check that ``tensor`` holds as much data as its shape says; data in other files is not looked at."""
    where = f"tensor '{tensor.name}'"
    if any(extent < 0 for extent in tensor.dims):
        raise InvalidModelError(f"{where} has a negative dimension: {list(tensor.dims)}")
    if tensor.data_type not in TensorProto.DataType.values() or tensor.data_type == TensorProto.UNDEFINED:
        raise InvalidModelError(
            f"{where} has element type {tensor.data_type}, which this version of onnx does not know"
        )
    if tensor.data_location == TensorProto.EXTERNAL:
        return
    count = math.prod(tensor.dims)
    if tensor.HasField("raw_data") and tensor.data_type != TensorProto.STRING:
        held, needed, unit = len(tensor.raw_data), nbytes(tensor), "bytes"
    else:
        held, needed, unit = _typed_length(tensor), _typed_need(tensor, count), "values"
    if held != needed:
        raise InvalidModelError(
            f"{where} of shape {list(tensor.dims)} needs {needed} {unit} of data, but the model holds {held}; it is damaged"
        )


def nbytes(tensor: TensorProto) -> int:
    """Return how many bytes the data of ``tensor`` takes as raw data, by its shape and type."""
    size: int = math.ceil(math.prod(tensor.dims) * bits(tensor.data_type) / 8)
    return size


def bits(data_type: int) -> int:
    """Return the bits of one element; 4-bit types are packed."""
    if data_type in _BITS:
        return _BITS[data_type]
    name = TensorProto.DataType.Name(data_type)
    digits = "".join(c if c.isdigit() else " " for c in name).split()
    return int(digits[0]) if digits else 8


def all_tensors(proto: ModelProto) -> Iterator[TensorProto]:
    """Yield the tensors of ``proto``: initializers and attributes, of subgraphs and functions too."""
    yield from proto.graph.initializer
    yield from inner_tensors(proto)


def inner_tensors(proto: ModelProto) -> Iterator[TensorProto]:
    """Yield the tensors of ``proto`` that are no initializers of the main graph."""
    for node in proto.graph.node:
        yield from _node_tensors(node)
    for function in proto.functions:
        for node in function.node:
            yield from _node_tensors(node)


def dense(sparse: SparseTensorProto, name: str) -> TensorProto:
    """Return ``sparse`` as a dense tensor.

    Raises
    ------
    InvalidModelError
        If it would be larger than ``LARGEST_DENSE``, or an index is out of range.
    """
    for part in (sparse.values, sparse.indices):
        check_tensor(part)
    dims = list(sparse.dims)
    size = math.prod(dims)
    if any(d < 0 for d in dims) or size * bits(sparse.values.data_type) // 8 > LARGEST_DENSE:
        raise InvalidModelError(f"sparse tensor '{name}' of shape {dims} is too large to be made dense")
    values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    bounds = np.array(dims if indices.ndim == 2 else [size])
    if (
        indices.ndim not in (1, 2)
        or len(indices) != len(values)
        or (
            indices.size
            and (
                indices.reshape(len(indices), -1).shape[1] != len(bounds)
                or (indices < 0).any()
                or (indices >= bounds).any()
            )
        )
    ):
        raise InvalidModelError(f"sparse tensor '{name}' of shape {dims} has indices out of range")
    result = np.zeros(size, values.dtype)
    flat = indices if indices.ndim == 1 else np.ravel_multi_index(tuple(indices.T), dims)
    result[flat] = values
    return numpy_helper.from_array(result.reshape(dims), name)


def _graph_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        yield from _node_tensors(node)


def _node_tensors(node: NodeProto) -> Iterator[TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for graph in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
            yield from _graph_tensors(graph)


def _typed_field(tensor: TensorProto) -> str:
    return _TYPED.get(tensor.data_type, "int32_data")


def _typed_length(tensor: TensorProto) -> int:
    return len(getattr(tensor, _typed_field(tensor)))


def _typed_need(tensor: TensorProto, count: int) -> int:
    """Return how many entries the typed field needs: complex numbers take two, several narrow ones share one."""
    if tensor.data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128):
        return 2 * count
    return math.ceil(count * bits(tensor.data_type) / 8) if bits(tensor.data_type) < 8 else count


def type_name(data_type: int) -> str:
    """Return the name of an element type as users know it, ``float32``."""
    names = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.DOUBLE: "float64"}
    return names.get(data_type) or onnx.TensorProto.DataType.Name(data_type).lower()
