"""What changed from one lock file to another, choice by choice, and lock files that are part one and part the other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import msgspec
from tactician.tactics.lock import LockedNode, LockedPlugin, LockFile


class Choice(msgspec.Struct, frozen=True):
    """What one lock file says of some nodes."""

    tactic: str
    version: int
    target: str
    signature: str

    @classmethod
    def of(cls, node: LockedNode) -> Choice:
        """Return what ``node`` says."""
        return cls(node.tactic, node.version, node.target, node.signature)


class ChoiceChange(msgspec.Struct, frozen=True):
    """Nodes whose choice changed in the same way; ``before`` is None for new nodes, ``after`` for those that are gone."""

    nodes: tuple[str, ...]
    before: Choice | None
    after: Choice | None


class PluginChange(msgspec.Struct, frozen=True):
    """A plugin with other files than before; None where its tactics were not used."""

    name: str
    before: LockedPlugin | None
    after: LockedPlugin | None


def choice_changes(before: LockFile, after: LockFile) -> list[ChoiceChange]:
    """Return the changes, in the order of ``after`` and then of ``before``; nodes that changed alike are one.

    Nodes with equal text but another signature (attributes, constants) are gone and new: nothing is said of their
    tactics.
    """
    groups: dict[tuple[Choice | None, Choice | None, str], list[str]] = defaultdict(list)
    for name in (*after.nodes, *(n for n in before.nodes if n not in after.nodes)):
        old, new = before.nodes.get(name), after.nodes.get(name)
        if old is None or new is None or old.key != new.key:
            if old is not None:
                groups[Choice.of(old), None, old.key].append(name)
            if new is not None:
                groups[None, Choice.of(new), new.key].append(name)
        elif Choice.of(old) != Choice.of(new):
            groups[Choice.of(old), Choice.of(new), new.key].append(name)
    return [ChoiceChange(tuple(names), old, new) for (old, new, _), names in groups.items()]


def plugin_changes(before: LockFile, after: LockFile) -> list[PluginChange]:
    """Return the plugins whose version or files changed, or whose tactics are used by one of both alone."""
    return [
        PluginChange(name, before.plugins.get(name), after.plugins.get(name))
        for name in sorted({*before.plugins, *after.plugins})
        if before.plugins.get(name) != after.plugins.get(name)
    ]


def mixed(good: LockFile, bad: LockFile, from_bad: Iterable[str]) -> LockFile:
    """Return ``good`` with the choices of the nodes ``from_bad`` out of ``bad``."""
    nodes = good.nodes | {name: bad.nodes[name] for name in from_bad}
    return msgspec.structs.replace(good, nodes=nodes, plugins=bad.plugins | good.plugins)
