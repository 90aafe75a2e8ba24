"""Which plugins may be loaded: allow and deny lists of the caller, the environment and the project file."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from tactician.config import BuilderConfig
from tactician.errors import ConfigError, UnknownPluginError
from tactician.plugins.discovery import is_path
from tactician.project import Project, near_matches, read_project


@dataclass(frozen=True)
class Level:
    """The lists of one origin; ``allow`` is None where it has no opinion, ``files`` are paths named there."""

    origin: str
    allow: frozenset[str] | None
    deny: frozenset[str]
    files: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Policy:
    """Lists by origin, the one that decides first coming first: caller, environment, project file."""

    levels: tuple[Level, ...]

    @classmethod
    def of(cls, config: BuilderConfig, project: Project | None = None) -> Policy:
        """Return the policy that ``config``, the environment and the project file make together.

        Raises
        ------
        ConfigError
            If the project file is damaged, or names a plugin file: what lies in a parent folder runs no code.
        """
        project = read_project() if project is None else project
        disabled = project.names("disable-plugins") or ()
        return cls(
            (
                _level("the caller (--plugin, --no-plugin)", config.plugins, config.disabled_plugins),
                _level(
                    "the environment (TACTICIAN_PLUGINS, TACTICIAN_DISABLE_PLUGINS)",
                    _environment("TACTICIAN_PLUGINS"),
                    _environment("TACTICIAN_DISABLE_PLUGINS") or (),
                ),
                _project_level(project, disabled),
            )
        )

    @property
    def files(self) -> tuple[Path, ...]:
        """Plugin files to load, each once."""
        return tuple(dict.fromkeys(file for level in self.levels for file in level.files))

    @property
    def requested(self) -> frozenset[str]:
        """Names that the caller asked for: if one of these can't be loaded, that is an error."""
        first = self.levels[0]
        return (first.allow or frozenset()) | {file.stem for file in first.files}

    def refusal(self, name: str) -> str | None:
        """Return why plugin ``name`` is disabled, or None. The first origin with an opinion decides."""
        for level in self.levels:
            if name in level.deny:
                return f"disabled by {level.origin}"
            if level.allow is not None:
                return None if name in level.allow else f"not in the allow list of {level.origin}"
        return None

    def check_names(self, known: Collection[str]) -> None:
        """Refuse names of plugins that are not there.

        Environment and project file are shared between machines: they may disable what is not installed.

        Raises
        ------
        UnknownPluginError
            With near matches.
        """
        for number, level in enumerate(self.levels):
            for name in sorted((level.allow or frozenset()) | (level.deny if number == 0 else frozenset())):
                if name not in known:
                    there = ", ".join(sorted(known)) or "none"
                    raise UnknownPluginError(
                        f"plugin '{name}', named by {level.origin}, is not installed"
                        f"{near_matches(name, known)} (installed: {there})"
                    )


def _level(origin: str, allow: tuple[str, ...] | None, deny: tuple[str, ...]) -> Level:
    names = frozenset(n for n in allow or () if not is_path(n))
    files = tuple(Path(n).expanduser().absolute() for n in allow or () if is_path(n))
    # a list of files alone adds them to what is installed; an empty list allows nothing
    restricts = allow is not None and (bool(names) or not files)
    return Level(origin, names | {f.stem for f in files} if restricts else None, frozenset(deny), files)


def _project_level(project: Project, disabled: tuple[str, ...]) -> Level:
    level = _level(f"the project file {project.path}", project.names("plugins"), disabled)
    if level.files:
        raise ConfigError(
            f"{project.path}: 'plugins' names the file '{level.files[0]}', but a project file can name "
            "installed plugins only; load files with --plugin or TACTICIAN_PLUGINS"
        )
    return level


def _environment(variable: str) -> tuple[str, ...] | None:
    text = os.environ.get(variable)
    return None if text is None else tuple(filter(None, (part.strip() for part in text.split(","))))
