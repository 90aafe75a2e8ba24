"""Which plugins are there: entry points of distributions, and single files. Imports no plugin code."""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from importlib import import_module, metadata
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from tactician import __version__
from tactician.errors import ConfigError, PluginError, UnknownPluginError
from tactician.plugins.api_version import api_mismatch, written_api
from tactician.plugins.inline import InlinePlugin

GROUP = "tactician"
"""The entry-point group: ``[project.entry-points.tactician]``."""
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
RESERVED_NAMES = frozenset({"ai", "com", "cpu", "cuda", "native", "onnx", "ref"})


class State(StrEnum):
    """Where a plugin stands."""

    FOUND = "found"  # installed and allowed; not imported yet
    READY = "ready"  # imported and checked
    DISABLED = "disabled"
    INCOMPATIBLE = "incompatible"  # needs another version of tactician
    BROKEN = "broken"  # failed to import, breaks the contract, or its name is taken
    QUARANTINED = "quarantined"  # importing it took a process down


@dataclass(frozen=True)
class PluginStatus:
    """What is known of one plugin without importing it, its state, and the reason for that state.

    ``location`` is the path of its module, ``"?"`` where it can't be found; a file has no ``distribution``.
    """

    name: str
    version: str
    state: State
    reason: str
    distribution: str
    entry: str
    location: str


@dataclass(frozen=True)
class Source:
    """Where a plugin comes from: an entry point of a distribution, a file, or an object."""

    name: str
    entry: str
    distribution: metadata.Distribution | None = None
    file: Path | None = None
    inline: InlinePlugin | None = None

    @property
    def distribution_name(self) -> str:
        """Name of the distribution, empty for a file or an object."""
        return str(self._metadata["Name"]) if self._metadata else ""

    @property
    def version(self) -> str:
        """Version of the distribution; of a file or an object, 0."""
        return str(self._metadata["Version"]) if self._metadata else "0"

    @property
    def requirements(self) -> list[str]:
        """What the distribution needs, as its metadata says it."""
        if self.distribution is None or self._metadata is None:
            return []
        return self._metadata.get_all("Requires-Dist") or self.distribution.requires or []

    @cached_property
    def _metadata(self) -> Any:
        """Parsed once: importlib.metadata parses it again for each question."""
        return self.distribution.metadata if self.distribution else None

    @cached_property
    def location(self) -> Path | None:
        """Path of the module, found without importing it; None for an object."""
        return None if self.inline else self.file or _locate(self.entry.partition(":")[0])

    def problem(self) -> tuple[State, str] | None:
        """Return why this plugin can't be loaded, as far as can be told without importing it."""
        if reason := _bad_name(self.name):
            return State.BROKEN, reason
        if self.distribution and self.distribution_name != GROUP:
            wanted = _needed_versions(self.requirements)
            if wanted is not None and not wanted.contains(__version__, prereleases=True):
                return State.INCOMPATIBLE, (
                    f"{self.distribution_name} {self.version} needs tactician {wanted}, this is {__version__}"
                )
        if self.distribution_name != GROUP and self.location and (written := written_api(self.location)):
            reason = api_mismatch(written)
            return (State.INCOMPATIBLE, reason) if reason else None
        return None

    def load(self) -> Any:
        """Import the plugin and return the object that its entry point names."""
        if self.inline:
            return self.inline
        if self.file:
            return _load_file(self.name, self.file)
        module, _, attribute = self.entry.partition(":")
        loaded: Any = import_module(module)
        for part in filter(None, attribute.split(".")):
            loaded = getattr(loaded, part)
        return loaded

    def status(self, state: State, reason: str = "") -> PluginStatus:
        """Return this plugin's status."""
        where = str(self.location or "?")
        return PluginStatus(self.name, self.version, state, reason, self.distribution_name, self.entry, where)


def installed() -> list[Source]:
    """Return the plugins of all installed distributions: those of tactician's own first, then by name."""
    sources = [
        Source(p.name, p.value.partition("[")[0].strip(), p.dist) for p in metadata.entry_points(group=GROUP)
    ]
    return sorted(sources, key=lambda s: (s.distribution_name != GROUP, s.name, s.distribution_name))


def check_plugin_name(name: str) -> None:
    """Make sure that ``name`` can be a plugin's.

    Raises
    ------
    ConfigError
        If it can't.
    """
    if reason := _bad_name(name):
        raise ConfigError(reason)


def _bad_name(name: str) -> str | None:
    if _NAME.fullmatch(name) and name.lower() not in RESERVED_NAMES:
        return None
    return (
        f"'{name}' is no name for a plugin: letters, digits, '_' and '-' only, and none of "
        f"{', '.join(sorted(RESERVED_NAMES))}"
    )


def is_path(name: str) -> bool:
    """Return whether ``name``, out of a list of plugins, is a file's path."""
    return name.endswith(".py") or "/" in name


def from_file(path: str | Path) -> Source:
    """Return the plugin in the file at ``path``; its name is the file's name without ``.py``.

    Raises
    ------
    UnknownPluginError
        If there is no such file.
    """
    file = Path(path).expanduser().absolute()
    if not file.is_file():
        raise UnknownPluginError(f"plugin file '{path}' does not exist")
    if file.suffix != ".py":
        raise PluginError(f"plugin file '{path}' is no Python file; its name must end in .py")
    return Source(file.stem, str(file), file=file)


def from_object(plugin: InlinePlugin) -> Source:
    """Return the plugin that an object is."""
    return Source(plugin.name, "(an object)", inline=plugin)


def name_clashes(sources: Iterable[Source]) -> dict[str, str]:
    """Return, for every name that more than one source claims, what is to be said about it."""
    claims: dict[str, list[Source]] = defaultdict(list)
    for source in sources:
        claims[source.name].append(source)
    return {
        name: f"its name is claimed by {' and by '.join(map(_describe, owners))}; uninstall or rename one"
        for name, owners in claims.items()
        if len(owners) > 1
    }


def _describe(source: Source) -> str:
    if source.inline:
        return "an InlinePlugin object"
    what = f"{source.distribution_name} {source.version}" if source.distribution else "a file"
    return f"{what} ({source.location or source.entry})"


def _needed_versions(requirements: Iterable[str]) -> Any:
    """Return the versions of tactician among a distribution's requirements, or None where it is not there."""
    lines = [line for line in requirements if re.match(rf"{GROUP}(?![\w.-])", line, re.IGNORECASE)]
    if not lines:
        return None
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.specifiers import SpecifierSet

    wanted = SpecifierSet()
    for line in lines:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            wanted &= requirement.specifier
    return wanted


def _locate(module: str) -> Path | None:
    """Return the path of ``module`` without importing anything that is not imported yet."""
    top, *rest = module.split(".")
    try:
        if not rest or module.rpartition(".")[0] in sys.modules:
            spec = find_spec(module)
            return Path(spec.origin) if spec and spec.origin else None
        spec = find_spec(top)
    except (ImportError, ValueError, AttributeError):
        return None
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder, *rest)
        for candidate in (path / "__init__.py", path.with_name(path.name + ".py")):
            if candidate.is_file():
                return candidate
    return Path(spec.origin) if spec and spec.origin else None


_LOADED_OF = "__tactician_loaded_of__"
"""Attribute of a module that was loaded of a file: its path and what was in it, which may have been edited since."""


def _load_file(name: str, file: Path) -> Any:
    # a name of its own, so that `conv.py` can't take the place of an installed module called `conv`
    module_name = f"tactician_plugin_{name}"
    source = file.read_bytes()
    known = sys.modules.get(module_name)
    if known is not None and getattr(known, _LOADED_OF, None) == (str(file), source):
        return known
    spec = spec_from_file_location(module_name, file)
    if spec is None:
        raise ImportError(f"can't import '{file}'")
    module = module_from_spec(spec)
    setattr(module, _LOADED_OF, (str(file), source))
    sys.modules[module_name] = module  # dataclasses look their module up
    try:
        # not by the loader: its cache of compiled code misses a second edit within a second
        exec(compile(source, str(file), "exec", dont_inherit=True), vars(module))
    except BaseException:
        del sys.modules[module_name]
        raise
    return module
