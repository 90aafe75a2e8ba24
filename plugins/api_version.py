"""The version of the contract between tactician and its plugins, and what a plugin says of it before it is imported."""

from __future__ import annotations

import re
from pathlib import Path

API_VERSION = (1, 4)
"""Major and minor version of the contract. A minor version only adds, so that older plugins go on working.

1.1: ``filter_tactics`` may take ``tactics``. 1.2: a tactic may have ``fused_forms``. 1.3: and a
``search_space``. 1.4: an operator may be another one's ``channels_last``.
"""

MOST_BYTES = 1 << 16
"""How much of a module is looked at: the declaration stands near its top."""

_DECLARATION = re.compile(
    rb"^TACTICIAN_API[ \t]*(?::[^=\n]+)?=[ \t]*\([ \t]*(\d+)[ \t]*,[ \t]*(\d+)[ \t]*,?[ \t]*\)", re.MULTILINE
)


def written_api(module: Path) -> tuple[int, int] | None:
    """Return the version that the file of a module declares as ``TACTICIAN_API = (1, 0)``, without importing it."""
    try:
        with module.open("rb") as file:
            found = _DECLARATION.search(file.read(MOST_BYTES))
    except OSError:
        return None
    return (int(found[1]), int(found[2])) if found else None


def api_mismatch(wanted: tuple[int, int]) -> str | None:
    """Return why a plugin that was written for version ``wanted`` of the contract can't be used, or None."""
    if wanted[0] == API_VERSION[0] and wanted[1] <= API_VERSION[1]:
        return None
    here = f"this tactician has {API_VERSION[0]}.{API_VERSION[1]}"
    remedy = "install a newer version of the plugin" if wanted < API_VERSION else "upgrade tactician"
    return f"it needs version {wanted[0]}.{wanted[1]} of the plugin contract, {here}; {remedy}"
