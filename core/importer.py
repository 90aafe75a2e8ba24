"""An ONNX model becomes a network: read, checked, brought to a recent opset, shapes bound and inferred."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError, Error as ProtobufError
from onnx import ModelProto

from tactician.errors import InvalidModelError, ShapeError, UnknownOpError
from tactician.external_data import check_external_data
from tactician.network import domain_of
from tactician.network_builder import Network
from tactician.shape_inference import infer_types

OLDEST_OPSET = 7
BASELINE_OPSET = 18
"""Models below this opset of the standard domain are converted up to it, where the converter can."""


def import_model(
    source: Any, shapes: Mapping[str, tuple[int, ...]] | None = None, ops: Mapping[str, Any] | None = None
) -> ir.Model:
    """Return ``source`` as a network whose nodes are named and whose types are known as far as they can be.

    Parameters
    ----------
    source
        Path of an ONNX file, its bytes, an ``onnx.ModelProto``, an ``onnx_ir.Model`` or a ``Network``.
    shapes
        Input name to dimensions, to bind symbolic ones.
    ops
        Custom operators by name (``"domain::Name"``).

    Raises
    ------
    InvalidModelError
        If the model is damaged or breaks the specification.
    ExternalDataError
        If a weight file is missing, too short or outside of the model's folder.
    UnknownOpError
        If an operator is known neither to ONNX nor to a plugin.
    ShapeError
        If shapes do not fit together, or ``shapes`` does not fit the model.
    """
    ops = ops or {}
    proto, folder = _read(source)
    check_external_data(proto, folder)
    _check(proto)
    proto = _inline(proto)
    _check_operators(proto, ops)
    proto = _modernize(proto)
    _drop_initializer_inputs(proto)
    _bind_shapes(proto, shapes or {})
    proto = infer_types(proto, ops)
    try:
        model = ir.serde.deserialize_model(proto)
    except Exception as error:
        raise InvalidModelError(f"the model can't be read: {_first_line(error)}") from error
    if folder is not None:
        ir.external_data.set_base_dir(model.graph, folder)
    _name_nodes(model)
    return model


def _read(source: Any) -> tuple[ModelProto, Path | None]:
    """Return the model without its external weights, and the folder that these are confined to."""
    if isinstance(source, Network):
        source = source.model
    if isinstance(source, ir.Model):
        return ir.serde.serialize_model(source), None
    if isinstance(source, ModelProto):
        copy = ModelProto()
        copy.CopyFrom(source)
        return copy, None
    folder = None
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        folder = path.resolve().parent
        try:
            data = path.read_bytes()
        except OSError as error:
            raise InvalidModelError(f"can't read model '{path}': {error.strerror}") from error
        what = f"'{path}'"
    elif isinstance(source, bytes | bytearray | memoryview):
        data, what = bytes(source), "the given bytes"
    else:
        raise InvalidModelError(
            f"can't build from a {type(source).__name__}; pass a path, bytes, ModelProto, ir.Model or Network"
        )
    proto = ModelProto()
    try:
        proto.ParseFromString(data)
    except (DecodeError, ProtobufError, RuntimeError, ValueError) as error:
        raise InvalidModelError(f"{what} is no ONNX model, or is truncated: {_first_line(error)}") from error
    if not proto.HasField("graph"):
        raise InvalidModelError(f"{what} is no ONNX model: it has no graph")
    return proto, folder


def _check(proto: ModelProto) -> None:
    """Let onnx's own checker look at the structure; it reads no external data here."""
    if not proto.ir_version:
        raise InvalidModelError("the model names no IR version; it is damaged or no ONNX model")
    versions = {entry.domain: entry.version for entry in proto.opset_import}
    version = versions.get("", versions.get("ai.onnx"))
    newest = onnx.defs.onnx_opset_version()
    if version is not None and not OLDEST_OPSET <= version <= newest:
        raise InvalidModelError(
            f"the model is of opset {version}; this version reads {OLDEST_OPSET} to {newest}; convert it with onnx.version_converter"
        )
    _check_initializer_sizes(proto)
    bare = ModelProto()
    bare.CopyFrom(proto)
    for tensor in bare.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            # the checker would look for the file below the working directory; external_data has checked it
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            tensor.ClearField("dims")
            tensor.dims.append(0)
    try:
        onnx.checker.check_model(bare)
    except onnx.checker.ValidationError as error:
        raise InvalidModelError(f"the model breaks the ONNX specification: {_sentence(error)}") from error
    except Exception as error:
        raise InvalidModelError(f"the model can't be checked: {_first_line(error)}") from error


def _check_initializer_sizes(proto: ModelProto) -> None:
    for tensor in proto.graph.initializer:
        count = 1
        for extent in tensor.dims:
            if extent < 0:
                raise InvalidModelError(
                    f"initializer '{tensor.name}' has a negative dimension: {list(tensor.dims)}"
                )
            count *= extent
        if (
            tensor.HasField("raw_data")
            and tensor.data_location != onnx.TensorProto.EXTERNAL
            and count > 8 * len(tensor.raw_data)
        ):
            raise InvalidModelError(
                f"initializer '{tensor.name}' says that it has {count} elements, but holds {len(tensor.raw_data)} bytes"
            )


def _inline(proto: ModelProto) -> ModelProto:
    if not proto.functions:
        return proto
    try:
        return onnx.inliner.inline_local_functions(proto)
    except Exception as error:
        raise InvalidModelError(
            f"the model's local functions can't be inlined: {_first_line(error)}"
        ) from error


def _check_operators(proto: ModelProto, ops: Mapping[str, Any]) -> None:
    versions = {entry.domain: entry.version for entry in proto.opset_import}
    versions.setdefault("", versions.get("ai.onnx", onnx.defs.onnx_opset_version()))
    known = {schema.name for schema in onnx.defs.get_all_schemas()}
    for node in _all_nodes(proto.graph):
        domain = "" if node.domain == "ai.onnx" else node.domain
        name = f"{domain or 'ai.onnx'}::{node.op_type}"
        if name in ops or (domain in versions and onnx.defs.has(node.op_type, versions[domain], domain)):
            continue
        near = difflib.get_close_matches(node.op_type, known | {o.partition("::")[2] for o in ops}, 3)
        hint = f"; near: {', '.join(near)}" if near else ""
        where = f"node '{node.name}'" if node.name else f"the node that computes '{', '.join(node.output)}'"
        raise UnknownOpError(
            f"{where}: operator '{name}' (opset {versions.get(domain, 'not imported')}) is defined neither by ONNX nor by a loaded "
            f"plugin{hint}; install the plugin that defines it, or pass --plugin FILE.py"
        )


def _all_nodes(graph: onnx.GraphProto) -> Any:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _all_nodes(attribute.g)
            for subgraph in attribute.graphs:
                yield from _all_nodes(subgraph)


def _modernize(proto: ModelProto) -> ModelProto:
    """Convert an old model to the baseline opset; one that the converter can't do stays as it is."""
    version = next((e.version for e in proto.opset_import if e.domain in ("", "ai.onnx")), None)
    external = any(t.data_location == onnx.TensorProto.EXTERNAL for t in proto.graph.initializer)
    if version is None or version >= BASELINE_OPSET or external:
        return proto
    try:
        converted = onnx.version_converter.convert_version(proto, BASELINE_OPSET)
        onnx.checker.check_model(converted)
    except (
        Exception
    ):  # the converter names its own gaps by all kinds of exceptions; the model is right as it is
        return proto
    return converted


def _drop_initializer_inputs(proto: ModelProto) -> None:
    """An input with an initializer (IR version 3 lists them all) is a constant."""
    names = {t.name for t in proto.graph.initializer}
    kept = [i for i in proto.graph.input if i.name not in names]
    if len(kept) != len(proto.graph.input):
        del proto.graph.input[:]
        proto.graph.input.extend(kept)


def _bind_shapes(proto: ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> None:
    inputs = {i.name: i for i in proto.graph.input}
    symbols: dict[str, int] = {}
    for name, dims in shapes.items():
        if name not in inputs:
            raise ShapeError(f"--shapes names '{name}', but the model's inputs are {', '.join(inputs)}")
        tensor = inputs[name].type.tensor_type
        present = [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in tensor.shape.dim]
        if tensor.HasField("shape") and len(present) != len(dims):
            raise ShapeError(
                f"input '{name}' has {len(present)} dimensions {present}, but --shapes gives {list(dims)}"
            )
        for axis, (have, want) in enumerate(zip(present, dims, strict=False)):
            if (isinstance(have, int) and have != want) or want < 0:
                raise ShapeError(
                    f"input '{name}': dimension {axis} is {have} in the model, but --shapes gives {want} ({list(dims)})"
                )
            if isinstance(have, str) and have != "?" and symbols.setdefault(have, want) != want:
                raise ShapeError(f"input '{name}': symbol '{have}' is bound to {symbols[have]} and to {want}")
        del tensor.shape.dim[:]
        for want in dims:
            tensor.shape.dim.add(dim_value=want)
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in symbols:
                dim.dim_value = symbols[dim.dim_param]
    if shapes:
        # sizes inferred for other dimensions would contradict those now bound
        del proto.graph.value_info[:]


def _name_nodes(model: ir.Model) -> None:
    """Give every node a name of its own: its own where that is unique, else operator and position."""
    taken: set[str] = set()
    for position, node in enumerate(model.graph):
        name = node.name or ""
        if not name or name in taken:
            stem = name or node.op_type
            name = f"{stem}_{position}"
            while name in taken:
                name += "_"
            node.name = name
        taken.add(name)
    for node in model.graph:
        if not domain_of(node):
            node.domain = ""


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _sentence(error: BaseException) -> str:
    return " ".join(line.strip() for line in str(error).strip().splitlines() if line.strip())[:600]
