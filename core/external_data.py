"""Weights in files of their own: confined to the model's folder, and as long as they say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx

from tactician.errors import ExternalDataError


def check_external_data(proto: onnx.ModelProto, folder: Path | None) -> None:
    """Check where each external tensor of ``proto`` lies, before anything is read.

    Raises
    ------
    ExternalDataError
        If a location is absolute, has ``..`` in it, or leads out of ``folder`` by a link; if the file is missing or
        shorter than the tensor needs; or if the model came as bytes and so has no folder.
    """
    for tensor in _tensors(proto.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            _check(tensor, folder)


def _check(tensor: onnx.TensorProto, folder: Path | None) -> None:
    where = f"tensor '{tensor.name}'"
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    if folder is None:
        raise ExternalDataError(
            f"{where} lies in the file '{location}', but the model was not given as a path; pass the path"
        )
    path = Path(location)
    if not location or path.is_absolute() or ".." in path.parts or "\\" in location or "\0" in location:
        raise ExternalDataError(
            f"{where}: location '{location}' is not a plain path within the model's folder; it is not read"
        )
    full = folder / path
    if not full.resolve().is_relative_to(folder.resolve()):
        raise ExternalDataError(
            f"{where}: '{location}' is a link that leads out of the model's folder; it is not read"
        )
    if not full.is_file():
        raise ExternalDataError(
            f"{where}: its file '{location}' is missing from the model's folder; put it beside the model"
        )
    try:
        offset, length = int(entries.get("offset", "0")), int(entries.get("length", "-1"))
    except ValueError as error:
        raise ExternalDataError(f"{where}: offset or length of its data is no number ({entries})") from error
    size = full.stat().st_size
    if offset < 0 or max(length, 0) + offset > size:
        raise ExternalDataError(
            f"{where}: needs {max(length, 0)} bytes at {offset} of '{location}', which has {size} bytes"
        )


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t
            yield from attribute.tensors
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _tensors(attribute.g)
            for subgraph in attribute.graphs:
                yield from _tensors(subgraph)
