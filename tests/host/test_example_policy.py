"""The example of a policy: its own tests pass, and installed it holds in every build of the environment."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from packages import ROOT, FreshEnvironment, build_distributions, copy_checkout, run

EXAMPLE = ROOT / "examples" / "tactician-policy"


def test_its_own_tests_pass() -> None:
    printed = run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=EXAMPLE)
    assert re.search(r"\d+ passed", printed)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> FreshEnvironment:
    folder = tmp_path_factory.mktemp("policy")
    checkout = copy_checkout(folder / "checkout")
    made = FreshEnvironment(folder / "venv")
    made.install(build_distributions(checkout, folder / "dist")[1])
    made.install(checkout / "examples" / "tactician-policy")
    return made


def test_installed_it_holds_in_every_build(environment: FreshEnvironment, tmp_path: Path) -> None:
    policy, report = tmp_path / "policy.toml", tmp_path / "choices.json"
    policy.write_text(f'deny = ["onnxruntime"]\naudit = "{tmp_path / "audit.jsonl"}"\n')
    env = {"TACTICIAN_CACHE_DIR": str(tmp_path / "cache"), "TACTICIAN_POLICY": str(policy)}
    command = environment.python.with_name("tactician")
    model = ROOT / "examples" / "digits" / "digits.onnx"
    arguments = ("build", model, "-o", "m.tactician", "--target", "cpu", "--shapes", "input:8x1x8x8")
    run(command, *arguments, "--report", report, cwd=tmp_path, env=env)
    plain = json.loads(report.read_text())
    assert plain["target"] == "cpu"
    chosen = {name: d["chosen"] for d in plain["decisions"] for name in d["nodes"]}
    assert chosen and not any("onnx_runtime" in tactic for tactic in chosen.values())
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert {name: line["tactic"] for line in lines for name in line["nodes"]} == chosen
    assert {f["name"] for f in plain["fusions"] if f["kept"]} <= set(chosen)
    run(command, *arguments, "--report", report, "--no-plugin", "policy", cwd=tmp_path, env=env)
    plain = json.loads(report.read_text())
    assert any(
        "onnx_runtime" in c["tactic"] and c["timing"] for d in plain["decisions"] for c in d["candidates"]
    )
