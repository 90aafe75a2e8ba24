"""The SQLite file under the timing cache: opening, recognizing, creating, setting aside when damaged."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tactician.errors import CacheError

APPLICATION_ID = 0x54_41_43_54  # "TACT"
SCHEMA_VERSION = 1
BUSY_SECONDS = 60.0
"""How long a writer waits for the others."""

SCHEMA = """
CREATE TABLE timings (
    signature TEXT NOT NULL,      -- OpSignature.key
    tactic TEXT NOT NULL,         -- tactic id
    version INTEGER NOT NULL,     -- Tactic.version
    plugin TEXT NOT NULL,
    digest TEXT NOT NULL,         -- content hash of the plugin
    fingerprint TEXT NOT NULL,    -- digest of the device's fields
    policy TEXT NOT NULL,         -- how it was timed
    outcome TEXT NOT NULL,
    reason TEXT NOT NULL,
    timing TEXT,                  -- JSON: median, low, high, samples, sm_clock_mhz; seconds
    error REAL,
    tolerance REAL,
    workspace INTEGER NOT NULL,   -- bytes
    conditions TEXT NOT NULL,     -- JSON: state of the machine while it was timed
    created REAL NOT NULL,        -- seconds since 1970
    PRIMARY KEY (signature, tactic, version, digest, fingerprint, policy)
) WITHOUT ROWID;
CREATE TABLE fingerprints (
    digest TEXT NOT NULL, field TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (digest, field)
) WITHOUT ROWID;
CREATE TABLE incumbents (
    signature TEXT NOT NULL, fingerprint TEXT NOT NULL, tactic TEXT NOT NULL, created REAL NOT NULL,
    PRIMARY KEY (signature, fingerprint)
) WITHOUT ROWID;
CREATE TABLE signatures (key TEXT NOT NULL PRIMARY KEY, text TEXT NOT NULL) WITHOUT ROWID;
"""

_MAGIC = b"SQLite format 3\0"
_NETWORK_FILE_SYSTEMS = ("nfs", "cifs", "smb", "9p", "afs", "lustre", "gpfs", "beegfs", "ceph", "fuse.")


class CacheFile:
    """One SQLite file that several processes may use at once; each use is a connection of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._create()

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """Open the file for reading."""
        with self._connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """Open the file for a transaction that is committed at the end, or undone if something is raised."""
        with self._connect() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        try:
            connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)
        except sqlite3.Error as error:
            raise self._explain(error) from error
        try:
            connection.execute("PRAGMA synchronous = NORMAL")
            yield connection
        except sqlite3.Error as error:
            raise self._explain(error) from error
        finally:
            connection.close()

    def _create(self) -> None:
        """Make the file and its tables where they are not there, and refuse what is no timing cache."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab"):
                pass  # says in time whether it can be written
            with self.path.open("rb") as file:
                head = file.read(len(_MAGIC))
        except OSError as error:
            raise CacheError(
                f"timing cache '{self.path}' can't be written: {error.strerror}; name another file with "
                "--timing-cache, or do without with --no-timing-cache"
            ) from error
        if head and head != _MAGIC:
            raise self._foreign("it is no SQLite file")
        with self._connect() as connection:
            self._recognize(connection)

    def _recognize(self, connection: sqlite3.Connection) -> None:
        if _number(connection, "application_id") != APPLICATION_ID:
            self._make_tables(connection)
        version = _number(connection, "user_version")
        if version != SCHEMA_VERSION:
            raise CacheError(
                f"timing cache '{self.path}' has format {version}, this version reads {SCHEMA_VERSION}; "
                "name another file with --timing-cache, or use the tactician that wrote it"
            )

    def _make_tables(self, connection: sqlite3.Connection) -> None:
        self._refuse_others_tables(connection)
        if not is_on_network(self.path):
            _retry(lambda: connection.execute("PRAGMA journal_mode = WAL"))
        connection.execute("BEGIN IMMEDIATE")
        # another process may have been first
        if _number(connection, "application_id") != APPLICATION_ID:
            for statement in SCHEMA.split(";\n"):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        connection.execute("COMMIT")

    def _refuse_others_tables(self, connection: sqlite3.Connection) -> None:
        connection.execute("BEGIN")
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        ours = _number(connection, "application_id") == APPLICATION_ID
        connection.execute("COMMIT")
        if tables and not ours:
            raise self._foreign("it is a SQLite file of something else")

    def _foreign(self, why: str) -> CacheError:
        return CacheError(
            f"'{self.path}' is no timing cache: {why}; name another file with --timing-cache, or move it "
            "away (`tactician cache reset` does, and keeps it under another name)"
        )

    def _explain(self, error: sqlite3.Error) -> CacheError:
        text = str(error)
        if "readonly" in text or "unable to open" in text:
            return CacheError(
                f"timing cache '{self.path}' can't be written ({text}); name another file with "
                "--timing-cache, or do without with --no-timing-cache"
            )
        if "locked" in text or "busy" in text:
            return CacheError(
                f"timing cache '{self.path}' was locked by another process for {BUSY_SECONDS:.0f} s "
                f"({text}); try again, or name another file with --timing-cache"
            )
        if "disk" in text and "full" in text:
            return CacheError(f"timing cache '{self.path}' can't be written ({text}); free some space")
        return CacheError(
            f"timing cache '{self.path}' is damaged ({text}); move it away (`tactician cache reset` does, "
            "and keeps it under another name), or name another file with --timing-cache"
        )


def move_aside(path: Path) -> Path:
    """Rename a damaged cache file, and SQLite's files beside it, and return the new name.

    Raises
    ------
    CacheError
        If it can't be renamed.
    """
    target = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")
    try:
        path.rename(target)
        for suffix in ("-wal", "-shm", "-journal"):
            beside = path.with_name(path.name + suffix)
            if beside.exists():
                beside.rename(target.with_name(target.name + suffix))
    except OSError as error:
        raise CacheError(f"timing cache '{path}' can't be moved to '{target}': {error.strerror}") from error
    return target


def is_on_network(path: Path) -> bool:
    """Return whether ``path`` is on a network file system, where SQLite's write-ahead log is not safe."""
    try:
        mounts = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
        folder = path.resolve().parent
    except OSError:
        return False
    best, kind = -1, ""
    for line in mounts:
        _, point, system, *_ = [*line.split(" "), "", "", ""]
        point = point.replace("\\040", " ")
        if len(point) > best and (folder == Path(point) or Path(point) in folder.parents):
            best, kind = len(point), system
    return kind.startswith(_NETWORK_FILE_SYSTEMS)


def _number(connection: sqlite3.Connection, pragma: str) -> int:
    return int(connection.execute(f"PRAGMA {pragma}").fetchone()[0])


def _retry(action: object, attempts: int = 50) -> None:
    """Repeat what SQLite does not wait for by itself."""
    assert callable(action)
    for attempt in range(attempts):
        try:
            action()
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or attempt == attempts - 1:
                raise
            time.sleep(0.02 * (attempt + 1))
        else:
            return
