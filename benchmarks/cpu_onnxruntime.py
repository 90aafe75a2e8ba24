"""A whole model on the CPU target beside ONNX Runtime with the same number of threads, in turn, in one process.

    python benchmarks/cpu_onnxruntime.py [--model resnet50] [--threads 2] [--rounds 40] [--bar 1.5] [--json FILE]

The ratio is the median over the rounds of time / time within a round; its 95 % interval is that of order statistics.
Exits with 1 where the ratio is above the bar.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import tactician
from models import export
from tactician.report.statistics import summarize


def seconds(run: Callable[[], object], count: int) -> float:
    """Return the median wall time of ``count`` runs."""
    samples = []
    for _ in range(count):
        start = time.perf_counter()
        run()
        samples.append(time.perf_counter() - start)
    return float(np.median(samples))


def main() -> int:
    """Build, run both, compare."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--bar", type=float, default=1.5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "model.onnx"
        export(options.model, path)
        start = time.perf_counter()
        config = tactician.BuilderConfig(threads=options.threads, timing_cache=Path(name) / "timing.sqlite")
        engine = tactician.build(path, config, target="cpu")
        build_seconds = time.perf_counter() - start
        ours = tactician.Session(engine)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = options.threads
        theirs = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    spec = ours.inputs[0]
    rng = np.random.default_rng(0)
    value = (
        rng.standard_normal(spec.type.dims)
        if spec.dtype == "float32"
        else rng.integers(0, 30000, spec.type.dims)
    )
    feed = {spec.name: value.astype(spec.type.numpy_dtype)}
    runs = (lambda: ours.run(feed), lambda: theirs.run(None, feed))
    (got,), (wanted,) = runs[0]().values(), runs[1]()
    error = float(np.linalg.norm(got.astype(np.float64) - wanted) / np.linalg.norm(wanted))
    times: list[list[float]] = [[], []]
    for round_ in range(options.rounds):
        for side in (0, 1) if round_ % 2 == 0 else (1, 0):
            times[side].append(seconds(runs[side], 3))
    ratio = summarize([a / b for a, b in zip(*times, strict=True)])
    seen = {
        "model": options.model,
        "threads": options.threads,
        "onnxruntime": onnxruntime.__version__,
        "tactician_ms": float(np.median(times[0])) * 1e3,
        "onnxruntime_ms": float(np.median(times[1])) * 1e3,
        "ratio": ratio.median,
        "ratio_95": [ratio.low, ratio.high],
        "error": error,
        "build_s": build_seconds,
    }
    for key, figure in seen.items():
        print(f"{key}: {figure}")
    if options.json:
        options.json.write_text(json.dumps(seen, indent=1))
    return 0 if ratio.median <= options.bar else 1


if __name__ == "__main__":
    sys.exit(main())
