"""What one pass over the network did: plain data, kept in the engine's report."""

from __future__ import annotations

import msgspec

FUSE = "fuse"
"""The stage that fuses nodes, as ``--without`` and reports call it; it comes after the passes, and measures."""


class StageReport(msgspec.Struct, frozen=True):
    """What one pass did to the network; ``matches`` is how many subgraphs a rewrite rule replaced."""

    name: str
    nodes_before: int
    nodes_after: int
    seconds: float
    matches: int | None = None
