"""The timing cache: what was measured and found out about each tactic, kept for the next build."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from tactician.errors import CacheError
from tactician.signature import OpSignature
from tactician.tactics.cache_file import CacheFile, move_aside
from tactician.tactics.cache_rows import (
    COLUMNS,
    INSERT,
    MERGE,
    CacheRow,
    Fields,
    Incumbent,
    Snapshot,
    check_snapshot,
    fingerprint_digest,
    read_snapshot,
    to_row,
    to_values,
)
from tactician.tactics.record import Outcome
from tactician.tactics.registry import Candidate
from tactician.user_folders import cache_folder

FAILURES = (Outcome.FAILED.value, Outcome.WRONG.value)
"""Outcomes that a plugin's author can change."""


class CacheInfo(msgspec.Struct, frozen=True):
    """What a timing cache holds; ``devices`` is entries by the device's name."""

    path: str
    bytes: int
    entries: int
    signatures: int
    incumbents: int
    fingerprints: int
    devices: dict[str, int]
    oldest: float | None
    newest: float | None


class TimingCache:
    """A SQLite file of timings and verdicts, which several builds may read and write at once.

    Parameters
    ----------
    path
        File; None for ``timing.sqlite`` in the user's cache folder, or in ``TACTICIAN_CACHE_DIR``.

    Raises
    ------
    CacheError
        If the file is damaged, something else, or can't be written. It is never changed then.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = Path(path) if path is not None else default_path()
        self._file = CacheFile(self.path)

    @staticmethod
    def reset(path: str | os.PathLike[str] | None = None) -> Path | None:
        """Move the file away, damaged or not, and return its new name; None where there is none."""
        path = Path(path) if path is not None else default_path()
        return move_aside(path) if path.exists() else None

    def get(self, signature: OpSignature, fingerprint: Fields, policy: str) -> list[CacheRow]:
        """Return all entries of ``signature`` on the device with that fingerprint, timed by that policy."""
        with self._file.read() as connection:
            rows = connection.execute(
                f"SELECT {COLUMNS} FROM timings WHERE signature = ? AND fingerprint = ? AND policy = ?",
                (signature.key, fingerprint_digest(fingerprint), policy),
            ).fetchall()
        return [row for row in map(to_row, rows) if row is not None]

    def put(self, signature: OpSignature, fingerprint: Fields, rows: Iterable[CacheRow]) -> None:
        """Store entries of one signature and device in one transaction; equal keys are replaced."""
        digest = fingerprint_digest(fingerprint)
        with self._file.write() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO signatures VALUES (?, ?)", (signature.key, str(signature))
            )
            connection.executemany(
                "INSERT OR IGNORE INTO fingerprints VALUES (?, ?, ?)",
                [(digest, field, value) for field, value in fingerprint.items()],
            )
            connection.executemany(INSERT, [to_values(row) for row in rows])

    def incumbent(self, signature: OpSignature, fingerprint: Fields) -> str | None:
        """Return the id of the tactic that won last, or None."""
        with self._file.read() as connection:
            row = connection.execute(
                "SELECT tactic FROM incumbents WHERE signature = ? AND fingerprint = ?",
                (signature.key, fingerprint_digest(fingerprint)),
            ).fetchone()
        return None if row is None else str(row[0])

    def set_incumbents(self, winners: Iterable[tuple[OpSignature, Fields, str]]) -> None:
        """Remember winners: signature, fingerprint, tactic id."""
        now = time.time()
        values = [(s.key, fingerprint_digest(f), tactic, now) for s, f, tactic in winners]
        with self._file.write() as connection:
            connection.executemany("INSERT OR REPLACE INTO incumbents VALUES (?, ?, ?, ?)", values)

    def set_incumbent(self, signature: OpSignature, fingerprint: Fields, tactic: str) -> None:
        """Remember the winner of one signature."""
        self.set_incumbents([(signature, fingerprint, tactic)])

    def knows(self, fingerprint: Fields) -> bool:
        """Return whether anything was ever timed on a device with that fingerprint."""
        with self._file.read() as connection:
            row = connection.execute(
                "SELECT 1 FROM fingerprints WHERE digest = ? LIMIT 1", (fingerprint_digest(fingerprint),)
            ).fetchone()
        return row is not None

    def explain_miss(
        self, signature: OpSignature, candidate: Candidate, fingerprint: Fields, policy: str
    ) -> str:
        """Say why there is no entry for ``candidate``: the fields in which the nearest one differs."""
        with self._file.read() as connection:
            rows = connection.execute(
                "SELECT version, digest, fingerprint, policy FROM timings WHERE signature = ? AND tactic = ?",
                (signature.key, candidate.id),
            ).fetchall()
            known = connection.execute(
                "SELECT count(*) FROM timings WHERE signature = ?", (signature.key,)
            ).fetchone()[0]
            fields: dict[str, dict[str, str]] = {}
            for digest, field, value in connection.execute("SELECT digest, field, value FROM fingerprints"):
                fields.setdefault(digest, {})[field] = value
        if not rows:
            what = f"{candidate.id}" if known else "this signature"
            return f"no entry for {what}"
        here = {"tactic version": str(candidate.tactic.version), "plugin digest": candidate.plugin.digest}
        here |= {"timing policy": policy} | dict(fingerprint)
        nearest = min(
            (
                _differences(
                    {"tactic version": str(version), "plugin digest": digest, "timing policy": how}
                    | fields.get(print_, {}),
                    here,
                )
                for version, digest, print_, how in rows
            ),
            key=len,
        )
        return "the nearest entry differs in " + "; ".join(nearest) if nearest else "the entry was not found"

    def snapshot(self) -> Snapshot:
        """Return everything that the cache holds, sorted."""
        with self._file.read() as connection:
            connection.execute("BEGIN")
            rows = connection.execute(f"SELECT {COLUMNS} FROM timings ORDER BY 1, 2, 3, 5, 6, 7").fetchall()
            marks = connection.execute(
                "SELECT digest, field, value FROM fingerprints ORDER BY 1, 2"
            ).fetchall()
            winners = connection.execute(
                "SELECT signature, fingerprint, tactic, created FROM incumbents ORDER BY 1, 2"
            ).fetchall()
            texts = connection.execute("SELECT key, text FROM signatures ORDER BY 1").fetchall()
            connection.execute("COMMIT")
        fingerprints: dict[str, dict[str, str]] = {}
        for digest, field, value in marks:
            fingerprints.setdefault(digest, {})[field] = value
        return Snapshot(
            timings=[row for row in map(to_row, rows) if row is not None],
            fingerprints=fingerprints,
            incumbents=[Incumbent(*winner) for winner in winners],
            signatures=dict(texts),
        )

    def take(self, snapshot: Snapshot) -> int:
        """Take entries that are not there yet or newer, and incumbents where there is none.

        Raises
        ------
        CacheError
            If the snapshot contradicts itself; nothing is taken then.
        """
        check_snapshot(snapshot)
        marks = [
            (d, field, value)
            for d, fields in snapshot.fingerprints.items()
            for field, value in fields.items()
        ]
        winners = [(w.signature, w.fingerprint, w.tactic, w.created) for w in snapshot.incumbents]
        with self._file.write() as connection:
            before = connection.total_changes
            connection.executemany(MERGE, [to_values(row) for row in snapshot.timings])
            taken = connection.total_changes - before
            connection.executemany("INSERT OR IGNORE INTO fingerprints VALUES (?, ?, ?)", marks)
            connection.executemany("INSERT OR IGNORE INTO incumbents VALUES (?, ?, ?, ?)", winners)
            connection.executemany(
                "INSERT OR IGNORE INTO signatures VALUES (?, ?)", snapshot.signatures.items()
            )
        return taken

    def merge(self, path: str | os.PathLike[str]) -> int:
        """Take the entries of another cache file, and return how many were not there yet or newer."""
        if not Path(path).is_file():
            raise CacheError(f"there is no timing cache '{path}'")
        return self.take(TimingCache(path).snapshot())

    def export_json(self, path: str | os.PathLike[str]) -> int:
        """Write everything to ``path`` as JSON, sorted, and return the number of entries."""
        snapshot = self.snapshot()
        try:
            Path(path).write_bytes(
                msgspec.json.format(msgspec.json.encode(snapshot, order="sorted"), indent=1)
            )
        except OSError as error:
            raise CacheError(f"can't write '{path}': {error.strerror}") from error
        return len(snapshot.timings)

    def import_json(self, path: str | os.PathLike[str]) -> int:
        """Take the entries of an exported file, and return how many were not there yet or newer.

        Raises
        ------
        CacheError
            If the file is no export, or damaged; nothing is taken then.
        """
        return self.take(read_snapshot(Path(path)))

    def prune(
        self,
        *,
        older_than: float | None = None,
        keep_device: Fields | None = None,
        keep_plugins: Mapping[str, str] | None = None,
    ) -> int:
        """Delete entries that no build will read again, and return how many.

        Parameters
        ----------
        older_than
            Seconds: entries older than this go.
        keep_device
            A fingerprint: entries of all others go.
        keep_plugins
            Name and content hash of plugins: entries of their other versions go.
        """
        conditions: list[tuple[str, tuple[Any, ...]]] = []
        if older_than is not None:
            conditions.append(("created < ?", (time.time() - older_than,)))
        if keep_device is not None:
            conditions.append(("fingerprint != ?", (fingerprint_digest(keep_device),)))
        for plugin, digest in (keep_plugins or {}).items():
            conditions.append(("plugin = ? AND digest != ?", (plugin, digest)))
        with self._file.write() as connection:
            count = sum(
                connection.execute(f"DELETE FROM timings WHERE {where}", values).rowcount
                for where, values in conditions
            )
            for orphans in _ORPHANS:
                connection.execute(orphans)
        with self._file.read() as connection:
            connection.execute("VACUUM")
        return count

    def failures(self, plugin: str) -> list[CacheRow]:
        """Return the entries of a plugin's tactics that failed, were wrong, or took a process down."""
        marks = ", ".join("?" * len(FAILURES))
        with self._file.read() as connection:
            rows = connection.execute(
                f"SELECT {COLUMNS} FROM timings WHERE plugin = ? AND outcome IN ({marks}) ORDER BY 2, 1",
                (plugin, *FAILURES),
            ).fetchall()
        return [row for row in map(to_row, rows) if row is not None]

    def forget_failures(self, plugin: str) -> int:
        """Delete these entries, so that the next build tries again, and return how many there were."""
        marks = ", ".join("?" * len(FAILURES))
        with self._file.write() as connection:
            return connection.execute(
                f"DELETE FROM timings WHERE plugin = ? AND outcome IN ({marks})", (plugin, *FAILURES)
            ).rowcount

    def info(self) -> CacheInfo:
        """Return what the cache holds."""
        with self._file.read() as connection:
            devices = connection.execute(
                "SELECT coalesce(f.value, '?'), count(*) FROM timings t LEFT JOIN fingerprints f "
                "ON f.digest = t.fingerprint AND f.field = 'device' GROUP BY 1 ORDER BY 1"
            ).fetchall()
            row = connection.execute(
                "SELECT count(*), count(DISTINCT signature), min(created), max(created), "
                "count(DISTINCT fingerprint) FROM timings"
            ).fetchone()
            incumbents = connection.execute("SELECT count(*) FROM incumbents").fetchone()[0]
        entries, signatures, oldest, newest, fingerprints = row
        size = self.path.stat().st_size
        return CacheInfo(
            str(self.path), size, entries, signatures, incumbents, fingerprints, dict(devices), oldest, newest
        )

    def verify(self) -> list[str]:
        """Return what is wrong with the file, in words; nothing if all is well."""
        with self._file.read() as connection:
            problems = [
                f"SQLite: {line}" for (line,) in connection.execute("PRAGMA integrity_check") if line != "ok"
            ]
            rows = connection.execute(f"SELECT {COLUMNS} FROM timings").fetchall()
        problems += [
            f"entry of {row[1]} for signature {row[0][:12]} can't be read"
            for row in rows
            if to_row(row) is None
        ]
        try:
            check_snapshot(self.snapshot())
        except CacheError as error:
            problems.append(str(error))
        return problems


def default_path() -> Path:
    """Return where the user's own timing cache is."""
    return cache_folder() / "timing.sqlite"


_ORPHANS = (
    "DELETE FROM incumbents WHERE NOT EXISTS (SELECT 1 FROM timings t "
    "WHERE t.signature = incumbents.signature AND t.fingerprint = incumbents.fingerprint)",
    "DELETE FROM fingerprints WHERE digest NOT IN (SELECT fingerprint FROM timings)",
    "DELETE FROM signatures WHERE key NOT IN (SELECT signature FROM timings)",
)


def _differences(there: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    return [
        f"{field}: '{there.get(field, '')}' there, '{here.get(field, '')}' here"
        for field in sorted({*there, *here})
        if there.get(field, "") != here.get(field, "")
    ]
