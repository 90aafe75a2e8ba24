"""The kit as a plugin of pytest: checks are tests, with what is wrong and what to do where they fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

GOOD = """
from dataclasses import dataclass

import numpy as np
from tactician import Op, Tactic, hookimpl


@dataclass(frozen=True)
class Double(Tactic):
    op = "double::Double"
    target = "cpu"

    def prepare(self, signature, device):
        def launch(inputs, outputs, workspace, stream):
            np.multiply(inputs[0], 2, out=outputs[0])

        return launch


@hookimpl
def ops():
    return [Op("double::Double", lambda signature: [signature.inputs[0]], lambda signature, x: 2 * x)]


@hookimpl
def tactics():
    return [Double]
"""
CALLS = """
import numpy as np
from tactician.testing import make_signature


def pytest_tactician_signatures(plugin):
    x = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    return [make_signature("double::Double", [x])] if plugin == "double.py" else []
"""


def run(folder: Path, *arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error"]
    command += ["-p", "tactician.pytest_plugin", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "double.py").write_text(GOOD)
    (tmp_path / "conftest.py").write_text(CALLS)
    return tmp_path


def test_a_plugin_is_held_to_the_kit(folder: Path) -> None:
    code, printed = run(folder, "--tactician-plugin", "double.py", "-v", "-rA")
    assert (code, "12 passed" in printed) == (0, True), printed
    assert "double.py::numerics" in printed


def test_what_fails_says_what_to_do(folder: Path) -> None:
    (folder / "double.py").write_text(GOOD.replace("multiply(inputs[0], 2,", "multiply(inputs[0], 3,"))
    code, printed = run(folder, "--tactician-plugin", "double.py", "-k", "numerics or fields")
    assert code == 1
    assert "1 failed, 1 passed" in printed, printed
    assert "double.double() on double::Double(float32[3, 5])" in printed
    assert "Decline what the kernel can't do" in printed
    assert "Traceback" not in printed


def test_it_stays_out_of_the_way(folder: Path) -> None:
    (folder / "test_own.py").write_text(
        "import sys\n\n\ndef test_nothing_is_imported():\n"
        "    assert 'tactician.testing' not in sys.modules and 'onnx' not in sys.modules\n"
    )
    (folder / "conftest.py").unlink()
    code, printed = run(folder)
    assert (code, "1 passed" in printed) == (0, True), printed


def test_a_plugin_that_is_not_there_is_said(folder: Path) -> None:
    code, printed = run(folder, "--tactician-plugin", "no_such_plugin", "-k", "fields")
    assert code == 1
    assert "no_such_plugin" in printed and "Traceback" not in printed, printed
