"""A kernel that breaks the GPU's context or does not end is left out, and the build goes on in a fresh process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tactician
from tactician.plugins.manager import load_plugins
from tactician.tactics.record import Outcome

pytestmark = pytest.mark.gpu

PLUGIN = '''
from dataclasses import dataclass
from typing import ClassVar
import numpy as np
from tactician import Tactic, hookimpl
from tactician.plugins.kernel_source import KernelSource

SOURCE = """
extern "C" __global__ void negate(const float* x, float* y, int n) {{
    {body}
    for (int i = threadIdx.x; i < n; i += blockDim.x) y[i] = -x[i];
}}
"""


@dataclass(frozen=True)
class Bad(Tactic):
    op: ClassVar[str] = "ai.onnx::Neg"
    target: ClassVar[str] = "cuda"

    def prepare(self, signature, device):
        kernel = device.compile(KernelSource(SOURCE, "negate"))
        size = signature.inputs[0].size

        def launch(inputs, outputs, workspace, stream):
            kernel.launch(stream, 1, 128, inputs[0], outputs[0], np.int32(size))

        return launch


@hookimpl
def tactics():
    return [Bad]
'''
BAD_ACCESS = "if (threadIdx.x == 0) *(volatile float*)(1ull << 60) = 1.f;"
SPIN_FOR_10_SECONDS = """unsigned long long start, now;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(start));
    do asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now)); while (now - start < 10000000000ull);"""


@pytest.mark.parametrize(
    ("body", "words"),
    [(BAD_ACCESS, "left the device unusable"), (SPIN_FOR_10_SECONDS, "did not end within 3 s")],
    ids=["bad access", "hang"],
)
def test_the_build_goes_on(device: Any, tmp_path: Path, body: str, words: str) -> None:
    path = tmp_path / "bad.py"
    path.write_text(PLUGIN.format(body=body))
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 20]>\n'
        "g (float[64, 8] x) => (float[64, 8] y) { h = Exp(x)  [middle] n = Neg(h)  y = Softmax(n) }"
    )
    config = tactician.BuilderConfig(
        target="cuda",
        plugins=("builtin", str(path)),
        timing_cache=tmp_path / "timing.sqlite",
        candidate_timeout=3.0,
        without=("fuse",),
    )
    engine = tactician.build(model, config)
    (decision,) = [d for d in engine.report.decisions if "middle" in d.nodes]
    (bad,) = [c for c in decision.candidates if c.plugin == "bad"]
    assert bad.outcome is Outcome.FAILED
    assert words in bad.reason
    assert {step.target for step in engine.plan.steps} == {"cuda"}
    x = np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)
    (got,) = tactician.Session(engine, plugins=load_plugins(config)).run({"x": x}).values()
    n = -np.exp(x.astype(np.float64))
    wanted = np.exp(n) / np.exp(n).sum(-1, keepdims=True)
    assert np.linalg.norm(got - wanted) < 1e-6 * np.linalg.norm(wanted)
