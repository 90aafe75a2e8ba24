"""The CUDA tactic of the example plugin is right on a GPU, and serves a whole model."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import tactician
from packages import ROOT
from signatures import make_signature
from tactician.config import BuilderConfig
from tactician.plugins.manager import load_plugins
from tactician.plugins.reference import reference_for
from tactician.tactics.admission import admit

pytestmark = pytest.mark.gpu

SCAN = ROOT / "examples" / "tactician-scan"
CONFIG = {"target": "cuda", "plugins": (str(SCAN / "tactician_scan.py"),)}


@pytest.mark.parametrize("reverse", [0, 1])
@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("shape", [(1,), (1, 31), (3, 5, 257), (2, 1024), (7, 4097), (1, 100_003)], ids=str)
def test_block_scan_adds_up(device, shape, exclusive, reverse):
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    inputs = [x, np.array(len(shape) - 1)]
    signature = make_signature("CumSum", inputs, {"exclusive": exclusive, "reverse": reverse}, constants={1})
    accepted, _ = load_plugins(BuilderConfig(**CONFIG)).registry.candidates(signature, device)
    own = [c for c in accepted if c.plugin.name == "tactician_scan"]
    assert own
    for candidate in own:
        verdict = admit(candidate, signature, device, reference_for, [inputs])
        assert verdict.ok, f"{candidate.id} on {signature}: {verdict.reason}"


def test_the_synthesizer_runs_with_it(monkeypatch):
    monkeypatch.syspath_prepend(str(SCAN))
    from synthesizer import exact, note, synthesizer

    inputs = note()
    shapes = {name: array.shape for name, array in inputs.items()}
    rules = (("phases", "tactician_scan.block_scan(threads=256, items=4)"),)
    config = BuilderConfig(**CONFIG, shapes=shapes, tactic_rules=rules)
    engine = tactician.build(synthesizer(), config)
    sys.modules.pop("synthesizer")
    assert any(step.tactic == rules[0][1] and step.target == "cuda" for step in engine.plan.steps)
    audio = tactician.Session(engine, plugins=load_plugins(config)).run(inputs)["audio"]
    reference = exact(inputs)
    assert np.linalg.norm(audio - reference) <= 1e-3 * np.linalg.norm(reference)
