"""The engine: a plan, its weights and its compiled kernels, in memory and as one file."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
from tactician.errors import ConfigError, DamagedEngineError, EngineMismatchError
from tactician.plan import FORMAT_VERSION, BuildReport, Place, Plan

MAGIC = b"tactician engine"
ALIGNMENT = 256
MAX_HEADER_BYTES = 1 << 20
PROFILES, MODEL = "profiles", "model"
"""Sections of an engine with optimization profiles alone."""
_PREFIX = struct.Struct("<16sIIQ32s")  # magic, format version, reserved, header length, SHA-256 of the header


class _Section(msgspec.Struct, frozen=True):
    offset: int
    size: int
    sha256: str


class _Header(msgspec.Struct, frozen=True):
    sections: dict[str, _Section]


@dataclass(frozen=True)
class Engine:
    """A built network: run it with ``Session(engine)``.

    Parameters
    ----------
    plan
        What to do, the same for the same choices.
    report
        How it came about: decisions, timings.
    weights
        Raw bytes by tensor name.
    artifacts
        Compiled kernels and serialized library models by content key.
    """

    plan: Plan
    report: BuildReport
    weights: Mapping[str, Any]
    artifacts: Mapping[str, bytes]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the engine to ``path``, atomically: a reader sees the old file or the whole new one."""
        with _atomic(Path(path)) as file:
            _write(file, self.parts())

    def parts(self) -> dict[str, list[Any]]:
        """Return the sections of the file by name, each in pieces."""
        weights, table = _layout({name: memoryview(data).nbytes for name, data in self.weights.items()})
        return {
            "plan": [self.plan.encode()],
            "report": [msgspec.json.encode(self.report)],
            "artifacts": [_pack_artifacts(self.artifacts)],
            "weights": [
                table,
                *(piece for name, pad in weights for piece in (b"\0" * pad, self.weights[name])),
            ],
        }

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, verify_weights: bool = True) -> Engine:
        """Read an engine; weights stay on disk until they are used (memory-mapped).

        Raises
        ------
        DamagedEngineError
            If the file is truncated, altered or no engine.
        EngineMismatchError
            If the file has a format that this version can't read.
        """
        path = Path(path)
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                data = (
                    memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
                    if size
                    else memoryview(b"")
                )
        except OSError as error:
            raise DamagedEngineError(f"can't read engine '{path}': {error.strerror}") from error
        sections = _sections(path, data)
        for name, (content, expected) in sections.items():
            if (verify_weights or name != "weights") and hashlib.sha256(content).hexdigest() != expected:
                raise DamagedEngineError(
                    f"engine '{path}' is damaged: section '{name}' does not match its checksum; build it again"
                )
        try:
            plan = msgspec.json.decode(bytes(sections["plan"][0]), type=Plan)
            report = msgspec.json.decode(bytes(sections["report"][0]), type=BuildReport)
            check_plan(plan)
            artifacts = _unpack_artifacts(sections["artifacts"][0])
            weights = _unpack_weights(sections["weights"][0])
            engine = cls(plan, report, weights, artifacts)
            if PROFILES in sections:
                from tactician.profiled_engine import read_profiles

                return read_profiles(engine, bytes(sections[PROFILES][0]), bytes(sections[MODEL][0]))
        except (msgspec.MsgspecError, ConfigError, ValueError, KeyError, TypeError, IndexError) as error:
            raise DamagedEngineError(f"engine '{path}' is damaged: {error}; build it again") from error
        return engine

    def weight(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        """Return weight ``name`` as an array.

        Raises
        ------
        DamagedEngineError
            If the engine holds another number of bytes under that name.
        """
        data = self.weights.get(name)
        if data is not None and dtype.kind == "O":
            return np.array(json.loads(bytes(data)), dtype=object).reshape(shape)
        expected = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if data is None or memoryview(data).nbytes != expected:
            raise DamagedEngineError(
                f"the engine's weight '{name}' is missing or has another size than {expected} bytes"
            )
        return np.frombuffer(data, dtype).reshape(shape)


def weight_bytes(array: np.ndarray[Any, Any]) -> Any:
    """Return what an engine stores of a weight: its raw bytes; of strings, a JSON list."""
    if array.dtype.kind == "O":
        return json.dumps([s.decode() if isinstance(s, bytes) else str(s) for s in array.ravel()]).encode()
    flat: Any = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return memoryview(flat)


def _layout(sizes: Mapping[str, int]) -> tuple[list[tuple[str, int]], bytes]:
    """Return names with the padding before each, and the safetensors header that says where each lies."""
    order, table, offset = [], {}, 0
    for name in sorted(sizes):
        pad = -offset % ALIGNMENT
        start = offset + pad
        offset = start + sizes[name]
        order.append((name, pad))
        # the padding belongs to no tensor; readers of safetensors want no holes, so it is a tensor of its own
        if pad:
            table[f"__padding_{len(order)}"] = {
                "dtype": "U8",
                "shape": [pad],
                "data_offsets": [start - pad, start],
            }
        table[name] = {"dtype": "U8", "shape": [sizes[name]], "data_offsets": [start, offset]}
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    return order, struct.pack("<Q", len(text)) + text


def _unpack_weights(data: memoryview) -> dict[str, memoryview]:
    (length,) = struct.unpack_from("<Q", data)
    if length > len(data) - 8:
        raise ValueError("the table of weights is longer than its section")
    table = json.loads(bytes(data[8 : 8 + length]))
    body = data[8 + length :]
    weights = {}
    for name, entry in table.items():
        start, end = entry["data_offsets"]
        if not 0 <= start <= end <= len(body):
            raise ValueError(f"weight '{name}' lies outside of its section")
        weights[name] = body[start:end]
    return weights


def _pack_artifacts(artifacts: Mapping[str, bytes]) -> bytes:
    keys = sorted(artifacts)
    table = json.dumps([[key, len(artifacts[key])] for key in keys]).encode()
    return struct.pack("<Q", len(table)) + table + b"".join(artifacts[key] for key in keys)


def _unpack_artifacts(data: memoryview) -> dict[str, bytes]:
    (length,) = struct.unpack_from("<Q", data)
    artifacts, offset = {}, 8 + length
    for key, size in json.loads(bytes(data[8 : 8 + length])):
        if size < 0 or offset + size > len(data):
            raise ValueError("an artifact lies outside of its section")
        artifacts[key] = bytes(data[offset : offset + size])
        offset += size
    return artifacts


def _write(file: BinaryIO, parts: Mapping[str, list[Any]]) -> None:
    """Write prefix and header with room to spare, then the sections, then the header again with their checksums."""
    header_room = ALIGNMENT * 8
    file.write(b"\0" * (_PREFIX.size + header_room))
    sections = {}
    for name, pieces in parts.items():
        file.write(b"\0" * (-file.tell() % ALIGNMENT))
        digest, start = hashlib.sha256(), file.tell()
        for piece in pieces:
            digest.update(piece)
            file.write(piece)
        sections[name] = _Section(start, file.tell() - start, digest.hexdigest())
    header = msgspec.json.encode(_Header(sections))
    file.seek(0)
    file.write(_PREFIX.pack(MAGIC, FORMAT_VERSION, 0, len(header), hashlib.sha256(header).digest()))
    file.write(header)


def _sections(path: Path, data: memoryview) -> dict[str, tuple[memoryview, str]]:
    if len(data) < _PREFIX.size or bytes(data[: len(MAGIC)]) != MAGIC:
        raise DamagedEngineError(f"'{path}' is no tactician engine")
    _, version, _, length, digest = _PREFIX.unpack_from(data)
    if version != FORMAT_VERSION:
        raise EngineMismatchError(
            f"engine '{path}' has format {version}, this tactician reads format {FORMAT_VERSION}; build it again"
        )
    header = bytes(data[_PREFIX.size : _PREFIX.size + min(length, MAX_HEADER_BYTES)])
    if len(header) != length or hashlib.sha256(header).digest() != digest:
        raise DamagedEngineError(
            f"engine '{path}' is damaged: its header does not match its checksum; build it again"
        )
    sections = msgspec.json.decode(header, type=_Header).sections
    extra = (PROFILES, MODEL) if PROFILES in sections else ()
    for name in ("plan", "report", "artifacts", "weights", *extra):
        section = sections.get(name)
        if (
            section is None
            or section.offset < 0
            or section.size < 0
            or section.offset + section.size > len(data)
        ):
            raise DamagedEngineError(
                f"engine '{path}' is truncated: section '{name}' is not all there; build it again"
            )
    return {name: (data[s.offset : s.offset + s.size], s.sha256) for name, s in sections.items()}


def has_profiles(path: str | os.PathLike[str]) -> bool:
    """Return whether the file at ``path`` says that it holds an engine with profiles; it is not checked otherwise."""
    try:
        with Path(path).open("rb") as file:
            prefix = file.read(_PREFIX.size)
            length = _PREFIX.unpack(prefix)[3] if len(prefix) == _PREFIX.size else 0
            header = msgspec.json.decode(file.read(min(length, MAX_HEADER_BYTES)), type=_Header)
    except (OSError, msgspec.MsgspecError):
        return False  # reading the engine will say what is wrong
    return PROFILES in header.sections


def check_plan(plan: Plan) -> None:
    """Refuse indices and offsets that point outside: a plan is data from a file."""
    count = len(plan.tensors)
    arenas = {m.target: m for m in plan.memory}
    for index in (*plan.inputs, *plan.outputs, *(i for s in plan.steps for i in (*s.inputs, *s.outputs))):
        if not -1 <= index < count:
            raise ValueError(f"tensor {index} of {count} does not exist")
    for tensor in plan.tensors:
        room = {Place.ARENA: "peak", Place.WEIGHT: "weights"}.get(tensor.place)
        if room and tensor.dtype != "string":
            end = tensor.offset + tensor.type.nbytes
            if (
                tensor.offset < 0
                or any(isinstance(d, int) and d < 0 for d in tensor.shape or ())
                or (end > getattr(arenas[tensor.target], room))
            ):
                raise ValueError(f"tensor '{tensor.name}' lies outside of its memory")
    for step in plan.steps:
        if (
            step.workspace < 0
            or step.workspace_offset < 0
            or (step.workspace and step.workspace_offset + step.workspace > arenas[step.target].peak)
        ):
            raise ValueError(f"the workspace of node '{step.node}' lies outside of its memory")


@contextmanager
def _atomic(path: Path) -> Iterator[BinaryIO]:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
