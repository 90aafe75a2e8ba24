"""What can be read of this machine's processor: its name and its caches."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


@cache
def name() -> str:
    """Return the processor's name, such as ``"AMD EPYC 9654"``, or no more than its architecture."""
    try:
        lines = CPU_INFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = (
        value.strip() for key, _, value in (s.partition(":") for s in lines) if key.strip() == "model name"
    )
    return next(models, "") or platform.processor() or platform.machine()


@cache
def cache_bytes() -> dict[str, int]:
    """Return ``l1_bytes``, ``l2_bytes`` and ``l3_bytes`` of one core, as far as they can be read."""
    sizes: dict[str, int] = {}
    for folder in CACHES.glob("index*"):
        try:
            kind, level, size = (
                (folder / file).read_text(encoding="ascii").strip() for file in ("type", "level", "size")
            )
        except OSError:
            continue
        if kind != "Instruction" and size.endswith("K"):
            sizes[f"l{level}_bytes"] = int(size[:-1]) * 1024
    return dict(sorted(sizes.items()))
