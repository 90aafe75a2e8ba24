"""Fixtures of the tests that need a GPU, and the record that they leave behind."""

from __future__ import annotations

import datetime
import importlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tactician.builtin_kernels.cuda.target import CudaTarget
from tactician.config import BuilderConfig
from tactician.plugins.manager import load_plugins
from tactician.plugins.reference import reference_for
from tactician.signature import OpSignature
from tactician.tactics.admission import admit
from tactician.tactics.registry import Candidate, Registry

UNAVAILABLE = CudaTarget().unavailable()
GOLDEN_RATIO = 0.6180339887498949


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, with the reason, what can't run here."""
    if UNAVAILABLE:
        for item in items:
            if "gpu" in Path(str(item.fspath)).parts:
                item.add_marker(pytest.mark.skip(reason=UNAVAILABLE))
    else:
        items.sort(key=_spread(items).__getitem__)


def _spread(items: Sequence[pytest.Item]) -> dict[pytest.Item, float]:
    """Return places in which the cases of each test are spread evenly: a run that ends early has seen all kinds of them."""
    seen: dict[str, int] = defaultdict(int)
    places = {}
    for item in items:
        group = item.nodeid.partition("[")[0]
        places[item] = seen[group] * GOLDEN_RATIO % 1
        seen[group] += 1
    return places


@dataclass
class Tally:
    """What the tests saw of each kernel module: how many checks, and the worst error over its tolerance."""

    checks: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    worst: dict[str, tuple[float, float]] = field(default_factory=dict)
    failures: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(
        self, candidate: Candidate, error: float | None, tolerance: float | None, failure: str | None
    ) -> None:
        module = importlib.import_module("gpu.record").checked_module(type(candidate.tactic))
        self.checks[module] += 1
        if failure:
            self.failures[module].append(f"{candidate.id}: {failure}")
        if error is not None and tolerance:
            known = self.worst.get(module)
            if known is None or error / tolerance > known[0] / known[1]:
                self.worst[module] = (error, tolerance)

    def merge(self, other: dict[str, Any]) -> None:
        for module, count in other["checks"].items():
            self.checks[module] += count
        for module, failures in other["failures"].items():
            self.failures[module] += failures
        for module, (error, tolerance) in other["worst"].items():
            known = self.worst.get(module)
            if known is None or error / tolerance > known[0] / known[1]:
                self.worst[module] = (error, tolerance)


@pytest.fixture(scope="session")
def device() -> Any:
    """Return GPU 0."""
    return CudaTarget().device(0)


@pytest.fixture(scope="session")
def registry() -> Registry:
    """Return the registry with the built-in kernels alone."""
    return load_plugins(BuilderConfig(plugins=("builtin",))).registry


@pytest.fixture(scope="session")
def tally(device: Any) -> Iterator[Tally]:
    """Collect what was checked; at the end write the record if TACTICIAN_RECORD names a file."""
    tally = Tally()
    yield tally
    path = os.environ.get("TACTICIAN_RECORD")
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if path and worker:
        # the controlling process merges what its workers saw
        part = {"tally": asdict(tally), "gpu": device.name, "driver": device.facts["driver"]}
        part["versions"] = {
            k: v for k, v in device.fingerprint().items() if k in ("nvrtc", "cublas", "cudnn") and v
        }
        Path(f"{path}.{worker}").write_text(json.dumps(part))
    elif path:
        record = importlib.import_module("gpu.record")
        record.write(Path(path), device, tally, datetime.date.today().isoformat())


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Merge the tallies of parallel workers into one record."""
    path = os.environ.get("TACTICIAN_RECORD")
    if not path or "PYTEST_XDIST_WORKER" in os.environ:
        return
    parts = sorted(Path(path).parent.glob(Path(path).name + ".gw*"))
    merged = Tally()
    for part in parts:
        content = json.loads(part.read_text())
        merged.merge(content["tally"])
        part.unlink()
    if parts:
        record = importlib.import_module("gpu.record")
        today = datetime.date.today().isoformat()
        where = content["gpu"], content["driver"], content["versions"], today
        record.write_record(Path(path), *where, record.entries(merged))


Check = Callable[..., list[str]]


@pytest.fixture
def check(device: Any, registry: Registry, tally: Tally) -> Check:
    """Return a function that checks every candidate of a signature against the reference."""
    return checker(device, registry, tally)


@pytest.fixture
def check_with(device: Any, tally: Tally) -> Callable[[Registry], Check]:
    """Return a maker of such functions for the tactics of another registry."""
    return lambda registry: checker(device, registry, tally)


def checker(device: Any, registry: Registry, tally: Tally) -> Check:
    """Return a function that checks every candidate of ``registry`` and counts what it saw."""

    def run(
        signature: OpSignature,
        inputs: Sequence[np.ndarray[Any, Any] | None],
        *,
        tactics: Sequence[str] | None = None,
    ) -> list[str]:
        accepted, refused = registry.candidates(signature, device)
        raised = [r for r in refused if r.outcome == "failed"]
        assert not raised, raised
        chosen = [c for c in accepted if tactics is None or type(c.tactic).__name__ in tactics]
        assert chosen, f"no tactic accepts {signature}: " + "; ".join(
            f"{r.tactic}: {r.reason}" for r in refused
        )
        reference = _Remembered(reference_for)
        problems = []
        for candidate in chosen:
            verdict = admit(candidate, signature, device, reference, [list(inputs)])
            tally.add(candidate, verdict.error, verdict.tolerance, None if verdict.ok else verdict.reason)
            if not verdict.ok:
                problems.append(f"{candidate.id} on {signature}: {verdict.reason}")
        assert not problems, "\n".join(problems)
        return [c.id for c in chosen]

    return run


class _Remembered:
    """Computes the reference of one signature and one set of inputs once for all candidates."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make
        self._results: dict[Any, Any] = {}

    def __call__(self, signature: OpSignature) -> Callable[..., Any]:
        function = self._make(signature)

        def run(inputs: Sequence[Any]) -> Any:
            key = (signature.key, tuple(None if a is None else (a.dtype.str, a.tobytes()) for a in inputs))
            if key not in self._results:
                self._results[key] = function(inputs)
            return self._results[key]

        return run
