"""What is shown of decisions, plans and times."""

from __future__ import annotations

import json
import math
from fnmatch import fnmatchcase

import numpy as np
import pytest
from engines import CHOSEN, make_decision, make_engine
from hypothesis import given, settings
from hypothesis import strategies as st
from tactician.report.accuracy import compare_outputs
from tactician.report.explain import explain, matching, pin_rule, to_plain
from tactician.report.format import count, duration, plural, size, table
from tactician.report.inspect import describe, describe_steps, fallbacks, layer_info, profile_info
from tactician.report.statistics import (
    Verdict,
    compare_apart,
    compare_paired,
    median_interval,
    summarize,
)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (2.0, "2.00 s"),
        (0.0123, "12.3 ms"),
        (7.21e-6, "7.21 µs"),
        (4.5e-7, "450 ns"),
        (None, "-"),
        (math.nan, "-"),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_sizes_and_counts() -> None:
    assert [size(n) for n in (0, 1023, 1536, 12 * 2**20)] == ["0 B", "1023 B", "1.5 KiB", "12.0 MiB"]
    assert [count(n) for n in (954, 9_999, 25_600, 25_600_000)] == ["954", "9999", "25.6 k", "25.6 M"]
    assert [plural(1, "node"), plural(2, "node"), plural(2, "pass")] == ["1 node", "2 nodes", "2 passes"]


def test_tables_align() -> None:
    assert table(("a", "bb"), (("xxx", "1"), ("y", "22")), right=(1,)) == "a    bb\nxxx   1\ny    22"


def test_explain_shows_every_candidate_and_its_fate() -> None:
    text = explain(make_decision(), "gadget")
    lines = text.splitlines()
    assert lines[0].startswith("layer1.fc, layer2.fc   MatMul")
    assert "chosen by hook:acme: why; at most 2.1 % slower" in lines[1]
    assert lines[3].split()[:2] == [">", CHOSEN], "the chosen one comes first"
    assert "7.20 µs" in lines[3]
    assert "±2.1 %" in lines[3]
    assert "1.0 MiB" in lines[3]
    assert "[cached]" in lines[3]
    assert "wrong: error 3.0e-02 > 1.0e-05" in text
    assert "failed: does not compile" in text
    assert "declined: acme.fp8 (2 candidates): needs float8 input" in text
    assert "filtered: lib.x: source 'lib' is not allowed" in text
    assert "pruned: acme.fast: beyond the limit" in text
    assert "1.33" in text, "relative to the best that is right"
    assert "RUNS ON" not in text
    assert "acme.fp8(a=1), acme.fp8(a=2)" in explain(make_decision(), "gadget", verbose=True)
    assert "RUNS ON THE CPU, NOT ON gadget" in explain(make_decision(("exotic",), "cpu"), "gadget")


@given(st.text("ab[]*?=! /.", min_size=1), st.text("ab[]*?(), ", min_size=1))
@settings(max_examples=200)
def test_the_pin_rule_matches_what_was_chosen_and_it_alone(node: str, tactic: str) -> None:
    from msgspec.structs import replace

    decision = replace(make_decision((node,)), chosen=tactic)
    node_glob, tactic_glob = (
        pin_rule(decision).split("=", 1) if "=" not in node else pin_rule(decision).rsplit("=", 1)
    )
    assert fnmatchcase(node, node_glob)
    assert fnmatchcase(tactic, tactic_glob)
    assert not fnmatchcase(node + "x", node_glob)


def test_plain_decisions_are_json() -> None:
    plain = json.loads(json.dumps(to_plain(make_decision())))
    best = {c["tactic"]: c["vs_best"] for c in plain["candidates"]}
    assert best[CHOSEN] == pytest.approx(1.0)
    assert best["other.slow()"] == pytest.approx(9.6 / 7.2)
    assert best["other.crash()"] is None
    assert plain["pin"].startswith("layer1.fc=")


def test_matching_by_node() -> None:
    decisions = make_engine().report.decisions
    assert [d.nodes for d in matching(decisions, "*2.fc")] == [("layer1.fc", "layer2.fc")]
    assert len(matching(decisions, None)) == 2
    assert matching(decisions, "nothing") == []


def test_an_engine_is_described() -> None:
    engine = make_engine()
    text = describe(engine.plan, engine.report.device)
    for part in (
        "m.onnx, 2 nodes",
        "15 parameters",
        "Gadget 9000 (driver 1.2)",
        "arch g1",
        "acme 1.5 (cdcdcdcdcdcd)",
        "x: float32[2, 3]",
        "y: float32[2, 5]",
        "512 B without reuse",
    ):
        assert part in text
    assert fallbacks(engine.plan) == [
        "1 node of acme::Exotic on the cpu, not on gadget",
        "1 copy between targets in each run",
    ]
    assert text.count("WARNING") == 2


def test_steps_with_and_without_times() -> None:
    plan = make_engine().plan
    assert "time" not in describe_steps(plan).splitlines()[0]
    lines = describe_steps(plan, [3e-6, 1e-6, 0.0]).splitlines()
    assert "75.0 %" in lines[1]
    assert "(copy)" in lines[2]


def test_the_files_that_tensorrt_tools_read() -> None:
    plan = make_engine().plan
    info = json.loads(json.dumps(layer_info(plan)))
    assert info["Bindings"] == ["x", "y"]
    assert [layer["Name"] for layer in info["Layers"]] == ["layer1.fc", "copy of h to cpu", "exotic"]
    assert info["Layers"][0]["Inputs"][0]["Dimensions"] == [2, 3]
    assert info["Layers"][1]["LayerType"] == "Reformat"
    head, *rows = profile_info(plan, [[1e-3, 2e-3, 0.0], [1e-3, 4e-3, 0.0], [1e-3, 9e-3, 0.0]])
    assert head == {"count": 3}
    assert rows[1] == pytest.approx(
        {"name": "copy of h to cpu", "timeMs": 15, "averageMs": 5, "medianMs": 4, "percentage": 100 * 15 / 18}
    )


@given(st.integers(6, 60), st.integers(0, 10))
@settings(max_examples=30, deadline=None)
def test_the_interval_holds_the_median_as_often_as_it_says(number: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    hits = 0
    for _ in range(400):
        low, high = median_interval(sorted(rng.exponential(size=number)))
        hits += low <= math.log(2) <= high
    assert hits / 400 > 0.95 - 4 * math.sqrt(0.95 * 0.05 / 400)


def test_the_interval_is_scipys() -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    samples = sorted(np.random.default_rng(1).random(50))
    expected = scipy_stats.quantile_test(samples, p=0.5).confidence_interval(0.95)
    assert median_interval(samples) == (expected.low, expected.high)


@pytest.mark.parametrize(
    ("factor", "verdict"), [(1.0, Verdict.SAME), (0.9, Verdict.FASTER), (1.1, Verdict.SLOWER)]
)
def test_verdicts(factor: float, verdict: Verdict) -> None:
    rng = np.random.default_rng(2)
    drift = rng.uniform(0.8, 1.2, 30)
    others = drift * rng.normal(1, 0.003, 30)
    these = factor * drift * rng.normal(1, 0.003, 30)
    assert compare_paired(these, others).verdict is verdict
    a, b = (summarize(t / drift) for t in (these, others))
    assert compare_apart(a, b).verdict is verdict
    assert compare_paired(these[:5], others[:5]).verdict is Verdict.UNSURE, "too few rounds to say anything"


def test_noise_gives_no_verdict() -> None:
    rng = np.random.default_rng(3)
    assert compare_paired(rng.uniform(0.5, 1.5, 8), rng.uniform(0.5, 1.5, 8)).verdict is Verdict.UNSURE


def test_summaries() -> None:
    summary = summarize([float(n) for n in range(1, 101)])
    assert (summary.median, summary.minimum, summary.p99, summary.samples) == (50.5, 1.0, 99.0, 100)


def errors(out: object, ref: object, tolerance: float | None = None) -> list[tuple[float, float, bool]]:
    return [
        (e.relative, e.max_absolute, e.is_within) for e in compare_outputs({"y": out}, {"y": ref}, tolerance)
    ]


def test_accuracy_of_floats() -> None:
    ref = np.random.default_rng(4).standard_normal((7, 9)).astype(np.float32)
    out = ref.copy()
    assert errors(out, ref) == [(0.0, 0.0, True)]
    out[3, 4] += 0.5
    ((relative, absolute, within),) = errors(out, ref)
    assert relative == pytest.approx(np.linalg.norm(out - ref) / np.linalg.norm(ref), rel=1e-6)
    assert absolute == pytest.approx(0.5, rel=1e-6)
    assert not within
    assert errors(out, ref, tolerance=1.0)[0][2]


def test_accuracy_of_special_values() -> None:
    ref = np.array([np.nan, np.inf, 1.0], np.float32)
    assert errors(ref.copy(), ref) == [(0.0, 0.0, True)]
    assert not errors(np.array([0.0, np.inf, 1.0], np.float32), ref)[0][2]
    assert not errors(np.array([np.nan, -np.inf, 1.0], np.float32), ref)[0][2]
    assert not errors(np.array([np.nan, np.inf, np.nan], np.float32), ref)[0][2]
    assert not errors(np.ones(3, np.float32), np.zeros(3, np.float32))[0][2]
    assert errors(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32))[0][2]


def test_accuracy_of_what_is_exact() -> None:
    assert errors(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5])) == [(0.25, 0.25, False)]
    assert errors(np.array(["a", "b"], object), np.array(["a", "c"]))[0][0] == 0.5
    assert errors(np.ones(3, np.float32), np.ones((3, 1), np.float32))[0][0] == math.inf
    assert errors(np.ones(3, np.float32), np.ones(3, np.float64))[0][0] == math.inf
    assert len(errors([np.ones(2), np.zeros(2)], [np.ones(2), np.zeros(2)])) == 2
    assert errors(None, None)[0][2]
