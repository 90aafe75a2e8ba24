"""The ONNX project's conformance suite on the CPU target, held against the list of what may fail and why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conformance import cases, node_cases, run_case

EXCEPTIONS: dict[str, str] = json.loads(
    Path(__file__).with_name("conformance_exceptions.json").read_text(encoding="utf-8")
)
REFERENCE_PASSES = 1866
"""Node tests of onnx 1.23.2 that its own reference evaluator passes, of 1884."""
GROUPS = 40


@pytest.mark.parametrize("group", range(GROUPS))
def test_cases_pass_but_those_listed(group: int) -> None:
    wrong = []
    for name in list(cases())[group::GROUPS]:
        verdict = run_case(name, "cpu")
        if verdict != "ok" and name not in EXCEPTIONS:
            wrong.append(f"{name}: {verdict}")
    assert not wrong, "\n".join(wrong)


def test_exceptions_are_real_cases_with_reasons() -> None:
    assert set(EXCEPTIONS) <= set(cases())
    assert all(len(reason) > 10 for reason in EXCEPTIONS.values())


def test_at_least_99_percent_of_what_the_reference_passes() -> None:
    listed = set(node_cases()) & set(EXCEPTIONS)
    missed = [name for name in listed if run_case(name, "reference") == "ok"]
    assert REFERENCE_PASSES - len(missed) >= 0.99 * REFERENCE_PASSES, missed
