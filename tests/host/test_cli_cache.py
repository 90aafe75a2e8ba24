"""`tactician cache` and `doctor`: what is kept, whether it is sound, and what is wrong with the machine."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., tuple[int, str, str]]


def fill_cache(path: Path) -> None:
    """Make a timing cache with two entries of one call."""
    from tactician.signature import OpSignature, TensorType
    from tactician.tactics.cache import TimingCache
    from tactician.tactics.cache_rows import CacheRow, fingerprint_digest
    from tactician.tactics.record import Outcome, Timing

    x = TensorType("float32", (2, 3))
    signature = OpSignature("ai.onnx::Relu", 18, (), (x,), (x,), (None,))
    fields = {"device": "Gadget 9000", "driver": "1"}
    print_ = fingerprint_digest(fields)
    rows = []
    for n in (1, 2):
        timing = Timing(n * 1e-6, n * 1e-6, n * 1e-6, 9)
        row = CacheRow(signature.key, f"acme.fast(block={n})", 1, "acme", "ab", print_, "p", Outcome.TIE)
        rows.append(msgspec.structs.replace(row, timing=timing, created=1e9 * n))
    cache = TimingCache(path)
    cache.put(signature, fields, rows)
    cache.set_incumbent(signature, fields, rows[0].tactic)


def test_cache(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "timing.sqlite"
    code, out, _ = run("cache", "info")
    assert code == 0
    assert "no timing cache yet" in out
    assert run("cache", "info", "--timing-cache", path)[0] == 1
    assert not path.exists(), "looking makes none"
    fill_cache(path)
    at = ("--timing-cache", path)
    assert json.loads(run("cache", "info", *at, "--json")[1])["devices"] == {"Gadget 9000": 2}
    assert "2 entries" in run("cache", "info", *at)[1]
    first, second = json.loads(run("cache", "ls", *at, "--json")[1])
    assert (first["tactic"], first["seconds"], first["winner"]) == ("acme.fast(block=1)", 1e-6, True)
    assert not second["winner"]
    assert len(json.loads(run("cache", "ls", "*block=2*", *at, "--json")[1])) == 1
    assert "Relu(float32[2, 3])" in run("cache", "ls", "Relu*", *at)[1]
    assert run("cache", "verify", *at)[:2] == (0, f"{path} is sound\n")


def test_a_cache_moves_to_another_machine(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "timing.sqlite"
    fill_cache(path)
    assert run("cache", "export", "all.json", "--timing-cache", path)[0] == 0
    assert run("cache", "import", "all.json", "--timing-cache", "b")[1] == "took 2 entries from all.json\n"
    assert run("cache", "import", path, "--timing-cache", "c")[1] == f"took 2 entries from {path}\n"
    assert run("cache", "import", path, "--timing-cache", "c")[1] == f"took 0 entries from {path}\n"
    assert run("cache", "import", "none.json", "--timing-cache", "c")[0] == 1


def test_a_cache_is_pruned(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "timing.sqlite"
    fill_cache(path)
    at = ("--timing-cache", path)
    assert run("cache", "prune", *at)[0] == 2
    days = (time.time() - 1.5e9) / 86_400
    assert run("cache", "prune", "--older-than", days, *at)[1] == "deleted 1 entries\n"
    assert run("cache", "prune", "--this-device", "cpu", *at)[1] == "deleted 1 entries\n"
    assert "moved to" in run("cache", "reset", *at)[1]
    assert not path.exists()


def test_a_damaged_cache(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "timing.sqlite"
    path.write_bytes(b"no database, " * 1000)
    for name in ("info", "ls", "verify"):
        code, out, err = run("cache", name, "--timing-cache", path)
        assert (code, out) == (1, "")
        assert str(path) in err
    assert run("cache", "reset", "--timing-cache", path)[0] == 0


def test_doctor_looks_at_the_cache(run: Run) -> None:
    from tactician.tactics.cache import default_path

    fill_cache(default_path())
    assert "2 entries" in run("doctor")[1]
    default_path().write_bytes(b"no database, " * 1000)
    code, out, _ = run("doctor")
    assert code == 1
    assert "fix: tactician cache reset" in out


def test_doctor(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = run("doctor", "--json")
    findings = json.loads(out)
    assert code == (1 if any(f["level"] == "FAIL" for f in findings) else 0)
    assert {"python", "tactician", "packages", "plugin builtin"} <= {f["subject"] for f in findings}
    (tmp_path / "tactician.toml").write_text("plugins = [")
    code, out, _ = run("doctor")
    assert code == 1
    assert "FAIL" in out
    assert "fix:" in out


def test_doctor_finds_a_stale_copy(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, version in (("old", "0.0.1"), ("new", "0.2.0")):
        info = tmp_path / folder / f"tk_x-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: tk-x\nVersion: {version}\n")
        (info / "entry_points.txt").write_text("[tactician]\nx = tk_x\n")
        monkeypatch.syspath_prepend(str(tmp_path / folder))
    code, out, _ = run("doctor", "--json")
    (finding,) = [f for f in json.loads(out) if f["subject"] == "tk-x"]
    assert (code, finding["level"]) == (1, "FAIL")
    assert "0.0.1" in finding["text"]
    assert "0.2.0" in finding["text"]


def test_a_check_that_fails_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    from tactician.cli import checks

    def check_broken() -> list[checks.Finding]:
        raise ValueError("oh")

    monkeypatch.setattr(checks, "CHECKS", [check_broken, checks.check_python])
    findings = checks.run_checks()
    assert (findings[0].level, findings[0].subject) == (checks.Level.WARN, "broken")
    assert len(findings) > 1
