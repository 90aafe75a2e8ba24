"""The project file: defaults from ``tactician.toml`` or from ``[tool.tactician]`` in a ``pyproject.toml``."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tactician.errors import ConfigError


@dataclass(frozen=True)
class Project:
    """What a project file says.

    Parameters
    ----------
    path
        The file; None where there is none.
    settings
        Option name, as on the command line without its dashes (``"timing-cache"``), to value.
    """

    path: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def names(self, key: str) -> tuple[str, ...] | None:
        """Return the list of names under ``key``, or None where the key is not there.

        Raises
        ------
        ConfigError
            If the value is no list of strings.
        """
        if key not in self.settings:
            return None
        value = self.settings[key]
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ConfigError(f"{self.path}: '{key}' must be a list of names, but it is {value!r}")
        return tuple(value)


def read_project(start: Path | None = None) -> Project:
    """Return the nearest project file at or above ``start`` (by default the working directory).

    In one folder ``tactician.toml`` comes before ``pyproject.toml``; a ``pyproject.toml`` without the table
    ``[tool.tactician]`` is passed by.

    Raises
    ------
    ConfigError
        If the file is not valid TOML.
    """
    start = (start or Path.cwd()).absolute()
    for folder in (start, *start.parents):
        own, shared = folder / "tactician.toml", folder / "pyproject.toml"
        if own.is_file():
            return Project(own, _parse(own, _read(own)))
        if shared.is_file() and "tool.tactician" in (text := _read(shared)):
            table = _parse(shared, text).get("tool", {}).get("tactician")
            if isinstance(table, dict):
                return Project(shared, table)
    return Project()


def near_matches(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the known names closest to ``name``, or an empty string."""
    close = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(repr(c) for c in close)}?" if close else ""


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ConfigError(f"can't read '{path}': {error.strerror}") from error


def _parse(path: Path, text: str) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"'{path}' is no valid TOML: {error}") from error
