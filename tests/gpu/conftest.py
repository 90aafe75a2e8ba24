"""Fixtures of the tests that need a GPU, and the record that they leave behind."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gpu.tally import Part, Tally, merge_parts
from tactician.builtin_kernels.cuda.target import CudaTarget
from tactician.config import BuilderConfig
from tactician.plugins.manager import load_plugins
from tactician.plugins.reference import reference_for
from tactician.signature import OpSignature
from tactician.tactics.admission import admit
from tactician.tactics.registry import Registry

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


@pytest.fixture(scope="session")
def device() -> Any:
    """Return GPU 0."""
    return CudaTarget().device(0)


@pytest.fixture(scope="session")
def registry() -> Registry:
    """Return the registry with the built-in kernels alone."""
    return load_plugins(BuilderConfig(plugins=("builtin",))).registry


@pytest.fixture(scope="session")
def tally(device: Any) -> Tally:
    """Collect what was checked; it is kept as the tests go on if TACTICIAN_RECORD names the record's file."""
    path = os.environ.get("TACTICIAN_RECORD")
    return Tally(Part.of(Path(path), device) if path else None)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Merge what all processes saw into the record."""
    path = os.environ.get("TACTICIAN_RECORD")
    if path and "PYTEST_XDIST_WORKER" not in os.environ:
        merge_parts(Path(path))


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
        tally.keep()
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
