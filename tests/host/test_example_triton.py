"""The example with Triton kernels: its own tests pass, in Triton's interpreter and its compiler, without a GPU."""

from __future__ import annotations

import re
import sys

import pytest
from packages import ROOT, run

EXAMPLE = ROOT / "examples" / "tactician-triton"


def test_its_own_tests_pass() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    words = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
    assert re.search(r"\d+ passed", run(sys.executable, *words, cwd=EXAMPLE).splitlines()[-1])
