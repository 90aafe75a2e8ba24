"""Weights in files of their own: confined to the model's folder, and as long as they say."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import ModelProto, TensorProto
from tactician.errors import ExternalDataError
from tactician.tensor_checks import all_tensors, check_tensor, inner_tensors, nbytes

LARGEST_INTERNALIZED = 2**30
"""Bytes of external data, over all constants within nodes and subgraphs, that are read into the model."""


def is_external(tensor: TensorProto) -> bool:
    """Return whether the data of ``tensor`` lies in another file."""
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def check_external_data(proto: ModelProto, folder: Path | None) -> None:
    """Check where each external tensor of ``proto`` lies, before anything is read.

    Raises
    ------
    ExternalDataError
        If a location is absolute, has ``..`` in it, or leads out of ``folder`` by a link; if the file is missing or
        shorter than the tensor needs; or if the model came as bytes and so has no folder.
    """
    for tensor in all_tensors(proto):
        if is_external(tensor):
            check_tensor(tensor)
            _check(tensor, folder)


def internalize(proto: ModelProto, folder: Path | None) -> None:
    """Read external data of all tensors but the main graph's initializers, which stay in their files.

    Raises
    ------
    ExternalDataError
        If that is more than ``LARGEST_INTERNALIZED`` in all.
    """
    inner = [t for t in inner_tensors(proto) if is_external(t)]
    total = sum(nbytes(t) for t in inner)
    if total > LARGEST_INTERNALIZED:
        raise ExternalDataError(
            f"constants within nodes and subgraphs have {total} bytes of external data, more than {LARGEST_INTERNALIZED}; "
            "make them initializers of the main graph"
        )
    for tensor in inner:
        entries = _entries(tensor)
        path = (folder or Path()) / entries["location"]
        with path.open("rb") as file:
            file.seek(int(entries.get("offset", "0")))
            data = file.read(nbytes(tensor))
        tensor.ClearField("external_data")
        tensor.data_location = TensorProto.DEFAULT
        tensor.raw_data = data


def _check(tensor: TensorProto, folder: Path | None) -> None:
    where = f"tensor '{tensor.name}'"
    entries = _entries(tensor)
    location = entries.get("location", "")
    if folder is None:
        raise ExternalDataError(
            f"{where} lies in the file '{location}', but the model was not given as a path; pass the model's path"
        )
    full = _confined(where, location, folder)
    if not full.is_file():
        raise ExternalDataError(
            f"{where}: its file '{location}' is missing from the model's folder '{folder}'; put it beside the model"
        )
    if tensor.data_type == TensorProto.STRING:
        raise ExternalDataError(f"{where}: strings can't lie in another file")
    try:
        offset, length = int(entries.get("offset", "0")), int(entries.get("length", str(nbytes(tensor))))
    except ValueError as error:
        raise ExternalDataError(f"{where}: offset or length of its data is no number ({entries})") from error
    if length != nbytes(tensor):
        raise ExternalDataError(
            f"{where} of shape {list(tensor.dims)} needs {nbytes(tensor)} bytes, but the model says that '{location}' has {length}"
        )
    size = full.stat().st_size
    if offset < 0 or offset + length > size:
        raise ExternalDataError(
            f"{where} needs {length} bytes at offset {offset} of '{location}', which has {size}; the file is truncated or another's"
        )


def _confined(where: str, location: str, folder: Path) -> Path:
    path = Path(location)
    plain = (
        location and not path.is_absolute() and ".." not in path.parts and not set(location) & {"\\", "\0"}
    )
    if not plain:
        raise ExternalDataError(
            f"{where}: location '{location}' is no path within the model's folder; it is not read"
        )
    full = folder / path
    if not full.resolve().is_relative_to(folder.resolve()):
        raise ExternalDataError(
            f"{where}: '{location}' is a link that leads out of the model's folder '{folder}'; it is not read"
        )
    return full


def _entries(tensor: onnx.TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}
