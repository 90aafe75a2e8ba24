"""A package that `tactician plugins new` begins can be installed, passes its own tests, and competes."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from packages import FreshEnvironment, build_distributions, copy_checkout, run
from tactician.cli import main
from tactician.errors import ConfigError
from tactician.scaffold import KINDS, create


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    return build_distributions(copy_checkout(folder / "checkout"), folder / "dist")[1]


def compilers() -> str:
    """Return where the lent packages of NVIDIA's have their libraries: they look beside themselves, not through links."""
    site = Path(sysconfig.get_path("purelib"))
    return os.pathsep.join(str(folder) for folder in site.glob("nvidia/*/lib"))


@pytest.mark.parametrize("kind", KINDS)
def test_it_passes_its_own_tests_at_once(kind, wheel, tmp_path):
    environment = FreshEnvironment(tmp_path / "venv")
    environment.install(wheel)
    cache = {"TACTICIAN_CACHE_DIR": str(tmp_path / "cache"), "LD_LIBRARY_PATH": compilers()}
    command = environment.python.with_name("tactician")
    made = json.loads(
        run(command, "plugins", "new", "acme", "--kind", kind, "--json", cwd=tmp_path, env=cache)
    )
    folder = Path(made["folder"])
    assert {"README.md", "pyproject.toml", "tests/test_tactician_acme.py"} <= set(made["files"])
    environment.install(folder)
    printed = environment.run(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", cwd=folder, env=cache
    )
    assert "passed" in printed
    assert "failed" not in printed
    (row,) = [
        r for r in run(command, "plugins", "--load", cwd=tmp_path, env=cache).splitlines() if "acme" in r
    ]
    assert " ready " in row


@pytest.mark.parametrize("kind", KINDS)
def test_what_it_writes_is_tidy(kind, tmp_path):
    if importlib.util.find_spec("ruff") is None:
        pytest.skip("ruff is not installed")
    create("acme", kind, tmp_path / "made")
    for command in (["check", "--select", "E,F,I,UP,B"], ["format", "--check"]):
        run(sys.executable, "-m", "ruff", *command, "--isolated", "--line-length", "110", tmp_path / "made")


def test_nothing_is_overwritten(tmp_path):
    create("acme", "op", tmp_path / "made")
    with pytest.raises(ConfigError, match="is there already"):
        create("acme", "op", tmp_path / "made")


@pytest.mark.parametrize("name", ["cuda", "has.dot", "1st", ""])
def test_a_name_that_no_plugin_may_have_is_refused(name, tmp_path):
    with pytest.raises(ConfigError, match="no name for a plugin"):
        create(name, "op", tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_dashes_and_capitals_become_a_module_name(tmp_path):
    files = create("Fast-Gemm", "op", tmp_path / "made")
    assert tmp_path / "made" / "tactician_fast_gemm" / "__init__.py" in files
    assert 'Fast-Gemm = "tactician_fast_gemm"' in (tmp_path / "made" / "pyproject.toml").read_text()


def test_an_unknown_kind_lists_those_there_are(capsys):
    assert main(["plugins", "new", "acme", "--kind", "rust"]) == 2
    said = capsys.readouterr().err
    assert [kind for kind in KINDS if kind not in said] == []


def test_the_command_knows_the_kinds():
    from tactician.cli import plugins_new

    assert list(plugins_new.KINDS) == list(KINDS)
    assert subprocess.run([sys.executable, "-c", "import tactician.cli.plugins_new"], check=True)
