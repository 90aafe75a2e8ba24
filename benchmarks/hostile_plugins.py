"""Plugins that compete, and plugins that do harm, within a real model on a GPU.

    python benchmarks/hostile_plugins.py [--model bert_base] [--dtype float16] [--competitor triton_gemm] [--json FILE]

Shows: (1) for every call that the competitor accepts, its best time beside those of the libraries and of the built-in
kernels, and who won; (2) a kernel that is fast and wrong, one that writes out of bounds, one that does not end, one that
ruins the CUDA context and a plugin whose import raises are each set aside with the reason, and the plan is the same byte
for byte as without them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import tactician
import torch
from models import export
from tactician.engine import Engine

PLUGIN = '''
from dataclasses import dataclass
from typing import ClassVar
import numpy as np
from tactician import KernelSource, Tactic, hookimpl

SOURCE = """
extern "C" __global__ void add(const ELEMENT* x, const ELEMENT* y, ELEMENT* z, long long n) {{
    const long long i = (long long)blockIdx.x * 256 + threadIdx.x;
    {body}
}}
"""


@dataclass(frozen=True)
class Add(Tactic):
    op: ClassVar[str] = "ai.onnx::Add"
    target: ClassVar[str] = "cuda"

    def decline(self, signature, device):
        if not signature.is_static or len({{t.dims for t in signature.inputs}}) > 1:
            return "inputs of one static shape only"
        return None

    def prepare(self, signature, device):
        x = signature.inputs[0]
        element = {{2: "unsigned short", 4: "unsigned int"}}[x.itemsize]
        kernel = device.compile(KernelSource(SOURCE, "add", (("ELEMENT", element),)))

        def launch(inputs, outputs, workspace, stream):
            kernel.launch(stream, x.size // 256 + 1, 256, inputs[0], inputs[1], outputs[0], np.int64(x.size))

        return launch


@hookimpl
def tactics():
    return [Add]
'''
SPIN = (
    'unsigned long long start, now; asm volatile("mov.u64 %0, %globaltimer;" : "=l"(start)); '
    'do asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now)); while (now - start < 10000000000ull);'
)
HOSTILE = {
    "fast_and_wrong": ("if (i < n) z[i] = x[i];", "wrong", "relative error"),
    "out_of_bounds": ("z[i] = x[i < n ? i : n - 1];", "wrong", "writes out of bounds"),
    "endless": (SPIN, "failed", "did not end within 3 s"),
    "ruinous": (
        "if (i == 0) *(volatile ELEMENT*)(1ull << 60) = 1; if (i < n) z[i] = x[i];",
        "failed",
        "left the device unusable",
    ),
}
"""Body of the kernel, what is to become of it, and words of the reason."""


def main() -> int:
    """Build without and with them, and print what was seen."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="bert_base")
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--competitor", default="triton_gemm")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = folder / "model.onnx"
        export(options.model, model, dtype=getattr(torch, options.dtype))

        def build(*plugins: str) -> Engine:
            config = tactician.BuilderConfig(
                timing_cache=folder / "timing.sqlite", plugins=plugins, candidate_timeout=3.0
            )
            return tactician.build(model, config, target="cuda")

        plain = build("builtin", options.competitor)
        seen: dict[str, Any] = {"contest": contest(plain, options.competitor)}
        for line in seen["contest"]:
            print(line, flush=True)
        files = write_plugins(folder)
        states = import_states(folder / "import_raises.py")
        hostile = build("builtin", options.competitor, *files)
        seen["hostile"], good = verdicts(hostile)
        seen["import"] = states
        seen["plans equal byte for byte"] = hostile.plan.encode() == plain.plan.encode()
        for key in ("hostile", "import", "plans equal byte for byte"):
            print(f"{key}: {json.dumps(seen[key], indent=1)}", flush=True)
        if options.json:
            options.json.write_text(json.dumps(seen, indent=1))
    raised = "broken: RuntimeError: no luck" in states
    return 0 if good and raised and seen["plans equal byte for byte"] else 1


def write_plugins(folder: Path) -> list[str]:
    """Write the plugins and return the paths of those that can be imported."""
    (folder / "import_raises.py").write_text("raise RuntimeError('no luck')\n")
    for name, (body, _, _) in HOSTILE.items():
        (folder / f"{name}.py").write_text(PLUGIN.format(body=body))
    return [str(folder / f"{name}.py") for name in HOSTILE]


def import_states(path: Path) -> str:
    """Return what a build says of the plugin whose import raises: one that was asked for by name is an error."""
    from tactician.errors import PluginError
    from tactician.plugins.manager import load_plugins

    try:
        load_plugins(tactician.BuilderConfig(plugins=(str(path),)))
    except PluginError as error:
        return str(error)
    return "imported"


def verdicts(engine: Engine) -> tuple[dict[str, list[str]], bool]:
    """Return what became of each hostile plugin, and whether all is as it must be."""
    found: dict[str, list[str]] = {name: [] for name in HOSTILE}
    good = True
    for decision in (
        *engine.report.decisions,
        *engine.report.apart,
    ):  # some calls became part of a fused node
        for candidate in decision.candidates:
            if candidate.plugin in HOSTILE and candidate.outcome != "declined":
                _, outcome, words = HOSTILE[candidate.plugin]
                good = good and candidate.outcome == outcome and words in candidate.reason
                found[candidate.plugin].append(f"{candidate.outcome}: {candidate.reason}")
    return found, good and all(found.values())


def contest(engine: Engine, competitor: str) -> list[str]:
    """Return a line for each call in which the competitor was timed."""
    lines = []
    for decision in engine.report.decisions:
        best: dict[str, float] = {}
        for c in decision.candidates:
            if c.timing and c.outcome in ("chosen", "tie", "slower"):
                who = competitor if c.plugin == competitor else c.tactic.partition("(")[0]
                best[who] = min(best.get(who, c.timing.median), c.timing.median)
        if competitor in best:
            times = ", ".join(f"{w} {t * 1e6:.2f} us" for w, t in sorted(best.items(), key=lambda i: i[1]))
            lines.append(f"{len(decision.nodes)} x {decision.signature}: {decision.chosen} | {times}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
