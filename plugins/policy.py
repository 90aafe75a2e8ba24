"""Which plugins may be loaded: allow and deny lists of the caller, the environment and the project file."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from tactician.config import BuilderConfig
from tactician.errors import ConfigError, UnknownPluginError
from tactician.plugins.discovery import Source, from_file, from_object, is_path
from tactician.plugins.inline import InlinePlugin
from tactician.project import Project, near_matches, read_project


@dataclass(frozen=True)
class Level:
    """The lists of one origin; ``allow`` is None where it has no opinion, ``files`` and ``objects`` are given there."""

    origin: str
    allow: frozenset[str] | None
    deny: frozenset[str]
    files: tuple[Path, ...] = ()
    objects: tuple[InlinePlugin, ...] = ()


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

    def sources(self) -> list[Source]:
        """Return the plugins that were given as files or objects, each once.

        Raises
        ------
        PluginError
            If a file is not there, or no Python file.
        """
        files = dict.fromkeys(file for level in self.levels for file in level.files)
        objects = dict.fromkeys(o for level in self.levels for o in level.objects)
        return [*map(from_file, files), *map(from_object, objects)]

    @property
    def requested(self) -> frozenset[str]:
        """Names that the caller asked for: if one of these can't be loaded, that is an error."""
        first = self.levels[0]
        return (first.allow or frozenset()) | {f.stem for f in first.files} | {o.name for o in first.objects}

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


def _level(origin: str, allow: tuple[str | InlinePlugin, ...] | None, deny: tuple[str, ...]) -> Level:
    objects = tuple(n for n in allow or () if isinstance(n, InlinePlugin))
    words = [n for n in allow or () if not isinstance(n, InlinePlugin)]
    names = frozenset(n for n in words if not is_path(n))
    files = tuple(Path(n).expanduser().absolute() for n in words if is_path(n))
    # a list of files and objects alone adds them to what is installed; an empty list allows nothing
    restricts = allow is not None and (bool(names) or not (files or objects))
    added = {f.stem for f in files} | {o.name for o in objects}
    return Level(origin, names | added if restricts else None, frozenset(deny), files, objects)


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
