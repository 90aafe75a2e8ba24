"""``--tactic`` rules: node glob and tactic glob, the last that matches a node wins."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from tactician.errors import SelectionError
from tactician.tactics.job import USABLE
from tactician.tactics.measure import Measured
from tactician.tactics.record import CandidateRecord

Rule = tuple[str, str]


def find_rule(node: str, rules: Sequence[Rule]) -> Rule | None:
    """Return the last rule whose node glob matches ``node``."""
    return next((rule for rule in reversed(rules) if fnmatchcase(node, rule[0])), None)


def check_rules(rules: Sequence[Rule], nodes: Iterable[str]) -> None:
    """Make sure that every rule means some node.

    Raises
    ------
    SelectionError
        Naming the rule, with near matches.
    """
    nodes = list(nodes)
    for node_glob, tactic_glob in rules:
        if not any(fnmatchcase(node, node_glob) for node in nodes):
            raise SelectionError(
                f"rule '{node_glob}={tactic_glob}' matches no node{_near(node_glob, nodes)}; passes may have "
                "renamed or fused nodes: `tactician explain ENGINE` lists them"
            )


def allowed_by_rule(measured: Measured, node: str, rule: Rule) -> tuple[str, ...]:
    """Return the ids of the usable candidates that a rule's tactic glob matches.

    Raises
    ------
    SelectionError
        If there is none: what matched and why it can't be chosen, or what there is.
    """
    text = f"rule '{rule[0]}={rule[1]}' for node '{node}'"
    matching = [r for r in measured.records if fnmatchcase(r.tactic, rule[1])]
    allowed = tuple(r.tactic for r in matching if r.outcome in USABLE)
    if allowed:
        return allowed
    if matching:
        reasons = "\n".join(f"  {_reason(r)}" for r in matching)
        raise SelectionError(
            f"{text} matches only tactics that can't be chosen for {measured.signature}:\n{reasons}"
        )
    offered = "\n".join(f"  {r.tactic}" for r in measured.usable)
    raise SelectionError(
        f"{text} matches no tactic{_near(rule[1], [r.tactic for r in measured.records])}; "
        f"for {measured.signature} there are\n{offered}"
    )


def no_tactic_message(measured: Measured, nodes: Sequence[str]) -> str:
    """Return why no tactic runs ``nodes``: every candidate, with its reason."""
    shown = ", ".join(nodes[:5]) + (f" and {len(nodes) - 5} more" if len(nodes) > 5 else "")
    lines = [f"  {_reason(r)}" for r in measured.records] or ["  (no loaded plugin offers any)"]
    return f"no tactic runs {shown}: {measured.signature}\n" + "\n".join(lines)


def _reason(record: CandidateRecord) -> str:
    return f"{record.tactic}: {record.outcome}" + (f": {record.reason}" if record.reason else "")


def _near(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.4)
    return f"; near: {', '.join(close)}" if close else ""
