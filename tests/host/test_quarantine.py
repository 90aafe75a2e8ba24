"""A plugin that takes the process down while it is imported is noticed, confirmed, set aside, and released again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tactician.cli import main
from tactician.config import BuilderConfig
from tactician.errors import PluginError
from tactician.plugins.discovery import Source, State, from_file
from tactician.plugins.manager import load_plugins, survey_plugins
from tactician.plugins.quarantine import Mark, Quarantine

HARMLESS = """
from tactician import hookimpl
@hookimpl
def tactics(): return []
"""
LOAD = "import sys; from tactician import BuilderConfig; from tactician.plugins.manager import load_plugins\n"
LOAD += "load_plugins(BuilderConfig(plugins=(sys.argv[1],)))"


@pytest.fixture
def crashing(tmp_path: Path) -> Path:
    path = tmp_path / "crashing.py"
    path.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    return path


def load_elsewhere(path: Path) -> int:
    return subprocess.run([sys.executable, "-c", LOAD, str(path)], capture_output=True).returncode


def config(path: Path) -> BuilderConfig:
    return BuilderConfig(plugins=(str(path),))


def test_the_second_build_sets_it_aside(crashing: Path) -> None:
    assert load_elsewhere(crashing) < 0
    with pytest.raises(PluginError, match=r"is quarantined: importing it took down a process .*\(SIGSEGV\)"):
        load_plugins(config(crashing))
    # known by now: not even in a process of its own is it imported again
    status = survey_plugins(config(crashing))["crashing"]
    assert status.state is State.QUARANTINED
    assert "tactician plugins retry crashing" in status.reason
    assert "tactician_plugin_crashing" not in sys.modules


def test_a_plugin_that_ends_the_process_quietly_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "quiet.py"
    path.write_text("import os; os._exit(0)\n")
    assert load_elsewhere(path) == 0
    with pytest.raises(PluginError, match="quarantined: .*exit code 0"):
        load_plugins(config(path))


def test_an_accident_is_none_of_its_doing(tmp_path: Path) -> None:
    path = tmp_path / "harmless.py"
    path.write_text(HARMLESS)
    quarantine = Quarantine.of_user()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    quarantine._write("harmless", Mark(gone.pid, 0.0))
    assert load_plugins(config(path)).states["harmless"].state is State.READY
    assert not list(quarantine.folder.iterdir())


def test_a_process_that_imports_it_now_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "harmless.py"
    path.write_text(HARMLESS)
    quarantine = Quarantine.of_user()
    quarantine._write("harmless", Mark(os.getppid(), 0.0))
    assert load_plugins(config(path)).states["harmless"].state is State.READY
    assert [p.name for p in quarantine.folder.iterdir()] == ["harmless.json"]


def test_new_files_are_tried_anew(crashing: Path) -> None:
    load_elsewhere(crashing)
    with pytest.raises(PluginError, match="quarantined"):
        load_plugins(config(crashing))
    crashing.write_text(HARMLESS)
    assert load_plugins(config(crashing)).states["crashing"].state is State.READY


def test_what_raises_leaves_no_mark(tmp_path: Path) -> None:
    path = tmp_path / "raising.py"
    path.write_text("raise RuntimeError('no')\n")
    with pytest.raises(PluginError, match="broken: RuntimeError: no"):
        load_plugins(config(path))
    assert not list(Quarantine.of_user().folder.iterdir())


def test_a_folder_that_can_not_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TACTICIAN_CACHE_DIR", str(tmp_path / "file" / "below"))
    path = tmp_path / "harmless.py"
    path.write_text(HARMLESS)
    assert load_plugins(config(path)).states["harmless"].state is State.READY


def test_a_damaged_mark_is_none(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path)
    (tmp_path / "acme.json").write_text("{")
    assert quarantine.verdict(Source("acme", "acme")) is None


def test_retry_releases_it(
    crashing: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load_elsewhere(crashing)
    quarantine = Quarantine.of_user()
    assert quarantine.verdict(from_file(crashing), confirm=True)
    monkeypatch.setenv("TACTICIAN_PLUGINS", str(crashing))
    assert main(["plugins", "--json"]) == 0
    (row,) = [r for r in json.loads(capsys.readouterr().out) if r["name"] == "crashing"]
    assert row["state"] == "quarantined"
    assert main(["plugins", "retry", "crashing", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"plugin": "crashing", "released": True, "forgotten": 0}
    assert survey_plugins()["crashing"].state is State.FOUND
    assert main(["plugins", "retry", "crashing"]) == 0
    assert "nothing to forget" in capsys.readouterr().out
