"""Importing is cheap, and the run path imports neither ONNX nor a compiler."""

from __future__ import annotations

import ast
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import tactician

HEAVY = (
    "onnx",
    "onnx_ir",
    "onnxscript",
    "onnxruntime",
    "sympy",
    "cuda.core",
    "cuda.bindings",
    "nvmath",
    "cudnn",
    "rich",
    "torch",
    "hypothesis",
)
RUN_PATH = (
    "tactician.signature",
    "tactician.engine",
    "tactician.runtime.session",
    "tactician.plugins.manager",
    "tactician.plugins.reference",
    "tactician.tactics.registry",
    "tactician.tactics.tactic",
    "tactician.tactics.record",
)


def imported_by(code: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has after running ``code``."""
    script = (
        f"{code}\nimport json, sys\nprint(json.dumps(sorted({{m.partition('.')[0] for m in sys.modules}})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_tactician_imports_almost_nothing() -> None:
    modules = imported_by("import tactician")
    assert not modules & {*HEAVY, "numpy", "msgspec", "pluggy", "click"}


@pytest.mark.parametrize("module", RUN_PATH)
def test_the_run_path_imports_neither_onnx_nor_cuda(module: str) -> None:
    assert not imported_by(f"import {module}") & set(HEAVY)


def test_the_names_of_the_package_are_lazy() -> None:
    assert not imported_by(
        "from tactician import Engine, Session, Tactic, hookimpl, BuilderConfig, load"
    ) & set(HEAVY)


def test_type_checkers_see_every_name_of_the_package() -> None:
    """What stands under TYPE_CHECKING is what __getattr__ gives."""
    tree = ast.parse(Path(tactician.__file__).read_text(encoding="utf-8"))
    (block,) = (n for n in tree.body if isinstance(n, ast.If))
    seen = {a.asname: n.module for n in block.body if isinstance(n, ast.ImportFrom) for a in n.names}
    assert seen == tactician._EXPORTS


def test_finding_plugins_imports_none_and_no_numpy_of_theirs() -> None:
    code = "from tactician.plugins.manager import survey_plugins; survey_plugins()"
    assert not imported_by(code) & set(HEAVY)


def test_loading_the_builtin_plugin_imports_neither_onnx_nor_cuda() -> None:
    code = "from tactician.plugins.manager import load_plugins; load_plugins(only={'builtin'})"
    assert not imported_by(code) & set(HEAVY)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_help_imports_no_command(arguments: list[str]) -> None:
    modules = imported_by(f"from tactician.cli import main; assert main({arguments!r}) == 0")
    assert not modules & {*HEAVY, "numpy", "msgspec", "pluggy"}


@pytest.mark.parametrize(
    "command", ["build", "run", "bench", "inspect", "explain", "plugins", "tactics", "cache", "doctor"]
)
def test_help_of_a_command_imports_nothing_heavy(command: str) -> None:
    modules = imported_by(f"from tactician.cli import main; assert main([{command!r}, '--help']) == 0")
    assert not modules & {*HEAVY, "numpy"}


def test_help_is_quick() -> None:
    """Best of several, against the bare interpreter on the same busy machine."""
    script = str(Path(sys.executable).parent / "tactician")
    if not os.access(script, os.X_OK):
        pytest.skip("the command is not installed next to this interpreter")
    best = min(_seconds([script, "--help"]) for _ in range(15))
    bare = min(_seconds([sys.executable, "-c", ""]) for _ in range(3))
    assert best < max(0.150, 8 * bare), f"{1e3 * best:.0f} ms, the bare interpreter {1e3 * bare:.0f} ms"


def _seconds(command: list[str]) -> float:
    """Return the processor time that a command takes: other work on the machine does not count."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, capture_output=True, check=True, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
