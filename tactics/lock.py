"""The lock file: which tactic each node got, as JSON that a person can read, review and replay."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

import msgspec
from tactician.errors import LockError, LockMismatchError
from tactician.signature import OpSignature
from tactician.tactics.record import Decision
from tactician.tactics.registry import Candidate

FORMAT_VERSION = 1


class PluginLike(Protocol):
    """What identifies a plugin: ``PluginRef`` and the engine's ``PluginUse`` do."""

    @property
    def name(self) -> str:
        """Its name."""
        ...

    @property
    def version(self) -> str:
        """Version of its distribution."""
        ...

    @property
    def digest(self) -> str:
        """Hash of its files' contents."""
        ...


class LockedPlugin(msgspec.Struct, frozen=True):
    """A plugin whose tactics are locked: its version, and the hash of its files' contents."""

    version: str
    digest: str


class LockedNode(msgspec.Struct, frozen=True, omit_defaults=True):
    """The choice for one node; ``key`` is the hash of ``signature``, ``operators`` are the names of those in a fused one."""

    tactic: str
    version: int
    plugin: str
    signature: str
    key: str
    target: str = ""
    operators: tuple[str, ...] = ()


class LockFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The choices of one build, by node."""

    format: int
    nodes: dict[str, LockedNode]
    plugins: dict[str, LockedPlugin]
    target: str = ""
    device: str = ""

    @classmethod
    def of(
        cls,
        decisions: Iterable[Decision],
        plugins: Iterable[PluginLike],
        *,
        target: str = "",
        device: str = "",
    ) -> LockFile:
        """Return the lock file of a build's decisions.

        Parameters
        ----------
        plugins
            At least those whose tactics were chosen.
        target, device
            What it was built for; for a reader's information.
        """
        nodes = {}
        for decision in decisions:
            winner = decision.winner
            for i, node in enumerate(decision.nodes):
                nodes[node] = LockedNode(
                    decision.chosen,
                    winner.version,
                    winner.plugin,
                    decision.signature,
                    decision.key,
                    decision.target,
                    decision.operators[i] if decision.operators else (),
                )
        used = {n.plugin for n in nodes.values()}
        table = {p.name: LockedPlugin(p.version, p.digest) for p in plugins if p.name in used}
        return cls(FORMAT_VERSION, nodes, table, target, device)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LockFile:
        """Read a lock file.

        Raises
        ------
        LockError
            If it is not there, damaged, or of a format that this version can't read.
        """
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise LockError(
                f"can't read lock file '{path}': {error.strerror}; a build with --lock alone writes it"
            ) from error
        try:
            lock = msgspec.json.decode(data, type=cls)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise LockError(
                f"lock file '{path}' is damaged: {error}; restore it, or delete it and build without --locked"
            ) from error
        if lock.format != FORMAT_VERSION:
            raise LockError(
                f"lock file '{path}' has format {lock.format}; this version reads {FORMAT_VERSION}: use the "
                "tactician that wrote it, or build again without --locked"
            )
        return lock

    def encode(self) -> bytes:
        """Return the file's bytes: sorted, so that equal choices give equal bytes."""
        return msgspec.json.format(msgspec.json.encode(self, order="sorted"), indent=2) + b"\n"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file, atomically.

        Raises
        ------
        LockError
            If it can't be written.
        """
        path = Path(path)
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            beside.write_bytes(self.encode())
            beside.replace(path)
        except OSError as error:
            raise LockError(f"can't write lock file '{path}': {error.strerror}") from error

    def choice(self, node: str, signature: OpSignature) -> str | None:
        """Return the id that is locked for ``node`` if it has the same signature still, else None."""
        entry = self.nodes.get(node)
        return entry.tactic if entry is not None and entry.key == signature.key else None

    def check(
        self,
        signatures: Mapping[str, OpSignature],
        candidates: Mapping[str, Mapping[str, Candidate]],
    ) -> list[str]:
        """Return how a network and the installed plugins differ from this file, one line each.

        Parameters
        ----------
        signatures
            By node.
        candidates
            By signature key, the candidates by id.
        """
        lines = [
            f"node '{name}' is gone ({self.nodes[name].signature})"
            for name in sorted(self.nodes)
            if name not in signatures
        ]
        plugins = {c.plugin.name: c.plugin for offered in candidates.values() for c in offered.values()}
        for name, locked in sorted(self.plugins.items()):
            here = plugins.get(name)
            if here is not None and here.digest != locked.digest:
                change = (
                    f"{locked.version} → {here.version}" if here.version != locked.version else here.version
                )
                lines.append(
                    f"plugin '{name}' ({change}): its files differ from those that the lock file names"
                )
        for node, signature in signatures.items():
            line = self._check_node(node, signature, candidates.get(signature.key, {}))
            if line is not None:
                lines.append(line)
        return lines

    def require(
        self,
        signatures: Mapping[str, OpSignature],
        candidates: Mapping[str, Mapping[str, Candidate]],
    ) -> None:
        """Refuse any difference that ``check`` finds.

        Raises
        ------
        LockMismatchError
            Listing all of them.
        """
        refuse(self.check(signatures, candidates))

    def _check_node(
        self, node: str, signature: OpSignature, candidates: Mapping[str, Candidate]
    ) -> str | None:
        entry = self.nodes.get(node)
        if entry is None:
            return f"node '{node}' is new ({signature})"
        if entry.key != signature.key:
            return f"node '{node}' has another signature: {_change(entry.signature, str(signature))}"
        candidate = candidates.get(entry.tactic)
        if candidate is None:
            return f"node '{node}': tactic {entry.tactic} is not offered here"
        if candidate.tactic.version != entry.version:
            version = candidate.tactic.version
            return f"node '{node}': tactic {entry.tactic} has version {version}, locked is {entry.version}"
        return None


def refuse(differences: list[str]) -> None:
    """Raise ``LockMismatchError`` with ``differences``, if there are any."""
    if differences:
        shown = differences[:50]
        more = [f"and {len(differences) - 50} more"] if len(differences) > 50 else []
        raise LockMismatchError(
            "the build differs from the lock file:\n  "
            + "\n  ".join(shown + more)
            + "\nbuild without --locked to choose anew and write the file again"
        )


def _change(before: str, now: str) -> str:
    if before == now:
        return f"{now} (attributes, constants or fused body changed)"
    return f"{before} is locked, {now} is asked for"
