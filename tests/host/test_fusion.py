"""Fusing in whole builds: only what is faster, unless a rule or the lock file says otherwise; and it is told."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tactician
from onnx.reference import ReferenceEvaluator
from packages import run as run_python
from tactician.config import BuilderConfig
from tactician.errors import ConfigError, LockMismatchError
from tactician.report.explain import explain, matching
from tactician.tactics.lock import LockFile
from tactician.tactics.measure import Measured
from tactician.tactics.record import CandidateRecord, Fusion, Outcome, Timing

PLUGIN = '''
"""Twice: a slow operator; alone it takes ALONE seconds, with one neighbour FUSED, less with more, and its reference REFERENCE."""
import os, time
from dataclasses import dataclass

import numpy as np
from tactician import FusedForm, Op, Tactic, hookimpl

TACTICIAN_API = (1, 2)
ALONE, FUSED, REFERENCE = (float(s) for s in os.environ.get("TWICE", "0.006 0.002 0.03").split())
NEIGHBOURS = ("ai.onnx::Relu", "ai.onnx::Add", "ai.onnx::Neg")
COMPUTE = {"Twice": lambda x: 2 * x, "Relu": lambda x: np.maximum(x, 0), "Add": np.add, "Neg": np.negative}


def reference(signature, x):
    time.sleep(REFERENCE)
    return 2 * x


@dataclass(frozen=True)
class Alone(Tactic):
    op = "twice::Twice"
    target = "cpu"

    def prepare(self, signature, device):
        def launch(inputs, outputs, workspace, stream):
            time.sleep(ALONE)
            outputs[0][...] = 2 * inputs[0]

        return launch


@dataclass(frozen=True)
class Whole(Tactic):
    op = "twice::Twice"
    target = "cpu"
    fused_forms = (FusedForm("twice::Twice", epilogue=NEIGHBOURS, prologue=NEIGHBOURS),)

    def decline(self, signature, device):
        return None if signature.parts else "is for fused nodes"

    def prepare(self, signature, device):
        parts = [(COMPUTE[p.signature.op_type], p.inputs) for p in signature.parts]

        def launch(inputs, outputs, workspace, stream):
            # each further neighbour saves far more than a loaded machine's noise
            time.sleep(FUSED * 2 / len(parts))
            results = []
            for compute, places in parts:
                results.append(compute(*(inputs[i] if i >= 0 else results[-1 - i] for i in places)))
            outputs[0][...] = results[-1]

        return launch


@hookimpl
def ops():
    return [Op("twice::Twice", lambda signature: [signature.inputs[0]], reference)]


@hookimpl
def tactics():
    return [Alone, Whole]
'''
CHAIN = "[neg] a = Neg (x) [twice] b = twice.Twice (a) [relu] c = Relu (b) [add] y = Add (c, x)"
FEEDS = {"x": np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)}

Build = Callable[..., tactician.Engine]


def model(nodes: str = CHAIN) -> onnx.ModelProto:
    return onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 21, "twice" : 1]> g (float[4, 8] x) => (float[4, 8] y) {{ {nodes} }}'
    )


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "twice.py"
    path.write_text(PLUGIN)
    monkeypatch.setenv("TWICE", "0.006 0.002 0.03")
    return path


@pytest.fixture
def build(plugin: Path, tmp_path: Path) -> Build:
    def make(nodes: str = CHAIN, **options: Any) -> tactician.Engine:
        config = BuilderConfig(
            target="cpu", plugins=("builtin", str(plugin)), timing_cache=tmp_path / "cache"
        )
        return tactician.build(model(nodes), replace(config, **options))

    return make


def steps(engine: tactician.Engine) -> list[str]:
    return [step.node for step in engine.plan.steps]


def result(engine: tactician.Engine, plugin: Path) -> Any:
    return tactician.Session(engine, plugins=[str(plugin)]).run(FEEDS)["y"]


WANTED = np.maximum(-2 * FEEDS["x"], 0) + FEEDS["x"]


def test_a_custom_operator_is_no_fence(build: Build, plugin: Path) -> None:
    engine = build()
    assert steps(engine) == ["neg+add"]
    (step,) = engine.plan.steps
    assert (step.op, step.tactic) == ("tactician.fused::Neg_Twice_Relu_Add", "twice.whole()")
    assert np.array_equal(result(engine, plugin), WANTED)
    (kept,) = (f for f in engine.report.fusions if f.kept)
    assert kept.nodes == ("neg", "twice", "relu", "add") and kept.tactic == "twice.whole()"
    assert kept.seconds is not None and kept.seconds_apart is not None and kept.seconds < kept.seconds_apart
    apart = {name: d.chosen for d in engine.report.apart for name in d.nodes}
    assert apart.keys() == {"neg", "twice", "relu", "add"} and apart["twice"] == "twice.alone()"
    stage = engine.report.stages[-1]
    assert (stage.name, stage.nodes_before, stage.nodes_after) == ("fuse", 4, 1)


def test_the_engine_runs_elsewhere(build: Build, plugin: Path, tmp_path: Path) -> None:
    build().save(tmp_path / "m.tactician")
    np.savez(tmp_path / "feeds.npz", **FEEDS)
    code = (
        "import sys, numpy as np, tactician; sys.modules['onnx'] = None\n"
        "s = tactician.Session('m.tactician', plugins=['twice.py'])\n"
        "print(s.run(dict(np.load('feeds.npz')))['y'].tobytes().hex())"
    )
    import sys

    assert run_python(sys.executable, "-c", code, cwd=tmp_path).strip() == WANTED.tobytes().hex()


def test_what_is_slower_stays_apart(build: Build, plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWICE", "0.006 0.03 0.03")
    engine = build()
    assert steps(engine) == ["neg", "twice", "relu", "add"]
    assert {f.reason for f in engine.report.fusions} == {"slower than its operators one by one"}
    assert np.array_equal(result(engine, plugin), WANTED)


def test_it_can_be_left_out(build: Build) -> None:
    engine = build(without=("fuse",))
    assert steps(engine) == ["neg", "twice", "relu", "add"]
    assert engine.report.fusions == () and "fuse" not in [s.name for s in engine.report.stages]
    with pytest.raises(ConfigError, match="did you mean 'fuse'"):
        build(without=("fuze",))


def test_a_rule_for_an_operator_keeps_it_apart(build: Build) -> None:
    engine = build(tactic_rules=(("relu", "*numpy*"),))
    assert steps(engine) == ["neg+twice", "relu", "add"]


def test_a_rule_for_the_whole_fuses_it(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWICE", "0.006 0.03 0.03")
    engine = build(tactic_rules=(("neg+relu", "twice.whole*"),))
    assert steps(engine) == ["neg+relu", "add"]
    (forced,) = (f for f in engine.report.fusions if f.kept)
    assert (forced.name, forced.reason) == ("neg+relu", "a rule or the lock file names it")
    assert [d.chosen for d in engine.report.decisions if "neg+relu" in d.nodes] == ["twice.whole()"]


def lock_of(engine: tactician.Engine, path: Path) -> Path:
    LockFile.of(engine.report.decisions, engine.plan.plugins).save(path)
    return path


def test_a_lock_file_is_replayed(
    build: Build, plugin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused, apart = build(), build(without=("fuse",))
    locks = lock_of(fused, tmp_path / "fused.json"), lock_of(apart, tmp_path / "apart.json")
    # what is faster has changed since, and the file says otherwise
    monkeypatch.setenv("TWICE", "0.006 0.03 0.03")
    for locked in (True, False):
        again = build(lock_file=locks[0], locked=locked, use_timing_cache=False)
        assert again.plan.encode() == fused.plan.encode()
        assert steps(build(lock_file=locks[1], locked=locked)) == steps(apart)
    monkeypatch.setenv("TWICE", "0.006 0.002 0.03")
    assert steps(build(lock_file=locks[1], locked=True, use_timing_cache=False)) == steps(apart)


def test_a_locked_fusion_that_is_not_offered_is_said(build: Build, plugin: Path, tmp_path: Path) -> None:
    lock = lock_of(build(), tmp_path / "lock.json")
    plugin.write_text(PLUGIN.replace("fused_forms = (FusedForm(", "unused = (FusedForm("))
    with pytest.raises(LockMismatchError, match=r"neg\+add"):
        build(lock_file=lock, locked=True)


def test_of_two_that_want_one_operator_one_gets_it(build: Build, plugin: Path) -> None:
    engine = build(
        "[one] a = twice.Twice (x) [two] b = twice.Twice (a) [neg] c = Neg (a) [add] y = Add (b, c)"
    )
    assert steps(engine) == ["one", "neg", "two+add"]
    both = build("[one] a = twice.Twice (x) [n] m = Neg (x) [two] b = twice.Twice (m) [add] y = Add (a, b)")
    assert sorted(steps(both)) in (["n+add", "one"], ["n+two", "one+add"])
    assert any("add went into another fusion" in f.reason for f in both.report.fusions if not f.kept)
    assert np.array_equal(result(both, plugin), 2 * FEEDS["x"] - 2 * FEEDS["x"])


def test_it_is_told_what_was_fused_and_what_was_not(build: Build, tmp_path: Path, capsys: Any) -> None:
    from tactician.cli import main

    engine = build()
    decisions, fusions = engine.report.decisions, engine.report.fusions
    (decision,) = matching(decisions, "relu")
    assert decision.operators == (("neg", "twice", "relu", "add"),)
    text = explain(decision, "cpu", fusions=fusions)
    assert "\n  fused: neg + twice + relu + add, " in text and " one by one: " in text
    path = tmp_path / "m.tactician"
    engine.save(path)
    assert main(["explain", str(path), "relu", "--json"]) == 0
    plain, alone = json.loads(capsys.readouterr().out)
    assert alone["nodes"] == ["relu"] and alone["candidates"]
    assert [f["name"] for f in plain["fusions"] if f["kept"]] == ["neg+add"]
    assert main(["explain", str(path), "rely"]) != 0
    assert "did you mean 'relu'" in capsys.readouterr().err


def test_stages_show_the_network_with_fused_nodes(build: Build, tmp_path: Path) -> None:
    plain = "[m] a = MatMul (x, x) [r] y = Relu (a)"
    config = BuilderConfig(
        target="cpu",
        plugins=("builtin",),
        dump_stages=tmp_path / "stages",
        tactic_rules=(("m+r", "*onnx_runtime*"),),
    )
    square = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 21]> g (float[8, 8] x) => (float[8, 8] y) {{ {plain} }}'
    )
    engine = tactician.build(square, config)
    assert steps(engine) == ["m+r"]
    (last,) = (tmp_path / "stages").glob("*_fuse.onnx")
    stage = onnx.load(last)
    onnx.checker.check_model(stage)
    x = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    (wanted,) = ReferenceEvaluator(stage).run(None, {"x": x})
    assert np.allclose(tactician.Session(engine).run({"x": x})["y"], wanted, rtol=1e-5, atol=1e-5)


def test_a_fused_kernel_that_is_wrong_is_told(build: Build, plugin: Path, tmp_path: Path) -> None:
    plugin.write_text(PLUGIN.replace("outputs[0][...] = results[-1]", "outputs[0][...] = 2 * results[-1]"))
    engine = build("[twice] a = twice.Twice (x) [relu] y = Relu (a)")
    (fusion,) = engine.report.fusions
    (reason,) = fusion.set_aside
    assert reason.startswith("twice.whole() wrong: ") and "relative error" in reason
    assert not any(step.tactic == "twice.whole()" for step in engine.plan.steps)
    text = explain(engine.report.decisions[0], "cpu", fusions=engine.report.fusions)
    assert f"\n    {reason}" in text


def test_selectors_and_hooks_see_fused_nodes(
    build: Build, plugin: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen = []

    class Selector(tactician.AlgorithmSelector):
        def select_algorithms(self, context: Any, choices: Any) -> list[int]:
            seen.append((context.name, [p.signature.op_type for p in context.signature.parts]))
            return [i for i, c in enumerate(choices) if "whole" not in c.tactic] or list(range(len(choices)))

        def report_algorithms(self, contexts: Any, choices: Any) -> None:
            pass

    config = BuilderConfig(
        target="cpu", plugins=("builtin", str(plugin)), timing_cache=plugin.with_name("cache")
    )
    with caplog.at_level(logging.WARNING):
        engine = tactician.build(model(), config, selector=Selector())
    assert seen == [("neg+add", ["Neg", "Twice", "Relu", "Add"])]
    (step,) = engine.plan.steps
    assert "whole" not in step.tactic
    assert np.array_equal(result(engine, plugin), WANTED)


def timing(seconds: float, spread: float = 0.0) -> Timing:
    return Timing(seconds, seconds - spread, seconds + spread, 5)


def weighed(
    whole: dict[str, Timing | None], part: Timing | None = None, elsewhere: tuple[str, ...] = ()
) -> dict[str, Fusion]:
    """Weigh the regions of a chain of one product and three operators; each of the four takes 10 µs by itself."""
    from fakes import FakeDevice
    from tactician.fusion import weigh
    from tactician.importer import import_model
    from tactician.network import signatures
    from tactician.regions import find_regions

    nodes = "[m] a = MatMul (x, x) [n] b = Neg (a) [r] c = Relu (b) [t] y = Neg (c)"
    network = import_model(
        onnx.parser.parse_model(
            f'<ir_version: 9, opset_import: ["" : 21]> g (float[4, 4] x) => (float[4, 4] y) {{ {nodes} }}'
        )
    )
    form = tactician.FusedForm("ai.onnx::MatMul", epilogue=("ai.onnx::Neg", "ai.onnx::Relu"))
    regions = [r for r in find_regions(network, form) if r.name in whole]
    calls = signatures(network)
    times = {calls[n].key: part or timing(10e-6) for n in calls} | {
        r.signature.key: whole[r.name] for r in regions
    }
    measured = {}
    for call in [*calls.values(), *(r.signature for r in regions)]:
        device = FakeDevice()
        if call.op_type in elsewhere:
            device.target = "other"
        record = CandidateRecord("acme.it()", "acme", Outcome.UNMEASURED, timing=times[call.key])
        measured[call.key] = (device, Measured(call, (record,), {}))
    kept, fusions = weigh(regions, calls, measured, "fake")
    assert [r.name for r in kept] == [f.name for f in fusions if f.kept]
    return {f.name: f for f in fusions}


@pytest.mark.parametrize(
    ("whole", "kept", "reasons"),
    [
        ({"m+n": timing(15e-6)}, ["m+n"], {"m+n": "faster"}),
        ({"m+n": timing(20.5e-6, 1e-6)}, ["m+n"], {"m+n": "not told apart, and one launch"}),
        ({"m+n": timing(22e-6, 1e-6)}, [], {"m+n": "slower than its operators one by one"}),
        ({"m+n": None}, [], {"m+n": "not timed"}),
        (
            {"m+n": timing(12e-6), "m+r": timing(14e-6)},
            ["m+r"],
            {"m+n": "m, n went into another fusion", "m+r": "faster"},
        ),
        (
            {"m+n": timing(12e-6), "m+r": timing(29e-6)},
            ["m+n"],
            {"m+r": "m, n went into another fusion", "m+n": "faster"},
        ),
        # the longer one saves less by what the measurement can't tell: it leaves less over
        (
            {"m+n": timing(10e-6, 1e-6), "m+r": timing(20.5e-6, 1e-6), "m+t": timing(45e-6)},
            ["m+r"],
            {"m+t": "slower than its operators one by one", "m+r": "faster"},
        ),
    ],
)
def test_what_is_weighed(whole: dict[str, Timing | None], kept: list[str], reasons: dict[str, str]) -> None:
    fusions = weighed(whole)
    assert [name for name, f in fusions.items() if f.kept] == kept
    assert {name: fusions[name].reason for name in reasons} == reasons


def test_operators_elsewhere_are_not_fused() -> None:
    fusions = weighed({"m+n": timing(1e-6)}, elsewhere=("Neg",))
    assert fusions["m+n"].reason == "some of its operators don't run on the fake"
    fusions = weighed({"m+n": timing(1e-6)}, elsewhere=("MatMul_Neg",))
    assert fusions["m+n"].reason == "no tactic for it can be chosen"
