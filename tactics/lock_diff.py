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


class Swap(msgspec.Struct, frozen=True):
    """Nodes of one lock file and those that stand for the same operators in another: they can be exchanged."""

    out: tuple[str, ...]
    into: tuple[str, ...]
    changes: tuple[ChoiceChange, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all that is exchanged, each once."""
        return tuple(dict.fromkeys((*self.out, *self.into)))


def swaps(before: LockFile, after: LockFile) -> tuple[list[Swap], list[str]]:
    """Return the exchanges that lead from ``before`` to ``after``, and the nodes that have no counterpart.

    Nodes that got another tactic alike are exchanged together. Nodes that are fused in one file and apart, or fused
    with others, in the other go together with all that have operators in common with them.
    """
    found: list[Swap] = []
    moved: list[ChoiceChange] = []
    for change in choice_changes(before, after):
        if change.before is not None and change.after is not None:
            found.append(Swap(change.nodes, change.nodes, (change,)))
        else:
            moved += [ChoiceChange((name,), change.before, change.after) for name in change.nodes]
    strangers = []
    for group in _components(moved, before, after):
        out = tuple(c.nodes[0] for c in group if c.before is not None)
        into = tuple(c.nodes[0] for c in group if c.after is not None)
        names = [
            sorted(o for n in side for o in _operators(n, lock))
            for side, lock in ((out, before), (into, after))
        ]
        if set(out) & set(into) or names[0] != names[1]:  # another call, or an operator that is not there
            strangers += [c.nodes[0] for c in group]
        else:
            found.append(Swap(out, into, tuple(group)))
    return found, strangers


def mixed(good: LockFile, bad: LockFile, from_bad: Iterable[Swap]) -> LockFile:
    """Return ``good`` with these exchanges made."""
    nodes = dict(good.nodes)
    for swap in from_bad:
        for name in swap.out:
            del nodes[name]
        nodes |= {name: bad.nodes[name] for name in swap.into}
    return msgspec.structs.replace(good, nodes=nodes, plugins=bad.plugins | good.plugins)


def _operators(name: str, lock: LockFile) -> tuple[str, ...]:
    return lock.nodes[name].operators or (name,)


def _components(
    changes: Iterable[ChoiceChange], before: LockFile, after: LockFile
) -> list[list[ChoiceChange]]:
    """Return ``changes`` in groups that have no operator in common."""
    groups: list[tuple[set[str], list[ChoiceChange]]] = []
    for change in changes:
        operators = set(_operators(change.nodes[0], before if change.before is not None else after))
        joined = [change]
        apart = []
        for names, group in groups:
            if names.isdisjoint(operators):
                apart.append((names, group))
            else:
                operators |= names
                joined = [*group, *joined]
        groups = [*apart, (operators, joined)]
    return [group for _, group in groups]
