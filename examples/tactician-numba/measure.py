"""Measures what the README says: builds of the digits model with and without compiled kernels, and its speed.

python examples/tactician-numba/measure.py
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnxruntime
from tactician import BuilderConfig, Engine, Session, build
from tactician_numba import processor

MODEL = Path(__file__).parents[1] / "digits" / "digits.onnx"
BATCH = 32
ROUNDS, CALLS, WARM_UP = 15, 30, 10


def main() -> None:
    names = ("tactician-numba", "numba", "llvmlite", "numpy", "onnxruntime")
    print(f"{processor.name()}, {len(os.sched_getaffinity(0))} cores")
    print(", ".join(f"{name} {version(name)}" for name in names))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["NUMBA_CACHE_DIR"] = folder  # read when Numba is imported: not before the first build
        (first, numba), (again, _) = timed_build("numba"), timed_build("numba")
    print(f"build for numba: {first:.1f} s, with kernels already compiled {again:.1f} s")
    _, cpu = timed_build("cpu")

    images = np.random.default_rng(0).standard_normal((BATCH, 1, 8, 8)).astype(np.float32)
    peer = onnxruntime_session()
    sessions = {"numba": Session(numba), "cpu": Session(cpu)}
    runs: dict[str, Callable[[], object]] = {
        name: lambda session=session: session.run({"input": images}) for name, session in sessions.items()
    }
    runs["ONNX Runtime"] = lambda: peer.run(None, {"input": images})
    for name, times in race(runs).items():
        low, _, high = statistics.quantiles(times, n=4)
        print(
            f"{name:13} {statistics.median(times):.2f} ms for {BATCH} images (quartiles {low:.2f}, {high:.2f})"
        )
    ours, theirs = sessions["numba"].run({"input": images})["logits"], peer.run(None, {"input": images})[0]
    print(f"relative difference {np.linalg.norm(ours - theirs) / np.linalg.norm(theirs):.1e}")


def timed_build(target: str) -> tuple[float, Engine]:
    """Build with nothing remembered; return the seconds and the engine."""
    config = BuilderConfig(shapes={"input": (BATCH, 1, 8, 8)}, target=target, use_timing_cache=False)
    start = time.perf_counter()
    engine = build(MODEL, config)
    return time.perf_counter() - start, engine


def onnxruntime_session() -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    return onnxruntime.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])


def race(runs: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Return milliseconds of one run in each round; all take part in every round, in blocks."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            for _ in range(WARM_UP):  # waiting threads of the one before spin for a while
                run()
            start = time.perf_counter()
            for _ in range(CALLS):
                run()
            times[name].append((time.perf_counter() - start) / CALLS * 1e3)
    return times


if __name__ == "__main__":
    main()
