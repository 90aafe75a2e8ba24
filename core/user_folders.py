"""Where the user's own files are."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return the folder for what can be found out again: ``TACTICIAN_CACHE_DIR``, or the system's place for it."""
    folder = os.environ.get("TACTICIAN_CACHE_DIR")
    if not folder:
        from platformdirs import user_cache_dir

        folder = user_cache_dir("tactician", appauthor=False)
    return Path(folder)
