"""Same input, same plan: builds repeated over one cache, from empty caches, with a lock file, and all at once.

    python benchmarks/repeatability.py [--model resnet50] [--target cuda] [--plugin PATH] [--json FILE]

Shows: (1) two builds over one cache choose the same tactic for every node, also after a slower plugin was added;
(2) builds from two empty caches differ only in recorded ties, and the engines' times differ by less than 1 %;
(3) with the lock file the plan is equal byte for byte; (4) four concurrent builds on one cache lose no row.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tactician
import torch
from models import export
from tactician.engine import Engine
from tactician.tactics.lock import LockFile

CHILD = """
import sys, tactician
from pathlib import Path
tactician.build(sys.argv[1], tactician.BuilderConfig(timing_cache=Path(sys.argv[2])), target=sys.argv[3])
"""


def choices(engine: Engine) -> dict[str, str]:
    """Return node to tactic."""
    return {step.node: step.tactic for step in engine.plan.steps}


def differences(a: Engine, b: Engine) -> dict[str, tuple[str, str]]:
    """Return the nodes whose tactics differ."""
    x, y = choices(a), choices(b)
    nodes = dict.fromkeys([*x, *y])  # a node that is fused in one build alone has no tactic in the other
    return {n: (x.get(n, ""), y.get(n, "")) for n in nodes if x.get(n) != y.get(n)}


def unexplained(a: Engine, b: Engine, changed: dict[str, Any]) -> list[str]:
    """Return the changed nodes for which neither build recorded the other's choice, or fusing them, as a tie."""
    fusions = [f for engine in (a, b) for f in engine.report.fusions if f.tie]
    fused = {name for f in fusions for name in (f.name, *f.nodes)}
    ties: dict[str, set[str]] = {}
    for engine in (a, b):
        for decision in engine.report.decisions:
            tied = {c.tactic for c in decision.candidates if c.outcome in ("tie", "chosen")}
            for node in decision.nodes:
                ties.setdefault(node, set()).update(tied if len(tied) > 1 else set())
    return [
        node for node, pair in changed.items() if node not in fused and not set(pair) <= ties.get(node, set())
    ]


def race(a: Engine, b: Engine, rounds: int = 60) -> float:
    """Return the median ratio of the whole engines' times, b over a, by interleaved rounds on the device's own timer."""
    sessions = [tactician.Session(e) for e in (a, b)]
    rng = np.random.default_rng(0)
    thunks = []
    for session in sessions:
        feeds = {s.name: rng.standard_normal(s.type.dims).astype(s.type.numpy_dtype) for s in session.inputs}
        thunks.append(session.thunk(feeds))
    timer = sessions[0].timer()
    contenders = [timer.prepare(t) for t in thunks]
    ratios = []
    for i in range(rounds):
        first, second = timer.round(contenders if i % 2 == 0 else contenders[::-1])
        ratios.append(second / first if i % 2 == 0 else first / second)
    return float(np.median(ratios))


def main() -> int:
    """Run all four and print what was seen."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--target", default="cuda")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--plugin", help="a .py plugin whose tactics are slower everywhere")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    seen: dict[str, Any] = {}

    def note(key: str, value: Any) -> None:
        seen[key] = value
        print(f"{key}: {value}", flush=True)
        if options.json:
            options.json.write_text(json.dumps(seen, indent=1))

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = folder / "model.onnx"
        export(options.model, model, dtype=getattr(torch, options.dtype))

        def build(cache: str, **extra: Any) -> Engine:
            return tactician.build(
                model, tactician.BuilderConfig(timing_cache=folder / cache, **extra), target=options.target
            )

        first = build("one.sqlite")
        second = build("one.sqlite")
        note("steps", len(first.plan.steps))
        note("fused", sum(f.kept for f in first.report.fusions))
        note("same cache: nodes that differ", differences(first, second))
        if options.plugin:
            third = build("one.sqlite", plugins=(options.plugin,))
            asked = {c.plugin for d in third.report.decisions for c in d.candidates}
            note("with a slower plugin: plugins asked", sorted(asked))
            note("with a slower plugin: nodes that differ", differences(first, third))
        other = build("two.sqlite")
        changed = differences(first, other)
        note("empty caches: nodes that differ", len(changed))
        note("empty caches: of these no recorded tie", unexplained(first, other, changed))
        note("empty caches: time ratio", race(first, other))
        lock = folder / "plan.lock.json"
        LockFile.of(first.report.decisions, first.plan.plugins).save(lock)
        locked = build("three.sqlite", lock_file=lock, locked=True)
        note("locked: plans equal byte for byte", locked.plan.encode() == first.plan.encode())
        note("concurrent", concurrent(model, folder, options.target))
    good = (
        not seen["same cache: nodes that differ"]
        and not seen["empty caches: of these no recorded tie"]
        and abs(seen["empty caches: time ratio"] - 1) < 0.01
        and seen["locked: plans equal byte for byte"]
        and seen["concurrent"]["lost"] == 0
        and not seen.get("with a slower plugin: nodes that differ")
    )
    return 0 if good else 1


def concurrent(model: Path, folder: Path, target: str) -> dict[str, int]:
    """Build four times at once on one cache and count the rows against those of one build alone."""
    caches = [folder / "shared.sqlite"] * 4
    children = [subprocess.Popen([sys.executable, "-c", CHILD, str(model), str(c), target]) for c in caches]
    codes = [child.wait() for child in children]
    alone = set(rows(folder / "one.sqlite"))
    together = set(rows(folder / "shared.sqlite"))
    return {"failed": sum(map(bool, codes)), "rows": len(together), "lost": len(alone - together)}


def rows(path: Path) -> list[tuple[str, str]]:
    """Return signature and tactic of each entry of a timing cache."""
    with sqlite3.connect(path) as connection:
        return connection.execute("SELECT signature, tactic FROM timings WHERE plugin = 'builtin'").fetchall()


if __name__ == "__main__":
    sys.exit(main())
