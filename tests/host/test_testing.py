"""The conformance kit passes what is right, and each of its checks catches what it is for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from packages import ROOT
from tactician.cli import main
from tactician.errors import DeviceError
from tactician.testing import (
    CHECKS,
    check_plugin,
    conformance_tests,
    make_signature,
    offline_device,
    resized,
    standard_signatures,
)

SCAN = ROOT / "examples" / "tactician-scan" / "tactician_scan.py"


def random(*shape: int, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def scans() -> list[Any]:
    return [make_signature("CumSum", [random(3, 700), np.array(1)], constants=[1])]


test_the_example_conforms = conformance_tests(str(SCAN), signatures=scans)


def rarely_tested() -> list[Any]:
    """Return calls that the ONNX project's tests have none of."""
    image = random(1, 8, 6, 6)
    return [
        make_signature("Cast", [random(3, 5)], {"to": 11}),
        make_signature("Conv", [image, random(8, 1, 3, 3)], {"group": 8, "pads": [1, 1, 1, 1]}),
        make_signature("Conv", [image, random(4, 8, 1, 1)]),
    ]


test_the_builtin_kernels_conform = conformance_tests("builtin", signatures=rarely_tested)


PLUGIN = """
import os, random, sys
from dataclasses import dataclass
import numpy as np
from tactician import Tactic, hookimpl
{top}


@dataclass(frozen=True)
class Negate(Tactic):
    op = {op!r}
    target = "cpu"

    block: int = 0

    @classmethod
    def candidates(cls, signature, device):
        return {candidates}

    def decline(self, signature, device):
        return {decline}

    def prepare(self, signature, device):
        {prepare}
        runs = 0

        def launch(inputs, outputs, workspace, stream):
            nonlocal runs
            runs += 1
            x, y = inputs[0], outputs[0]
            np.negative(x, out=y)
            {run}

        return launch


@hookimpl
def tactics():
    return [Negate]
"""
RIGHT = {
    "top": "",
    "op": "ai.onnx::Neg",
    "candidates": "[cls()]",
    "decline": "None if signature.is_static else 'needs static shapes'",
    "prepare": "pass",
    "run": "pass",
}

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def make(**changes: str) -> Path:
        path = tmp_path / f"plugin_{abs(hash(tuple(changes.items())))}.py"
        path.write_text(PLUGIN.format(**RIGHT | changes))
        return path

    return make


def failures(path: Path) -> dict[str, str]:
    return {r.name: f"{r.message} | {r.advice}" for r in check_plugin(str(path)) if not r.ok}


def test_what_is_right_passes(write: Write) -> None:
    results = check_plugin(str(write()))
    assert [r.name for r in results] == [c.name for c in CHECKS]
    assert [r for r in results if not r.ok] == []


@pytest.mark.parametrize(
    ("changes", "check", "words"),
    [
        ({"top": "import onnx"}, "import", "importing it imports onnx | Import heavy packages"),
        ({"op": "ai.onnx::Relu", "decline": "'needs an abacus'"}, "served", "Negate accepts none of"),
        ({"candidates": "[cls(random.getrandbits(40))]"}, "purity", "candidates answers"),
        ({"candidates": "[cls(), cls()]"}, "purity", "yields one twice"),
        ({"decline": "'no'"}, "purity", "'no' is no reason in words"),
        ({"run": "y.flat[-1] = 3"}, "numerics", "relative error"),
        ({"run": "x.flat[0] = 3"}, "numerics", "input"),
        # a tile that nobody tested: rows of 33
        ({"run": "y[..., 32:33] = 0"}, "shapes", "33"),
        ({"run": "y.flat[0] += np.float32(runs > 50)"}, "repeats", "100 runs gave 2 different results"),
        (
            {"prepare": "assert 'tactician.testing' in sys.modules, 'only where it was written'"},
            "engine",
            "in another process",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isalpha() else None,
)
def test_what_is_wrong_is_caught_and_named(
    write: Write, changes: dict[str, str], check: str, words: str
) -> None:
    found = failures(write(**changes))
    assert check in found
    assert words in found[check]


def test_the_command(capsys: pytest.CaptureFixture[str], write: Write) -> None:
    assert main(["plugins", "check", str(write())]) == 0
    assert "numerics" in capsys.readouterr().out
    assert main(["plugins", "check", str(write(run="y.flat[-1] = 3")), "--json"]) == 6
    out, err = capsys.readouterr()
    results = {r["name"]: r for r in json.loads(out)}  # one document, whatever is found
    assert results["fields"]["ok"]
    assert not results["numerics"]["ok"]
    assert "numerics" in err
    assert main(["plugins", "check"]) == 2


DATA_DEPENDENT = """
from dataclasses import dataclass
from tactician import Op, Tactic, TensorType, hookimpl
POSITIVE = Op(
    "counting::Positive",
    infer=lambda signature: [TensorType(signature.inputs[0].dtype, ("count",))],
    reference=lambda signature, x: x[x > 0],
)
@dataclass(frozen=True)
class Mask(Tactic):
    op = POSITIVE.name
    target = "cpu"
    def prepare(self, signature, device):
        return lambda inputs, outputs, workspace, stream: [{result}]
@hookimpl
def ops(): return [POSITIVE]
@hookimpl
def tactics(): return [Mask]
"""


@pytest.mark.parametrize(
    ("result", "failed"),
    [("inputs[0][inputs[0] > 0]", set()), ("inputs[0][inputs[0] > 0.5]", {"numerics", "shapes"})],
    ids=["right", "wrong"],
)
def test_output_shapes_that_depend_on_values(tmp_path: Path, result: str, failed: set[str]) -> None:
    path = tmp_path / "counting.py"
    path.write_text(DATA_DEPENDENT.format(result=result))
    found = check_plugin(str(path), signatures=lambda: [make_signature("counting::Positive", [random(4, 5)])])
    assert {r.name for r in found if not r.ok} - {"engine"} == failed


def test_a_device_that_is_not_there() -> None:
    device = offline_device("cuda", "sm_90a")
    assert device.facts["sm"] == 90
    with pytest.raises(DeviceError, match="knows no architecture 'sm_12'; write one of sm_80"):
        offline_device("cuda", "sm_12")
    with pytest.raises(DeviceError, match="target 'cpu' can't compile for a device that is not there"):
        offline_device("cpu", "x86")
    with pytest.raises(DeviceError, match="'cud' is brought by no loaded plugin; did you mean 'cuda'"):
        offline_device("cud", "sm_80")


@settings(max_examples=30, deadline=None)
@given(resized(make_signature("MatMul", [random(2, 3), random(3, 4)])))
def test_drawn_shapes_fit_together(signature: Any) -> None:
    a, b = signature.inputs
    assert a.dims[1] == b.dims[0]
    assert signature.outputs[0].dims == (a.dims[0], b.dims[1])


def test_standard_calls_are_of_the_operator_and_in_single_precision_too() -> None:
    calls = standard_signatures("ai.onnx::CumSum")
    assert {s.op for s in calls} == {"ai.onnx::CumSum"}
    assert {s.inputs[0].dtype for s in calls if s.inputs[0]} >= {"float32", "float64"}
    assert all(s.is_constant(1) for s in calls)
