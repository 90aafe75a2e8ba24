"""Reading a model from whatever holds it: the graph without its weights, and the weights beside it, each held once."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError, EncodeError
from onnx import ModelProto, TensorProto
from tactician.errors import InvalidModelError
from tactician.external_data import check_external_data, internalize, is_external
from tactician.network_builder import Network
from tactician.tensor_checks import check_tensors, dense

LARGEST_FILE = 2**31 - 1
"""Protocol buffers end here; larger models keep their weights in files of their own."""

SMALL_BYTES = 1024
"""Initializers up to this size stay in the graph, since shapes may depend on their values; larger ones are weights."""


@dataclass
class ModelFile:
    """A model whose large initializers have become inputs of the graph; their tensors are in ``weights`` by name."""

    proto: ModelProto
    weights: dict[str, ir.TensorProtocol] = field(default_factory=dict)


def read_model(source: Any) -> ModelFile:
    """Read ``source``; external weights stay where they are and are mapped into memory when they are used.

    Parameters
    ----------
    source
        Path of an ONNX file, its bytes, an ``onnx.ModelProto``, an ``onnx_ir.Model``, a ``Network``, or what an earlier call
        returned. It is not changed.

    Raises
    ------
    InvalidModelError
        If it can't be read, is no ONNX model, or holds a tensor whose data does not fit its shape.
    ExternalDataError
        If a weight file is missing, too short or outside of the model's folder.
    """
    if isinstance(source, Network):
        source = source.model
    if isinstance(source, ModelFile):
        return ModelFile(_copy(source.proto), source.weights)
    if isinstance(source, ir.Model):
        file = without_weights(source)
        check_tensors(file.proto)
        return file
    folder = None
    if isinstance(source, ModelProto):
        proto = _copy(source)
    elif isinstance(source, str | os.PathLike):
        path = Path(source)
        folder = path.absolute().parent
        proto = _parse(_read_file(path), f"'{path}'")
    elif isinstance(source, bytes | bytearray | memoryview):
        proto = _parse(bytes(source), "the given data")
    else:
        raise InvalidModelError(
            f"can't import a {type(source).__name__}; pass a path, bytes, onnx.ModelProto, onnx_ir.Model or Network"
        )
    _make_dense(proto)
    check_external_data(proto, folder)
    check_tensors(proto)
    internalize(proto, folder)
    return ModelFile(proto, _take_weights(proto, folder))


def without_weights(source: ir.Model) -> ModelFile:
    """Return ``source`` with its weights as they are; only the rest is serialized.

    Raises
    ------
    InvalidModelError
        If an initializer has no data, or the network can't be written as ONNX.
    """
    model = source.clone()
    weights: dict[str, ir.TensorProtocol] = {}
    for value in list(model.graph.initializers.values()):
        tensor = value.const_value
        if tensor is None:
            raise InvalidModelError(f"initializer '{value.name}' has no data")
        value.shape, value.type = ir.Shape(tensor.shape), ir.TensorType(tensor.dtype)
        if tensor.nbytes > SMALL_BYTES:
            weights[value.name or ""] = tensor
            del model.graph.initializers[value.name or ""]
            if not value.is_graph_input():
                model.graph.inputs.append(value)
    try:
        proto = ir.serde.serialize_model(model)
    except (TypeError, ValueError, AttributeError) as error:
        raise InvalidModelError(f"the network can't be written as ONNX: {error}") from error
    return ModelFile(proto, weights)


def all_graphs(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    """Return ``graph`` and all graphs within its nodes, outer before inner."""
    found = [graph]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found += all_graphs(attribute.g)
            for inner in attribute.graphs:
                found += all_graphs(inner)
    return found


def _copy(source: ModelProto) -> ModelProto:
    proto = ModelProto()
    proto.CopyFrom(source)
    return proto


def _read_file(path: Path) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InvalidModelError(f"can't read model '{path}': it is no file")
        if status.st_size > LARGEST_FILE:
            raise InvalidModelError(
                f"can't read model '{path}': it has {status.st_size} bytes, and an ONNX file can't have more than "
                f"{LARGEST_FILE}; save it with its weights as external data"
            )
        return path.read_bytes()
    except OSError as error:
        raise InvalidModelError(f"can't read model '{path}': {error.strerror or error}") from error


def _parse(data: bytes, what: str) -> ModelProto:
    proto = ModelProto()
    try:
        proto.ParseFromString(data)
    except (DecodeError, EncodeError, RuntimeError, ValueError) as error:
        raise InvalidModelError(f"{what} is no ONNX model, or is truncated or damaged: {error}") from error
    if not proto.HasField("graph"):
        raise InvalidModelError(f"{what} is no ONNX model: it has no graph")
    return proto


def _make_dense(proto: ModelProto) -> None:
    """Turn sparse initializers and constants into dense ones: no runtime has kernels for them."""
    for graph in all_graphs(proto.graph):
        graph.initializer.extend(dense(t, t.values.name) for t in graph.sparse_initializer)
        del graph.sparse_initializer[:]
        for node in graph.node:
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.name == "sparse_value":
                    tensor = dense(attribute.sparse_tensor, attribute.sparse_tensor.values.name)
                    attribute.CopyFrom(onnx.helper.make_attribute("value", tensor))


def _take_weights(proto: ModelProto, folder: Path | None) -> dict[str, ir.TensorProtocol]:
    """Make inputs of the large initializers of ``proto`` and return their tensors."""
    weights: dict[str, ir.TensorProtocol] = {}
    small: list[TensorProto] = []
    present = {value.name for value in proto.graph.input}
    for tensor in proto.graph.initializer:
        if not tensor.name or tensor.name in weights or any(t.name == tensor.name for t in small):
            raise InvalidModelError(
                f"two initializers are called '{tensor.name}', or it has no name; rename one"
            )
        if not is_external(tensor) and tensor.ByteSize() <= SMALL_BYTES:
            small.append(tensor)
            continue
        weights[tensor.name] = _tensor(tensor, folder)
        if tensor.name not in present:
            proto.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tuple(tensor.dims))
            )
    kept = [TensorProto.FromString(t.SerializeToString()) for t in small]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    return weights


def _tensor(tensor: TensorProto, folder: Path | None) -> ir.TensorProtocol:
    found = ir.serde.deserialize_tensor(tensor, "" if folder is None else folder)
    if isinstance(found, ir.ExternalTensor | ir.StringTensor):
        return found
    # an array of its own: a view of the protocol buffer would copy the data at every look and keep the buffer alive
    return ir.Tensor(found.numpy(), dtype=found.dtype, name=tensor.name)
