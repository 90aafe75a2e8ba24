"""Runs a script in another process, for checks that are about a fresh one."""

from __future__ import annotations

import os
import subprocess
import sys


def run_python(script: str, *arguments: str) -> str:
    """Run ``script`` and return what it printed.

    Raises
    ------
    AssertionError
        If it fails, with the last line that it wrote.
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, *arguments],
        capture_output=True,
        text=True,
        env=environment,
    )
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 0, f"in another process: {lines[-1] if lines else done.returncode}"
    return done.stdout
