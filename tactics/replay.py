"""Recording and replaying choices through the selector's interface, as Polygraphy's tactic recorder and replayer do."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
from tactician.errors import SelectionError
from tactician.tactics.selector import AlgorithmChoice, AlgorithmContext, AlgorithmSelector

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
MOST_LINES = 50
"""Differences that one message lists."""


class TacticRecorder(AlgorithmSelector):
    """Writes which tactic each node got to a JSON file, when the choices of a build are made.

    It leaves every choice to the builder; a subclass may override ``select_algorithms`` and record what comes of
    that. The file holds, by node, the tactic's id and version, and the text and hash of the signature. A lock file holds
    more: contents of the plugins.

    Parameters
    ----------
    path
        The file. It is replaced, atomically, by each build that comes as far.

    Raises
    ------
    SelectionError
        If its folder is not there.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        if not self._path.parent.is_dir():
            raise SelectionError(
                f"can't write tactic replay '{path}': there is no folder '{self._path.parent}'; make it first"
            )

    def report_algorithms(
        self, contexts: Sequence[AlgorithmContext], choices: Sequence[AlgorithmChoice]
    ) -> None:
        """Write the file.

        Raises
        ------
        SelectionError
            If it can't be written.
        """
        nodes = {
            node: _Recorded(
                choice.tactic, choice.version, str(context.signature), context.signature.key, context.target
            )
            for context, choice in zip(contexts, choices, strict=True)
            for node in context.nodes
        }
        data = msgspec.json.encode(_Recording(FORMAT_VERSION, nodes), order="sorted")
        beside = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            beside.write_bytes(msgspec.json.format(data, indent=2) + b"\n")
            beside.replace(self._path)
        except OSError as error:
            beside.unlink(missing_ok=True)
            raise SelectionError(f"can't write tactic replay '{self._path}': {error.strerror}") from error


class TacticReplayer(AlgorithmSelector):
    """Chooses for each node the tactic that a ``TacticRecorder`` wrote down for it.

    A node for which nothing is recorded is left to the builder. A recorded choice that can't be replayed, since the
    node has another signature or the tactic is not among those that may be used, or has another version, is an error
    that lists all such nodes when the choices are made, and ends the build. Rules and the lock file come before any
    selector: what they decide otherwise is logged.

    Parameters
    ----------
    path
        The file. It is read at once.

    Attributes
    ----------
    differences
        How the last build departs from the file, one line a node; empty where all of it was replayed.

    Raises
    ------
    SelectionError
        If the file is not there, damaged, or of a format that this version can't read.
    """

    differences: tuple[str, ...]

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.differences = ()
        self._path = Path(path)
        self._nodes = _read(self._path)
        self._refused: dict[str, str] = {}

    def select_algorithms(self, context: AlgorithmContext, choices: Sequence[AlgorithmChoice]) -> list[int]:
        """Return the index of the recorded tactic; nothing where there is none or it can't be used."""
        recorded = self._nodes.get(context.name)
        if recorded is None:
            return []
        same_call = recorded.key == context.signature.key
        wanted = (recorded.tactic, recorded.version)
        found = [i for i, c in enumerate(choices) if same_call and (c.tactic, c.version) == wanted]
        if not found:
            self._refused[context.name] = _refusal(recorded, context, choices)
        return found

    def report_algorithms(
        self, contexts: Sequence[AlgorithmContext], choices: Sequence[AlgorithmChoice]
    ) -> None:
        """Compare what was chosen with what is recorded.

        Raises
        ------
        SelectionError
            If a recorded choice could not be replayed, or none is of a node of this network.
        """
        chosen = {n: c.tactic for context, c in zip(contexts, choices, strict=True) for n in context.nodes}
        refused = [f"node '{n}': {why}" for n, why in self._refused.items() if n in chosen]
        others = [line for n, tactic in chosen.items() for line in self._remark(n, tactic)]
        others += [f"node '{n}' is recorded, and gone" for n in self._nodes if n not in chosen]
        self.differences = (*refused, *others)
        self._refused = {}
        if self._nodes and not self._nodes.keys() & chosen.keys():
            raise SelectionError(
                f"tactic replay '{self._path}' names no node of this network; it was recorded with another model"
            )
        if others:
            logger.warning("not as in tactic replay '%s':%s", self._path, _indented(others))
        if refused:
            raise SelectionError(
                f"tactic replay '{self._path}' can't be replayed:{_indented(refused)}\n"
                "build without it to see why (tactician explain), and record anew with TacticRecorder"
            )

    def _remark(self, node: str, tactic: str) -> Iterator[str]:
        """Yield what is no error: a new node, and one that a rule or the lock file decided otherwise."""
        recorded = self._nodes.get(node)
        if recorded is None:
            yield f"node '{node}' is not recorded; {tactic} was chosen"
        elif recorded.tactic != tactic and node not in self._refused:
            yield f"node '{node}': {recorded.tactic} is recorded; a rule or the lock file chose {tactic}"


class _Recorded(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The choice for one node; ``key`` is the hash of ``signature``."""

    tactic: str
    version: int
    signature: str
    key: str
    target: str


class _Recording(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file."""

    format: int
    nodes: dict[str, _Recorded]


def _read(path: Path) -> dict[str, _Recorded]:
    try:
        recording = msgspec.json.decode(path.read_bytes(), type=_Recording)
    except OSError as error:
        raise SelectionError(
            f"can't read tactic replay '{path}': {error.strerror}; a build with TacticRecorder writes it"
        ) from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise SelectionError(
            f"tactic replay '{path}' is damaged: {error}; restore it, or record anew with TacticRecorder"
        ) from error
    if recording.format != FORMAT_VERSION:
        raise SelectionError(
            f"tactic replay '{path}' has format {recording.format}; this version reads {FORMAT_VERSION}: record anew"
        )
    return recording.nodes


def _refusal(recorded: _Recorded, context: AlgorithmContext, choices: Sequence[AlgorithmChoice]) -> str:
    """Return why a recorded choice can't be replayed."""
    now = str(context.signature)
    if recorded.key != context.signature.key:
        changed = "other attributes, constants or fused body" if now == recorded.signature else now
        return f"recorded for {recorded.signature}, and now has {changed}"
    versions = [c.version for c in choices if c.tactic == recorded.tactic]
    if versions:
        return f"{recorded.tactic} is recorded in version {recorded.version}, and is offered in version {versions[0]}"
    return (
        f"{recorded.tactic} is recorded, and is not among the {len(choices)} tactics that may be used on "
        f"{context.target}: {', '.join(c.tactic for c in choices[:5])}{', …' if len(choices) > 5 else ''}"
    )


def _indented(lines: Sequence[str]) -> str:
    more = [f"and {len(lines) - MOST_LINES} more"] if len(lines) > MOST_LINES else []
    return "".join(f"\n  {line}" for line in (*lines[:MOST_LINES], *more))
