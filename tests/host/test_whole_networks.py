"""Random networks through the whole build: results as ONNX Runtime's, and the same plan by lock file and by refit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import tactician
from network_generator import NetworkGenerator
from tactician.config import BuilderConfig
from tactician.siblings.merge import SiblingMerger
from tactician.tactics.lock import LockFile
from tactician.tactics.record import Fusion


def every_group(self: SiblingMerger, group: Any, measured: Any) -> Fusion:
    """Merge whatever can be merged, whether it is faster or not."""
    return Fusion(group.name, tuple(n.name for n in group.nodes), "", True, "the test says so")


@pytest.mark.parametrize("seed", range(16))
def test_a_network(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = NetworkGenerator(seed)
    model = generator.model()
    config = BuilderConfig(
        target="cpu", plugins=("builtin",), isolate=False, use_timing_cache=False, avg_timing_iterations=1, max_candidates=2
    )  # fmt: skip
    with monkeypatch.context() as patch:
        if seed % 2:
            patch.setattr(SiblingMerger, "_verdict", every_group)
        engine = tactician.build(model, config)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    x = np.random.default_rng(seed).standard_normal(generator.shape).astype(np.float32)
    wanted = session.run(None, {"x": x})
    got = tactician.Session(engine).run({"x": x})
    for (name, array), expected in zip(got.items(), wanted, strict=True):
        assert np.linalg.norm(array - expected) <= 1e-4 * np.linalg.norm(expected), name
    # the lock file and the engine itself give the same plan again, without anything measured
    lock = tmp_path / "lock.json"
    LockFile.of(engine.report.decisions, engine.plan.plugins, target="cpu").save(lock)
    assert tactician.build(model, replace(config, lock_file=lock, locked=True)).plan == engine.plan
    refitted = tactician.refit(engine, model, config)
    assert refitted.plan == engine.plan
    assert all(bytes(refitted.weights[name]) == bytes(data) for name, data in engine.weights.items())
