"""Whole models with and without fused nodes: launches, and the engines' times by interleaved rounds.

python benchmarks/fusion.py [--target cuda] [--models resnet50:float32 bert_base:float16 …] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import tactician
import torch
from models import export
from repeatability import race
from tactician.engine import Engine

MODELS = ("resnet50:float32", "resnet50:float16", "bert_base:float32", "bert_base:float16")


def compare(model: Path, cache: Path, target: str) -> dict[str, Any]:
    """Build ``model`` both ways over one cache and return what came of it."""

    def build(*without: str) -> Engine:
        return tactician.build(
            model, tactician.BuilderConfig(target=target, timing_cache=cache, without=without)
        )

    fused, apart = build(), build("fuse")
    kept = [f for f in fused.report.fusions if f.kept]
    return {
        "steps apart": len(apart.plan.steps),
        "steps fused": len(fused.plan.steps),
        "fused nodes": len(kept),
        "tried": len(fused.report.fusions),
        "time ratio": round(race(apart, fused), 4),
        "seconds to build": round(sum(fused.report.seconds.values()), 1),
    }


def main() -> None:
    """Compare the models one by one and print a line for each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--target", default="cuda")
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    seen = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models:
            model, _, dtype = name.partition(":")
            file = Path(folder, f"{model}-{dtype}.onnx")
            export(model, file, dtype=getattr(torch, dtype))
            seen[name] = compare(file, Path(folder, "timing.sqlite"), options.target)
            print(name, seen[name], flush=True)
            if options.json:
                options.json.write_text(json.dumps(seen, indent=1))


if __name__ == "__main__":
    main()
