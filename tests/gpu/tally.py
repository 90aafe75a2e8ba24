"""What GPU tests saw of each kernel module: written as they go, and merged into the record when they end, or after they were killed.

PYTHONPATH=tests python -m gpu.tally tests/gpu/record.json
"""

from __future__ import annotations

import datetime
import json
import os
import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu.record import checked_module, digest_of_all, entries, write_record

VERSIONS = ("nvrtc", "cublas", "cudnn")


@dataclass
class Tally:
    """How many checks of each kernel module there were, and the worst error over its tolerance."""

    part: Part | None = None
    """Where it is kept."""
    checks: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    worst: dict[str, tuple[float, float]] = field(default_factory=dict)
    failures: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, candidate: Any, error: float | None, tolerance: float | None, failure: str | None) -> None:
        """Count one check of a candidate; ``failure`` says what was wrong."""
        module = checked_module(type(candidate.tactic))
        self.checks[module] += 1
        if failure:
            self.failures[module].append(f"{candidate.id}: {failure}")
        if error is not None and tolerance:
            self._see(module, error, tolerance)

    def merge(self, other: Mapping[str, Any]) -> None:
        """Add what another process saw, as ``plain`` wrote it."""
        for module, count in other["checks"].items():
            self.checks[module] += count
        for module, failures in other["failures"].items():
            self.failures[module] += failures
        for module, (error, tolerance) in other["worst"].items():
            self._see(module, error, tolerance)

    def keep(self) -> None:
        """Write what was seen so far to its part."""
        if self.part is not None:
            self.part.write(self)

    def plain(self) -> dict[str, Any]:
        """Return all of it as JSON-ready values."""
        return {"checks": dict(self.checks), "worst": dict(self.worst), "failures": dict(self.failures)}

    def _see(self, module: str, error: float, tolerance: float) -> None:
        known = self.worst.get(module)
        if known is None or error / tolerance > known[0] / known[1]:
            self.worst[module] = (error, tolerance)


@dataclass(frozen=True)
class Part:
    """The file of one process beside the record, and where it ran; it is replaced at once, so that it is whole at any time."""

    path: Path
    header: Mapping[str, Any]

    @staticmethod
    def of(record: Path, device: Any) -> Part:
        """Return the part of this process, which runs on ``device``."""
        worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
        fingerprint = device.fingerprint()
        versions = {name: fingerprint[name] for name in VERSIONS if fingerprint.get(name)}
        header = {
            "gpu": device.name,
            "driver": str(device.facts["driver"]),
            "versions": versions,
            "sources": digest_of_all(),
        }
        return Part(Path(f"{record}.part-{worker}"), header)

    def write(self, tally: Tally) -> None:
        """Write what was seen so far."""
        new = self.path.with_name(self.path.name + ".new")
        new.write_text(json.dumps({**self.header, "tally": tally.plain()}))
        new.replace(self.path)


def merge_parts(record: Path, date: str | None = None) -> int:
    """Put what all processes saw into ``record``, delete their parts, and return how many there were.

    Parts of a run of other sources, that was killed, are only deleted.
    """
    merged, where, count, sources = Tally(), None, 0, digest_of_all()
    for part in sorted(record.parent.glob(f"{record.name}.part-*[!w]")):
        content = json.loads(part.read_text())
        if content["sources"] == sources:
            merged.merge(content["tally"])
            where, count = (content["gpu"], content["driver"], content["versions"]), count + 1
        part.unlink()
    if where is not None:
        write_record(record, *where, date or datetime.date.today().isoformat(), entries(merged))
    return count


if __name__ == "__main__":
    print(f"{merge_parts(Path(sys.argv[1]))} parts merged")
