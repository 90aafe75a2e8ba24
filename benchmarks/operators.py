"""One operator at a time: the best of the built-in kernels beside the best of the vendor's libraries, and the limits.

    python benchmarks/operators.py GROUP ... [--only TEXT] [--without TACTIC] [--exhaustive] [--json FILE] [--rounds N]

Kernels are compiled by as many processes as there are cores. Every candidate that accepts a call is checked against
torch and timed once; then the three best of either side race in interleaved rounds of CUDA graph replays. Weights rotate
through more memory than the L2 holds; activations stay. The ratio is the median over rounds of best own over best of the
libraries; bandwidth is of the bytes that must move, as a part of that of a copy in the same run. With ``--exhaustive``
it is counted how often the best configuration is among those that an ordinary build times.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from operator_cases import GROUPS as FLOAT_GROUPS
from operator_cases import OperatorCase
from quantised_cases import QUANTISED_GROUPS
from tactician.config import BuilderConfig
from tactician.plugins.manager import Plugins, load_plugins
from tactician.signature import OpSignature
from tactician.tactics.registry import Candidate
from tactician.tactics.tactic import Tactic

GROUPS = FLOAT_GROUPS | QUANTISED_GROUPS
QUARTERS = {torch.float8_e4m3fn: "float8e4m3fn", torch.float8_e5m2: "float8e5m2"}
"""Types that other libraries can't be handed: they see bytes."""

FINALISTS = 3
PROBES = 5
HOPELESS = 4.0
"""Times the best so far from which a candidate is not timed."""
LAUNCH_SECONDS = 60e-6
"""What a single launch may take beside its kernel."""
NOISE = 1.01
"""Ratio of times up to which two configurations count as equally good."""
ROTATED_BYTES = 150 << 20
"""More than twice the L2 of an H200."""
MOST_COPIES = 64


class Bench:
    """One GPU, the registry, and what is timed on it."""

    def __init__(self, rounds: int, exhaustive: bool, without: Collection[str]) -> None:
        torch.zeros(1, device="cuda")
        torch.backends.cuda.matmul.allow_tf32 = False
        plugins = _plugins(exhaustive)
        self.registry = plugins.registry
        self.proposed = _plugins(False).registry
        self.device: Any = plugins.targets["cuda"].device(0)
        self.stream = self.device.create_stream()
        self.timer = self.device.timer()
        self.rounds = rounds
        self.without = without
        self.copy_rate = self._copy_rate()

    def compile(self, cases: Iterable[OperatorCase]) -> float:
        """Compile all candidates of ``cases`` into the user's cache, and return the seconds that it took."""
        started = time.perf_counter()
        jobs = [
            (c.tactic, case.signature(), dict(self.device.facts))
            for case in cases
            for c in self._candidates(case)[0]
            if not c.tactic.library
        ]
        with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
            list(pool.map(_compile, jobs))
        return time.perf_counter() - started

    def run(self, case: OperatorCase) -> dict[str, Any]:
        """Check and time all candidates of ``case``."""
        signature = case.signature()
        accepted, failed = self._candidates(case)
        probes, contenders, wrong = self._probe(case, signature, accepted)
        own = _finalists(probes, [c.id for c in accepted if not c.tactic.library])
        vendor = _finalists(probes, [c.id for c in accepted if c.tactic.library])
        race = [*own, *vendor]
        rounds = [self.timer.round([contenders[i] for i in race]) for _ in range(self.rounds)] if race else []
        medians = {i: statistics.median(r[n] for r in rounds) for n, i in enumerate(race)}
        row: dict[str, Any] = {"case": case.name, "wrong": wrong, "failed": failed, "probes": probes}
        best = {
            side: min(ids, key=medians.__getitem__) for side, ids in (("own", own), ("vendor", vendor)) if ids
        }
        for side, i in best.items():
            row[side] = {
                "tactic": i,
                "us": medians[i] * 1e6,
                "rate": case.operations / medians[i],
                "bytes": case.bytes / medians[i] / self.copy_rate,
            }
        if len(best) == 2:
            o, v = race.index(best["own"]), race.index(best["vendor"])
            row["ratio"] = statistics.median(r[o] / r[v] for r in rounds)
        if own:
            row["loss"] = self._loss(
                signature, {c.id: probes[c.id] for c in accepted if c.id in probes and not c.tactic.library}
            )
        return row

    def _candidates(self, case: OperatorCase) -> tuple[list[Candidate], list[str]]:
        signature = case.signature()
        accepted, refused = self.registry.candidates(signature, self.device)
        names = [c for c in accepted if not any(text in c.id for text in self.without)]
        failed = [f"{r.tactic}: {r.reason}" for r in refused if r.outcome == "failed"]
        return [c for c in names if c.tactic.numerics(signature) <= case.numerics], failed

    def _probe(
        self, case: OperatorCase, signature: OpSignature, accepted: Sequence[Candidate]
    ) -> tuple[dict[str, float], dict[str, Any], list[str]]:
        inputs = case.inputs()
        expected = case.reference(*inputs)
        output = torch.empty(case.output, device="cuda", dtype=case.dtype)
        weights = _copies(case, inputs)
        probes: dict[str, float] = {}
        contenders: dict[str, Any] = {}
        wrong, fastest = [], math.inf
        for candidate in accepted:
            launch = candidate.tactic.prepare(signature, self.device)
            workspace = self._workspace(candidate.tactic, signature)
            thunks = [self._thunk(launch, given, output, workspace) for given in weights]
            output.fill_(float("nan") if output.is_floating_point() else -1)
            self._once(thunks[0])
            error = ((output.float() - expected).norm() / expected.float().norm()).item()
            if not error <= case.tolerance:
                wrong.append(f"{candidate.id}: {error:.1e}")
                continue
            if self._once(thunks[0]) > HOPELESS * fastest + LAUNCH_SECONDS:
                continue
            contender = contenders[candidate.id] = self.timer.prepare(thunks[0], thunks)
            probes[candidate.id] = min(self.timer.round([contender])[0] for _ in range(PROBES))
            fastest = min(fastest, probes[candidate.id])
        return probes, contenders, wrong

    def _once(self, thunk: Any) -> float:
        torch.cuda.synchronize()
        started = time.perf_counter()
        thunk(self.stream)
        self.device.synchronize()
        return time.perf_counter() - started

    def _loss(self, signature: OpSignature, own: dict[str, float]) -> float:
        """Return the time of the best that an ordinary build would have timed over the best of all."""
        proposed = {c.id for c in self.proposed.candidates(signature, self.device)[0]}
        return min((t for i, t in own.items() if i in proposed), default=math.inf) / min(own.values())

    def _workspace(self, tactic: Tactic, signature: OpSignature) -> Any:
        nbytes = tactic.workspace(signature, self.device)
        if not nbytes:
            return None
        return self.device.import_tensor(torch.empty(nbytes // 4 + 1, device="cuda", dtype=torch.float32))

    def _thunk(
        self, launch: Any, inputs: Sequence[torch.Tensor], output: torch.Tensor, workspace: Any
    ) -> Any:
        arguments = [self._tensor(x) for x in inputs], [self._tensor(output)], workspace
        return lambda stream: launch(*arguments, stream)

    def _tensor(self, x: torch.Tensor) -> Any:
        if x.dtype in QUARTERS:
            return replace(self.device.import_tensor(x.view(torch.uint8)), dtype=QUARTERS[x.dtype])
        return self.device.import_tensor(x)

    def _copy_rate(self) -> float:
        """Return the bytes a second that a copy within the device's memory reads and writes: the driver's or torch's."""
        x = torch.randn(1 << 28, device="cuda")
        y = torch.empty_like(x)

        def within(work: Any) -> Any:
            def thunk(stream: Any) -> None:
                with torch.cuda.stream(torch.cuda.ExternalStream(int(stream.handle))):
                    work()

            return thunk

        ways = [
            self.timer.prepare(within(lambda: y.copy_(x))),
            self.timer.prepare(within(lambda: torch.neg(x, out=y))),
        ]
        rounds = [self.timer.round(ways) for _ in range(11)]
        return 2 * x.nbytes / min(statistics.median(way) for way in zip(*rounds, strict=True))


def line(row: dict[str, Any]) -> str:
    """Return one row as text."""
    parts = [f"{row['case']:32}"]
    for side in ("own", "vendor"):
        if side in row:
            r = row[side]
            parts.append(
                f"{side} {r['us']:8.2f} us {r['rate'] / 1e12:6.1f} T/s {100 * r['bytes']:5.1f} % of copy"
            )
    if "ratio" in row:
        parts.append(f"ratio {row['ratio']:.3f}")
    if "own" in row:
        parts.append(row["own"]["tactic"].removeprefix("builtin."))
    if row["wrong"] or row["failed"]:
        parts.append(f"WRONG {row['wrong']} FAILED {row['failed']}")
    return "  ".join(parts)


def summary(group: str, rows: Sequence[dict[str, Any]]) -> str:
    """Return the means of a group as text."""
    ratios = [r["ratio"] for r in rows if "ratio" in r]
    text = f"{group}: {len(rows)} cases"
    if ratios:
        mean = math.exp(statistics.fmean(map(math.log, ratios)))
        text += f", geometric mean {mean:.3f}, worst {max(ratios):.3f}"
    losses = [r["loss"] for r in rows if "loss" in r]
    if losses:
        found = sum(loss <= NOISE for loss in losses)
        text += f"; the best is proposed in {found} of {len(losses)}, at worst {max(losses):.3f}"
    return text


def main() -> None:
    """Run the groups that are named and print a line for each case, and means."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("groups", nargs="+", choices=list(GROUPS))
    parser.add_argument("--only", default="", help="cases whose name has this text")
    parser.add_argument(
        "--without", action="append", default=[], help="tactics that are left out: a part of their names"
    )
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--exhaustive", action="store_true", help="time the whole search space")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    bench = Bench(options.rounds, options.exhaustive, options.without)
    print(
        f"{bench.device.name}, driver {bench.device.facts['driver']}, copy {bench.copy_rate / 1e12:.2f} TB/s",
        bench.timer.conditions(),
    )
    result: dict[str, Any] = {
        "gpu": bench.device.name,
        "fingerprint": bench.device.fingerprint(),
        "copy": bench.copy_rate,
    }
    for group in options.groups:
        cases = [case for case in GROUPS[group]() if options.only in case.name]
        compiled, started, rows = bench.compile(cases), time.perf_counter(), []
        for case in cases:
            try:
                rows.append(bench.run(case))
                print(line(rows[-1]), flush=True)
            except Exception as error:
                print(f"{case.name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            torch.cuda.empty_cache()
        spent = time.perf_counter() - started
        print(summary(group, rows), f"; compiled in {compiled:.0f} s, timed in {spent:.0f} s")
        print(bench.timer.conditions(), flush=True)
        result[group] = rows
        if options.json:
            options.json.write_text(json.dumps(result, indent=1))


def _plugins(exhaustive: bool) -> Plugins:
    return load_plugins(BuilderConfig(plugins=("builtin",), exhaustive=exhaustive))


@cache
def _offline_device(arch: str) -> Any:
    return _plugins(False).targets["cuda"].offline_device(arch)


def _compile(job: tuple[Tactic, OpSignature, dict[str, Any]]) -> None:
    """Compile one tactic, in a process that has no business with the GPU; a failure shows when it is prepared."""
    tactic, signature, facts = job
    device = _offline_device(str(facts["arch"]))
    device.facts = facts
    try:
        tactic.prepare(signature, device)
    except Exception as error:
        print(f"{tactic}: {error}", file=sys.stderr)


def _copies(case: OperatorCase, inputs: list[torch.Tensor]) -> list[list[torch.Tensor]]:
    if case.weight is None:
        return [inputs]
    weight = inputs[case.weight]
    count = min(MOST_COPIES, max(1, math.ceil(ROTATED_BYTES / weight.nbytes)))
    copies = [weight, *(weight.clone() for _ in range(count - 1))]
    return [[*inputs[: case.weight], copy, *inputs[case.weight + 1 :]] for copy in copies]


def _finalists(probes: dict[str, float], ids: Iterable[str]) -> list[str]:
    return sorted((i for i in ids if i in probes), key=probes.__getitem__)[:FINALISTS]


if __name__ == "__main__":
    main()
