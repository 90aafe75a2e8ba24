"""Whole models beside torch and ONNX Runtime: every peer in one run on one device, in interleaved rounds.

    python benchmarks/whole_models.py [CASE ...] [--peers eager graph compile autotune onnxruntime] [--dtype float16]
                                      [--without PASS ...] [--device cuda] [--cache FILE] [--json FILE]

A case is MODEL:BATCH, ``resnet50:1``. Weights and inputs are seeded; inputs lie on the device. The engine is built from the
ONNX file that torch exports; its error is ‖out − ref‖ / ‖ref‖ against the model in float32, and so is that of each peer. A
time is the median over rounds of a replayed CUDA graph, or of a call where a peer has none of its own.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tactician
import torch
from models import export, make

CASES = (
    "resnet50:1", "resnet50:32", "resnet50:128", "mobilenet_v2:1", "vit_b16:1", "vit_b16:32", "bert_base:1", "bert_base:32",
    "gpt2:1", "gpt2:8", "llama4:1", "llama4:8",
)  # fmt: skip
PEERS = ("eager", "graph", "compile", "onnxruntime")
SAMPLE_SECONDS = 2e-3
"""What one sample of a contender lasts at least: far above what events resolve."""

Call = Callable[[], Any]


@dataclass
class Contender:
    """What runs the model once, on torch's current stream; ``error`` against float32."""

    name: str
    call: Call
    error: float
    seconds_to_build: float
    samples: list[float] = field(default_factory=list)
    repeats: int = 1


class Bench:
    """Runs cases on one device."""

    def __init__(self, device: str, dtype: torch.dtype, cache: Path, without: Sequence[str]) -> None:
        self.device, self.dtype, self.cache, self.without = device, dtype, cache, tuple(without)
        self._engine_facts: dict[str, Any] = {}

    def run(self, case: str, peers: Sequence[str], rounds: int, folder: Path) -> dict[str, Any]:
        """Return a row: for each contender its time, error and the seconds until it could run."""
        name, _, batch = case.partition(":")
        model, (plain,) = make(name, int(batch))
        with torch.inference_mode():
            x = plain.to(self.device)
            wanted = model.to(self.device)(x).double()
            model = model.to(self.dtype)
            x = x.to(self.dtype) if x.is_floating_point() else x
            path = folder / f"{name}-{batch}.onnx"
            export(name, path, int(batch), self.dtype)
            makers: dict[str, Callable[[], tuple[Call, Any]]] = {
                "tactician": lambda: self._engine(path, x),
                "eager": lambda: (lambda: model(x), model(x)),
                "graph": lambda: _graph(lambda: model(x)),
                "compile": lambda: _compiled(model, x, "reduce-overhead"),
                "autotune": lambda: _compiled(model, x, "max-autotune"),
                "onnxruntime": lambda: _onnxruntime(path, x),
            }
            row: dict[str, Any] = {"case": case, "failed": {}}
            self._engine_facts = {}
            contenders = []
            for peer in ("tactician", *peers):
                start = time.perf_counter()
                try:
                    call, result = makers[peer]()
                except Exception as error:  # a peer that is not there, or can't run the model
                    row["failed"][peer] = f"{type(error).__name__}: {str(error)[:200]}"
                    continue
                error = ((result.double() - wanted).norm() / wanted.norm()).item()
                contenders.append(Contender(peer, call, error, time.perf_counter() - start))
            self._race(contenders, rounds)
        row["peers"] = {
            c.name: {
                "ms": statistics.median(c.samples) * 1e3,
                "error": c.error,
                "build_s": c.seconds_to_build,
            }
            for c in contenders
        }
        return row | self._engine_facts

    def _engine(self, path: Path, x: torch.Tensor) -> tuple[Call, Any]:
        config = tactician.BuilderConfig(target=self.device, timing_cache=self.cache, without=self.without)
        start = time.perf_counter()
        engine = tactician.build(path, config)
        facts = {"steps": len(engine.plan.steps), "seconds": dict(engine.report.seconds)}
        facts["measuring"] = dict(engine.report.measuring)
        facts["elsewhere"] = sum(s.target != self.device for s in engine.plan.steps)
        facts["built_s"] = time.perf_counter() - start
        start = time.perf_counter()
        session = tactician.Session(engine)
        (name,) = (spec.name for spec in session.inputs)
        if self.device == "cpu":
            feeds = {name: x.numpy()}
            result = torch.from_numpy(next(iter(session.run(feeds).values())))
            facts["first_result_s"] = time.perf_counter() - start
            self._engine_facts = facts
            return lambda: session.run(feeds), result
        stream = torch.cuda.current_stream()
        outputs = session.enqueue(stream, {name: x})
        stream.synchronize()
        result = torch.from_dlpack(next(iter(outputs.values()))).clone()
        facts["first_result_s"] = time.perf_counter() - start
        facts["enqueue_us"] = _seconds_to_enqueue(lambda: session.enqueue(stream, {name: x})) * 1e6
        facts["profile"] = [
            [t.op, t.node, t.tactic, t.seconds * 1e6] for t in session.profile({name: x.cpu().numpy()})
        ]
        self._engine_facts = facts
        return lambda: session.enqueue(stream, {name: x}), result

    def _race(self, contenders: Sequence[Contender], rounds: int) -> None:
        for c in contenders:
            once = min(self._time(c.call, 1) for _ in range(3))
            c.repeats = max(1, math.ceil(SAMPLE_SECONDS / max(once, 1e-6)))
        for _ in range(rounds):
            for c in contenders:
                c.samples.append(self._time(c.call, c.repeats) / c.repeats)

    def _time(self, call: Call, repeats: int) -> float:
        if self.device == "cpu":
            start = time.perf_counter()
            for _ in range(repeats):
                call()
            return time.perf_counter() - start
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e-3


def _graph(call: Call) -> tuple[Call, Any]:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        result = call()
    graph.replay()
    torch.cuda.synchronize()
    return graph.replay, result.clone()


def _seconds_to_enqueue(call: Call) -> float:
    """Return what the host spends on one call: the median of few enough that the device's queue never fills."""
    samples = []
    for _ in range(30):
        start = time.perf_counter()
        call()
        samples.append(time.perf_counter() - start)
        torch.cuda.synchronize()
    return statistics.median(samples)


def _compiled(model: Any, x: torch.Tensor, mode: str) -> tuple[Call, Any]:
    torch._dynamo.reset()
    compiled = torch.compile(model, mode=mode)
    for _ in range(4):
        result = compiled(x).clone()
    return lambda: compiled(x), result


def _onnxruntime(path: Path, x: torch.Tensor) -> tuple[Call, Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    wanted = ("CUDAExecutionProvider", {"enable_cuda_graph": "1"}) if x.is_cuda else "CPUExecutionProvider"
    session = onnxruntime.InferenceSession(str(path), options, providers=[wanted])
    if x.is_cuda and "CUDAExecutionProvider" not in session.get_providers():
        raise RuntimeError("this ONNX Runtime has no CUDA provider")
    spec, made = session.get_inputs()[0], session.get_outputs()[0]
    result = torch.empty(made.shape, dtype=_TYPES[made.type], device=x.device)
    binding = session.io_binding()
    device, index = x.device.type, x.device.index or 0
    binding.bind_input(spec.name, device, index, _NUMPY[x.dtype], tuple(x.shape), x.data_ptr())
    binding.bind_output(
        made.name, device, index, _NUMPY[result.dtype], tuple(result.shape), result.data_ptr()
    )
    for _ in range(3):
        session.run_with_iobinding(binding)
    return lambda: session.run_with_iobinding(binding), result.clone()


_TYPES = {"tensor(float16)": torch.float16, "tensor(float)": torch.float32}
_NUMPY = {torch.float16: "float16", torch.float32: "float32", torch.int64: "int64"}


def line(row: dict[str, Any]) -> str:
    """Return one row as text."""
    peers = row["peers"]
    parts = [f"{row['case']:16}"]
    parts += [f"{name} {p['ms']:8.4f} ms ({p['error']:.0e})" for name, p in peers.items()]
    others = [p["ms"] for name, p in peers.items() if name != "tactician"]
    if others and "tactician" in peers:
        parts.append(f"x{min(others) / peers['tactician']['ms']:.2f} of the best peer")
    parts += [f"{name} failed: {reason[:80]}" for name, reason in row["failed"].items()]
    facts = {k: row[k] for k in ("steps", "elsewhere", "built_s", "first_result_s", "enqueue_us") if k in row}
    return "  ".join(parts) + "  " + " ".join(f"{k} {v:.3g}" for k, v in facts.items())


def main() -> None:
    """Run the cases and print a line for each, and the mean speed-up over the best peers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", default=list(CASES))
    parser.add_argument("--peers", nargs="*", default=list(PEERS))
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--without", nargs="*", default=[])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        cache = options.cache or Path(folder, "timing.sqlite")
        bench = Bench(options.device, getattr(torch, options.dtype), cache, options.without)
        for case in options.cases:
            rows.append(bench.run(case, options.peers, options.rounds, Path(folder)))
            print(line(rows[-1]), flush=True)
            if options.json:
                options.json.write_text(json.dumps(rows, indent=1))
    ratios = []
    for row in rows:
        times = {name: p["ms"] for name, p in row["peers"].items()}
        own = times.pop("tactician", None)
        if own and times:
            ratios.append(min(times.values()) / own)
    if ratios:
        mean = math.exp(statistics.fmean(map(math.log, ratios)))
        print(f"speed-up over the best peer: geometric mean {mean:.2f}, least {min(ratios):.2f}")


if __name__ == "__main__":
    main()
