"""The values in a timing cache: entries, incumbents, fingerprints, and all of them as one JSON file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from tactician.errors import CacheError
from tactician.tactics.record import CandidateRecord, Outcome, Timing

Fields = Mapping[str, str]
"""A device's fingerprint, field by field."""

EXPORT_FORMAT = "tactician timing cache 1"


class CacheRow(msgspec.Struct, frozen=True):
    """One entry. The first seven fields are its key."""

    signature: str
    tactic: str
    version: int
    plugin: str
    digest: str
    fingerprint: str
    policy: str
    outcome: Outcome
    reason: str = ""
    timing: Timing | None = None
    error: float | None = None
    tolerance: float | None = None
    workspace: int = 0
    conditions: dict[str, int | str] = {}
    created: float = 0.0

    def record(self, numerics: Iterable[str] = ()) -> CandidateRecord:
        """Return the entry as a candidate's record."""
        return CandidateRecord(
            self.tactic,
            self.plugin,
            self.outcome,
            self.reason,
            self.timing,
            self.error,
            self.tolerance,
            self.workspace,
            tuple(sorted(numerics)),
            cached=True,
            version=self.version,
        )


class Incumbent(msgspec.Struct, frozen=True):
    """The last winner of one signature on one device."""

    signature: str
    fingerprint: str
    tactic: str
    created: float


class Snapshot(msgspec.Struct, frozen=True):
    """Everything in a timing cache: entries, device fields by digest, incumbents, signatures' text by key."""

    timings: list[CacheRow]
    fingerprints: dict[str, dict[str, str]]
    incumbents: list[Incumbent]
    signatures: dict[str, str]
    format: str = EXPORT_FORMAT


def fingerprint_digest(fields: Fields) -> str:
    """Return the digest that stands for a device's fields in an entry."""
    return hashlib.sha256(msgspec.json.encode(dict(fields), order="sorted")).hexdigest()


def read_snapshot(path: Path) -> Snapshot:
    """Read an exported file.

    Raises
    ------
    CacheError
        If it is not there, no export, or damaged.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Snapshot)
    except OSError as error:
        raise CacheError(f"can't read '{path}': {error.strerror}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CacheError(
            f"'{path}' is no exported timing cache, or damaged: {error}; `tactician cache export` writes one"
        ) from error


def check_snapshot(snapshot: Snapshot) -> None:
    """Make sure that every entry's device is described, and as its digest says.

    Raises
    ------
    CacheError
        Naming the first that is not.
    """
    if snapshot.format != EXPORT_FORMAT:
        raise CacheError(
            f"an export of format '{snapshot.format}' can't be read; this version reads '{EXPORT_FORMAT}'"
        )
    for digest, fields in snapshot.fingerprints.items():
        if fingerprint_digest(fields) != digest:
            raise CacheError(f"the device fields of fingerprint {digest[:12]} do not match its digest")
    for row in snapshot.timings:
        if row.fingerprint not in snapshot.fingerprints:
            raise CacheError(
                f"the entry of {row.tactic} names a device, {row.fingerprint[:12]}, that is not described"
            )


COLUMNS = ", ".join(CacheRow.__struct_fields__)
INSERT = (
    f"INSERT OR REPLACE INTO timings ({COLUMNS}) VALUES ({', '.join('?' * len(CacheRow.__struct_fields__))})"
)
MERGE = (
    INSERT.replace("INSERT OR REPLACE", "INSERT")
    + " ON CONFLICT DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in CacheRow.__struct_fields__[7:])
    + " WHERE excluded.created > timings.created"
)


def to_values(row: CacheRow) -> tuple[Any, ...]:
    """Return the columns of an entry."""
    values = [getattr(row, name) for name in CacheRow.__struct_fields__]
    values[CacheRow.__struct_fields__.index("outcome")] = str(row.outcome)
    for name in ("timing", "conditions"):
        value = getattr(row, name)
        values[CacheRow.__struct_fields__.index(name)] = (
            None if value is None else msgspec.json.encode(value).decode()
        )
    return tuple(values)


def to_row(values: tuple[Any, ...]) -> CacheRow | None:
    """Return the entry, or None where it can't be read: it counts as missing, and the rest is fine."""
    plain = dict(zip(CacheRow.__struct_fields__, values, strict=True))
    try:
        for name in ("timing", "conditions"):
            if plain[name] is not None:
                plain[name] = msgspec.json.decode(plain[name])
        return msgspec.convert(plain, CacheRow)
    except (msgspec.MsgspecError, TypeError, ValueError):
        return None
