"""The timing cache keeps what it gets, says why it misses, survives four writers, refuses what is damaged."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fakes import Affine, candidate, make_tactic, plugin, signature
from tactician.errors import CacheError
from tactician.tactics import cache_file
from tactician.tactics.cache import TimingCache, default_path
from tactician.tactics.cache_rows import CacheRow, fingerprint_digest
from tactician.tactics.record import Outcome, Timing

DEVICE = {"device": "Fake 1", "driver": "1.0", "sm_clock_limit_mhz": "1980"}
POLICY = "interleaved 1"
CALL = signature()


@pytest.fixture
def cache(tmp_path: Path) -> TimingCache:
    return TimingCache(tmp_path / "new folder" / "timing.sqlite")


def row(tactic: str = "acme.affine()", **changes: object) -> CacheRow:
    values: dict[str, object] = {
        "signature": CALL.key,
        "tactic": tactic,
        "version": 1,
        "plugin": "acme",
        "digest": "d1",
        "fingerprint": fingerprint_digest(DEVICE),
        "policy": POLICY,
        "outcome": Outcome.SLOWER,
        "reason": "why",
        "timing": Timing(2e-5, 1.9e-5, 2.2e-5, 12, 1980),
        "error": 3e-7,
        "tolerance": 1e-6,
        "workspace": 4096,
        "conditions": {"sm_clock_mhz": 1980, "throttle": "0x0"},
        "created": time.time(),
    }
    return CacheRow(**{**values, **changes})  # type: ignore[arg-type]  # each value has its field's type


def test_what_is_put_comes_back(cache: TimingCache) -> None:
    rows = [row(), row("acme.other()", outcome=Outcome.WRONG, timing=None, error=float("inf"))]
    cache.put(CALL, DEVICE, rows)
    found = TimingCache(cache.path).get(CALL, DEVICE, POLICY)
    assert sorted(found, key=lambda r: r.tactic) == rows
    record = found[0].record({"tf32"})
    assert record.cached
    assert (record.timing, record.numerics, record.workspace) == (rows[0].timing, ("tf32",), 4096)


@pytest.mark.parametrize(
    ("call", "device", "policy"),
    [(signature(9), DEVICE, POLICY), (CALL, DEVICE | {"driver": "2"}, POLICY), (CALL, DEVICE, "other")],
)
def test_every_part_of_the_key_counts(
    cache: TimingCache, call: object, device: dict[str, str], policy: str
) -> None:
    cache.put(CALL, DEVICE, [row()])
    assert cache.get(call, device, policy) == []  # type: ignore[arg-type]  # a signature


def test_versions_and_digests_live_side_by_side_and_equal_keys_are_replaced(cache: TimingCache) -> None:
    cache.put(CALL, DEVICE, [row(), row(version=2), row(digest="d2")])
    cache.put(CALL, DEVICE, [row(reason="newer")])
    found = cache.get(CALL, DEVICE, POLICY)
    assert len(found) == 3
    assert [r.reason for r in found if (r.version, r.digest) == (1, "d1")] == ["newer"]


def test_a_miss_names_what_differs(cache: TimingCache) -> None:
    affine = candidate(Affine)

    def miss(device: dict[str, str] = DEVICE, policy: str = POLICY, digest: str = "d1") -> str:
        return cache.explain_miss(CALL, candidate(Affine(), plugin(digest=digest)), device, policy)

    assert miss() == "no entry for this signature"
    cache.put(CALL, DEVICE, [row("acme.other()")])
    assert miss() == "no entry for acme.affine()"
    cache.put(CALL, DEVICE, [row(affine.id)])
    assert miss(DEVICE | {"driver": "2.0"}) == "the nearest entry differs in driver: '1.0' there, '2.0' here"
    assert "plugin digest: 'd1' there, 'd9' here" in miss(digest="d9")
    assert "timing policy" in miss(policy="other")
    newer = candidate(make_tactic("Affine", version=2))
    assert "tactic version: '1' there, '2' here" in cache.explain_miss(CALL, newer, DEVICE, POLICY)
    far = {"device": "Fake 2", "driver": "9"}
    cache.put(CALL, far, [row(affine.id, fingerprint=fingerprint_digest(far))])
    assert miss(DEVICE | {"driver": "2.0"}).count(";") == 0, "the nearest of two"


def test_incumbents(cache: TimingCache) -> None:
    assert cache.incumbent(CALL, DEVICE) is None
    cache.set_incumbent(CALL, DEVICE, "acme.a()")
    cache.set_incumbents([(CALL, DEVICE, "acme.b()"), (signature(9), DEVICE, "acme.c()")])
    assert cache.incumbent(CALL, DEVICE) == "acme.b()"
    assert cache.incumbent(CALL, DEVICE | {"driver": "2"}) is None
    assert cache.incumbent(signature(9), DEVICE) == "acme.c()"


WRITER = """
import sys
from test_cache import DEVICE, row, signature
from tactician.tactics.cache import TimingCache
path, writer, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
cache = TimingCache(path)
for i in range(count):
    call = signature(i + 1)
    rows = [row(f"acme.t{writer}()", signature=call.key), row("both()", signature=call.key)]
    cache.put(call, DEVICE, rows)
    cache.set_incumbent(call, DEVICE, f"acme.t{writer}()")
"""


def test_four_processes_lose_no_row(tmp_path: Path) -> None:
    """All start on a file that is not there yet."""
    path, count = tmp_path / "timing.sqlite", 25
    here = Path(__file__).resolve().parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])}
    commands = [[sys.executable, "-c", WRITER, str(path), str(n), str(count)] for n in range(4)]
    writers = [subprocess.Popen(c, env=environment) for c in commands]
    assert [w.wait(120) for w in writers] == [0] * 4
    cache = TimingCache(path)
    assert cache.info().entries == count * 5
    assert cache.info().incumbents == count
    assert cache.verify() == []


def test_export_import_and_merge(cache: TimingCache, tmp_path: Path) -> None:
    cache.put(CALL, DEVICE, [row(created=100.0), row("acme.b()", created=100.0)])
    cache.set_incumbent(CALL, DEVICE, "acme.b()")
    assert cache.export_json(tmp_path / "a.json") == 2
    other = TimingCache(tmp_path / "other.sqlite")
    other.put(CALL, DEVICE, [row(created=200.0, reason="mine is newer")])
    assert other.import_json(tmp_path / "a.json") == 1
    assert {r.tactic: r.reason for r in other.get(CALL, DEVICE, POLICY)} == {
        "acme.affine()": "mine is newer",
        "acme.b()": "why",
    }
    assert other.incumbent(CALL, DEVICE) == "acme.b()"
    assert cache.merge(other.path) == 1
    assert cache.snapshot().timings == other.snapshot().timings
    cache.export_json(tmp_path / "b.json")
    other.export_json(tmp_path / "c.json")
    timings = [json.loads((tmp_path / name).read_bytes())["timings"] for name in ("b.json", "c.json")]
    assert timings[0] == timings[1]


@pytest.mark.parametrize(
    "damage", ["", "{", "[]", '{"timings": [{"signature": 3}]}', "format", "device", "digest"]
)
def test_a_damaged_export_takes_nothing(cache: TimingCache, tmp_path: Path, damage: str) -> None:
    file = tmp_path / "a.json"
    cache.put(CALL, DEVICE, [row()])
    cache.export_json(file)
    plain = json.loads(file.read_bytes())
    if damage == "format":
        plain["format"] = "another"
    elif damage == "device":
        plain["fingerprints"] = {}
    elif damage == "digest":
        next(iter(plain["fingerprints"].values()))["driver"] = "changed"
    file.write_text(json.dumps(plain) if damage in ("format", "device", "digest") else damage)
    other = TimingCache(tmp_path / "other.sqlite")
    with pytest.raises(CacheError):
        other.import_json(file)
    assert other.info().entries == 0


def test_merging_what_is_not_there_makes_nothing(cache: TimingCache, tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="nothing"):
        cache.merge(tmp_path / "nothing.sqlite")
    with pytest.raises(CacheError, match="nothing"):
        cache.import_json(tmp_path / "nothing.json")
    assert list(tmp_path.glob("nothing*")) == []


def test_prune(cache: TimingCache) -> None:
    other = DEVICE | {"driver": "0.9"}
    cache.put(CALL, DEVICE, [row(), row("acme.old()", created=time.time() - 1000), row(digest="d0")])
    cache.put(CALL, other, [row(fingerprint=fingerprint_digest(other))])
    cache.set_incumbent(CALL, other, "acme.affine()")
    assert cache.prune(older_than=500) == 1
    assert cache.prune(keep_plugins={"acme": "d1"}) == 1
    assert cache.prune(keep_device=DEVICE) == 1
    assert cache.get(CALL, DEVICE, POLICY) != []
    info = cache.info()
    assert (info.entries, info.fingerprints, info.incumbents) == (1, 1, 0)
    assert info.devices == {"Fake 1": 1}


def test_one_entry_that_can_not_be_read_spoils_no_other(cache: TimingCache) -> None:
    cache.put(CALL, DEVICE, [row(), row("acme.b()")])
    with sqlite3.connect(cache.path) as connection:
        connection.execute("UPDATE timings SET timing = '{' WHERE tactic = 'acme.b()'")
    connection.close()
    assert [r.tactic for r in cache.get(CALL, DEVICE, POLICY)] == ["acme.affine()"]
    assert [p for p in cache.verify() if "acme.b()" in p]


def make_database(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE mine (a)")
    connection.close()


def make_newer(path: Path) -> None:
    TimingCache(path)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()


FOREIGN = {
    "no SQLite file": lambda path: path.write_bytes(b"some text, " * 100),
    "something else": make_database,
    "format 99": make_newer,
}


@pytest.mark.parametrize("what", FOREIGN)
def test_what_is_no_timing_cache_is_refused_and_not_touched(tmp_path: Path, what: str) -> None:
    path = tmp_path / "file.sqlite"
    FOREIGN[what](path)
    before = path.read_bytes()
    with pytest.raises(CacheError, match=rf"file\.sqlite.*{what}"):
        TimingCache(path)
    assert path.read_bytes() == before


def test_a_damaged_file_is_refused_until_it_is_moved_aside(cache: TimingCache) -> None:
    cache.put(CALL, DEVICE, [row(f"acme.t{i}()") for i in range(200)])
    with sqlite3.connect(cache.path) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    connection.close()
    data = bytearray(cache.path.read_bytes())
    data[4096:] = os.urandom(len(data) - 4096)
    cache.path.write_bytes(data)
    with pytest.raises(CacheError, match=r"damaged.*reset"):
        cache.get(CALL, DEVICE, POLICY)
    moved = TimingCache.reset(cache.path)
    assert moved is not None
    assert moved.read_bytes() == data
    assert TimingCache(cache.path).get(CALL, DEVICE, POLICY) == []
    assert TimingCache.reset(cache.path.with_name("nothing")) is None


def test_a_folder_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CacheError, match="--no-timing-cache"):
        TimingCache(tmp_path / "file" / "timing.sqlite")


def test_a_locked_file_is_waited_for_and_then_reported(
    cache: TimingCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_file, "BUSY_SECONDS", 0.1)
    blocker = sqlite3.connect(cache.path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(CacheError, match="locked by another process"):
        cache.put(CALL, DEVICE, [row()])
    assert cache.get(CALL, DEVICE, POLICY) == [], "readers do not wait for writers"
    blocker.execute("COMMIT")
    blocker.close()
    cache.put(CALL, DEVICE, [row()])


def test_no_write_ahead_log_on_a_network_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mode(path: Path) -> str:
        connection = sqlite3.connect(path)
        found = str(connection.execute("PRAGMA journal_mode").fetchone()[0])
        connection.close()
        return found

    assert mode(TimingCache(tmp_path / "local.sqlite").path) == "wal"
    monkeypatch.setattr(cache_file, "is_on_network", lambda path: True)
    assert mode(TimingCache(tmp_path / "remote.sqlite").path) == "delete"


def test_network_file_systems_are_told_by_the_longest_mount(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = f"/dev/a / ext4 rw 0 0\nserver:/x {tmp_path} nfs4 rw 0 0\n/dev/b {tmp_path}/local xfs rw 0 0\n"
    read = Path.read_text
    monkeypatch.setattr(
        Path, "read_text", lambda self, **k: mounts if str(self) == "/proc/mounts" else read(self, **k)
    )
    assert cache_file.is_on_network(tmp_path / "timing.sqlite")
    assert not cache_file.is_on_network(tmp_path / "local" / "timing.sqlite")
    assert not cache_file.is_on_network(Path("/timing.sqlite"))


def test_the_default_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TACTICIAN_CACHE_DIR", str(tmp_path / "c"))
    assert default_path() == tmp_path / "c" / "timing.sqlite"
    assert TimingCache().path == tmp_path / "c" / "timing.sqlite"
    monkeypatch.delenv("TACTICIAN_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert default_path().name == "timing.sqlite"
    assert default_path().parent.name == "tactician"
