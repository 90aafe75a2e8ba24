"""Whole models on every target against ONNX Runtime: relative error, in fp32 and fp16.

    python benchmarks/agreement.py [--models resnet50 bert_base] [--targets cpu cuda] [--json FILE]

The reference is ONNX Runtime's CPU provider on the fp32 model with the same weights. Bars: 1e-4 in fp32 (tf32 off),
5e-3 in fp16. Exits with 3 where a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import tactician
import torch
from models import export
from tactician.errors import TacticianError

BARS = {"float32": 1e-4, "float16": 5e-3}


def run_case(name: str, dtype: str, target: str, folder: Path, cache: Path) -> dict[str, Any]:
    """Build ``name`` in ``dtype`` for ``target``, run it, and compare."""
    path = folder / f"{name}_{dtype}.onnx"
    if not path.exists():
        export(name, path, dtype=getattr(torch, dtype))
    feeds, wanted = reference(name, folder)
    start = time.perf_counter()
    engine = tactician.build(path, tactician.BuilderConfig(timing_cache=cache), target=target)
    seconds = time.perf_counter() - start
    session = tactician.Session(engine)
    spec = session.inputs[0]
    feed = {spec.name: feeds.astype(spec.type.numpy_dtype)}
    (got,) = session.run(feed).values()
    samples = []
    for _ in range(20):
        start = time.perf_counter()
        session.run(feed)
        samples.append(time.perf_counter() - start)
    error = float(np.linalg.norm(got.astype(np.float64) - wanted) / np.linalg.norm(wanted))
    elsewhere = sum(1 for s in engine.plan.steps if s.target != target)
    tactics: dict[str, int] = {}
    for step in engine.plan.steps:
        tactics[step.tactic.partition("(")[0]] = tactics.get(step.tactic.partition("(")[0], 0) + 1
    return {
        "model": name,
        "dtype": dtype,
        "target": target,
        "error": error,
        "bar": BARS[dtype],
        "build_s": seconds,
        "run_ms": float(np.median(samples)) * 1e3,
        "steps": len(engine.plan.steps),
        "elsewhere": elsewhere,
        "tactics": tactics,
        "seconds": engine.report.seconds,
    }


def reference(name: str, folder: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the input and what ONNX Runtime makes of it in fp32."""
    path = folder / f"{name}_float32.onnx"
    if not path.exists():
        export(name, path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    spec = session.get_inputs()[0]
    rng = np.random.default_rng(1)
    value = (
        rng.integers(0, 30000, spec.shape)
        if "int" in spec.type
        else rng.standard_normal(spec.shape).astype(np.float32)
    )
    return value, session.run(None, {spec.name: value})[0].astype(np.float64)


def main() -> int:
    """Run all cases and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", nargs="+", default=["resnet50", "bert_base"])
    parser.add_argument("--targets", nargs="+", default=["cpu", "cuda"])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "float16"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models:
            for target in options.targets:
                for dtype in options.dtypes:
                    try:
                        rows.append(
                            run_case(name, dtype, target, Path(folder), Path(folder) / "timing.sqlite")
                        )
                    except TacticianError as error:
                        rows.append({"model": name, "dtype": dtype, "target": target, "failure": str(error)})
                    print(json.dumps(rows[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))
    for r in rows:
        verdict = "FAILED" if "failure" in r else "ok" if r["error"] < r["bar"] else "ABOVE THE BAR"
        figures = r.get("failure", "")[:200] or (
            f"error {r['error']:.2e} (bar {r['bar']:.0e})  {r['run_ms']:.3f} ms  build {r['build_s']:.1f} s  "
            f"{r['steps']} steps, {r['elsewhere']} elsewhere"
        )
        print(f"{r['model']:10s} {r['dtype']:8s} {r['target']:5s} {verdict:14s} {figures}")
    return 0 if all("failure" not in r and r["error"] < r["bar"] for r in rows) else 3


if __name__ == "__main__":
    sys.exit(main())
