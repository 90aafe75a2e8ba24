"""Numbers and tables as people read them."""

from __future__ import annotations

import math
from collections.abc import Sequence

_BINARY = ("B", "KiB", "MiB", "GiB", "TiB")


def duration(seconds: float | None) -> str:
    """Return a time in the unit that leaves one to three digits before the point: ``"7.21 µs"``."""
    if seconds is None or math.isnan(seconds):
        return "-"
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= scale:
            return f"{_three_digits(seconds / scale)} {unit}"
    return f"{_three_digits(seconds / 1e-9)} ns"


def size(nbytes: int) -> str:
    """Return a number of bytes: ``"12.3 MiB"``."""
    value, step = float(nbytes), 0
    while value >= 1024 and step < len(_BINARY) - 1:
        value, step = value / 1024, step + 1
    return f"{nbytes} B" if step == 0 else f"{value:.1f} {_BINARY[step]}"


def count(number: int) -> str:
    """Return a count: ``"954"``, ``"25.6 M"``."""
    for scale, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= 10 * scale or (unit != "k" and number >= scale):
            return f"{number / scale:.1f} {unit}"
    return str(number)


def percent(fraction: float) -> str:
    """Return a fraction as a percentage with one digit after the point."""
    return f"{100 * fraction:.1f} %"


def plural(number: int, noun: str) -> str:
    """Return a number with its noun: ``"1 node"``, ``"3 nodes"``."""
    return f"{number} {noun}" + ("" if number == 1 else "es" if noun.endswith(("s", "ch")) else "s")


def table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = (), indent: int = 0
) -> str:
    """Return a table with aligned columns.

    Parameters
    ----------
    right
        Columns to align at their right edge.
    indent
        Spaces before each line.
    """
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    text = []
    for line in lines:
        cells = [
            c.rjust(w) if i in right else c.ljust(w)
            for i, (c, w) in enumerate(zip(line, widths, strict=True))
        ]
        text.append((" " * indent + "  ".join(cells)).rstrip())
    return "\n".join(text)


def _three_digits(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"
