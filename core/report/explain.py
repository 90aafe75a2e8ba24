"""Why this tactic: the decision record of a build, as text and as plain data."""

from __future__ import annotations

import glob
import shlex
from collections import defaultdict
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import msgspec
from tactician.report.format import duration, plural, size, table
from tactician.tactics.record import CandidateRecord, Decision, Fusion, Outcome

_HEADER = ("", "tactic", "plugin", "time", "95 %", "× best", "error", "workspace", "outcome")
_GROUPED = (Outcome.DECLINED, Outcome.PRUNED, Outcome.FILTERED)


def matching(decisions: Iterable[Decision], node_glob: str | None) -> list[Decision]:
    """Return the decisions on nodes of which the name, or that of an operator fused into them, matches; all for None."""
    return [
        d
        for d in decisions
        if node_glob is None
        or any(fnmatchcase(name, node_glob) for names in (d.nodes, *d.operators) for name in names)
    ]


def involving(fusions: Iterable[Fusion], decision: Decision) -> list[Fusion]:
    """Return the fusions that made a node of ``decision``, or could have taken one in."""
    return [f for f in fusions if not {f.name, *f.nodes}.isdisjoint(decision.nodes)]


def explain(decision: Decision, target: str, *, fusions: Iterable[Fusion] = (), verbose: bool = False) -> str:
    """Return the whole story of one decision.

    Parameters
    ----------
    target
        The engine's target: a node that runs elsewhere is marked.
    fusions
        What could have been one node; those that concern the decision are told.
    verbose
        Whether declined candidates are listed one by one instead of counted by reason.
    """
    elsewhere = (
        f"   RUNS ON THE {decision.target.upper()}, NOT ON {target}" if decision.target != target else ""
    )
    lines = [
        f"{_nodes(decision.nodes)}   {decision.signature}{elsewhere}",
        f"  chosen by {decision.chosen_by}"
        + (f": {decision.note}" if decision.note else "")
        + _regret(decision),
    ]
    shown = [c for c in decision.candidates if c.outcome not in _GROUPED]
    rows = [_row(c, decision) for c in sorted(shown, key=lambda c: _rank(c, decision.chosen))]
    lines.append(table(_HEADER, rows, right=(3, 4, 5, 6, 7), indent=2))
    for outcome in _GROUPED:
        lines += _grouped([c for c in decision.candidates if c.outcome is outcome], outcome, verbose)
    lines += list(dict.fromkeys(fusion_text(f) for f in involving(fusions, decision)))
    lines.append(f"  pin it: tactician build … --tactic {shlex.quote(pin_rule(decision))}")
    return "\n".join(lines)


def pin_rule(decision: Decision) -> str:
    """Return the ``--tactic`` rule that pins what was chosen."""
    return f"{glob.escape(decision.nodes[0])}={glob.escape(decision.chosen)}"


def to_plain(decision: Decision, fusions: Iterable[Fusion] = ()) -> dict[str, Any]:
    """Return a decision as JSON-ready values: ``vs_best`` is added to timed candidates, and ``fusions`` as in ``explain``."""
    plain: dict[str, Any] = msgspec.to_builtins(decision)
    best = best_time(decision.candidates)
    for candidate, record in zip(plain["candidates"], decision.candidates, strict=True):
        candidate["vs_best"] = record.timing.median / best if record.timing and best else None
    concern = [msgspec.to_builtins(f) for f in involving(fusions, decision)]
    return plain | {"pin": pin_rule(decision), "fusions": concern}


def best_time(candidates: Iterable[CandidateRecord]) -> float | None:
    """Return the least median, in seconds, of the candidates that were timed and are right, if any."""
    times = [
        c.timing.median for c in candidates if c.timing and c.outcome not in (Outcome.WRONG, Outcome.FAILED)
    ]
    return min(times, default=None)


def _nodes(nodes: Sequence[str]) -> str:
    shown = ", ".join(nodes[:3])
    return shown if len(nodes) <= 3 else f"{shown} and {len(nodes) - 3} more"


def fusion_text(fusion: Fusion) -> str:
    """Return what came of a subgraph that could have been one node, with both times and what was set aside."""
    operators = " + ".join(fusion.nodes)
    times = ""
    if fusion.seconds is not None and fusion.seconds_apart is not None:
        times = f", {duration(fusion.seconds)} against {duration(fusion.seconds_apart)} one by one"
    said = f"  {'fused' if fusion.kept else 'not fused'}: {operators}{times}: {fusion.reason}"
    return "\n".join([said, *(f"    {reason}" for reason in fusion.set_aside)])


def _regret(decision: Decision) -> str:
    return "" if not decision.regret else f"; at most {100 * decision.regret:.1f} % slower than the best"


def _rank(candidate: CandidateRecord, chosen: str) -> tuple[bool, bool, float, str]:
    time = candidate.timing.median if candidate.timing else 0.0
    return candidate.tactic != chosen, candidate.timing is None, time, candidate.tactic


def _row(candidate: CandidateRecord, decision: Decision) -> list[str]:
    timing, best = candidate.timing, best_time(decision.candidates)
    return [
        ">" if candidate.tactic == decision.chosen else "",
        candidate.tactic,
        candidate.plugin,
        duration(timing.median) if timing else "-",
        f"±{100 * (timing.high - timing.low) / 2 / timing.median:.1f} %" if timing and timing.median else "-",
        f"{timing.median / best:.2f}" if timing and best else "-",
        "-" if candidate.error is None else f"{candidate.error:.1e}",
        size(candidate.workspace) if candidate.workspace else "0",
        _outcome(candidate),
    ]


def _outcome(candidate: CandidateRecord) -> str:
    text = str(candidate.outcome)
    if candidate.outcome is Outcome.WRONG and candidate.error is not None and candidate.tolerance is not None:
        text += f": error {candidate.error:.1e} > {candidate.tolerance:.1e}"
    if candidate.reason:
        text += f": {candidate.reason}"
    if candidate.numerics:
        text += f" ({', '.join(candidate.numerics)})"
    return text + (" [cached]" if candidate.cached else "")


def _grouped(candidates: Sequence[CandidateRecord], outcome: Outcome, verbose: bool) -> list[str]:
    """Return a line for each reason with the tactics that it took out, those of one class together."""
    reasons: dict[str, list[str]] = defaultdict(list)
    for candidate in candidates:
        reasons[candidate.reason].append(candidate.tactic)
    lines = []
    for reason, tactics in sorted(reasons.items()):
        names = tactics if verbose else _classes(tactics)
        lines.append(f"  {outcome}: {', '.join(names)}" + (f": {reason}" if reason else ""))
    return lines


def _classes(tactics: Sequence[str]) -> list[str]:
    counts: dict[str, int] = defaultdict(int)
    for tactic in tactics:
        counts[tactic.partition("(")[0]] += 1
    return [
        name if number == 1 else f"{name} ({plural(number, 'candidate')})" for name, number in counts.items()
    ]
