"""Choosing: command line, lock file, selector, plugin hooks and the default rule, in order of authority."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tactician.config import BuilderConfig
from tactician.errors import CacheError, NoTacticError, SelectionError
from tactician.signature import OpSignature
from tactician.tactics.cache import TimingCache
from tactician.tactics.job import USABLE
from tactician.tactics.lock import LockFile, refuse
from tactician.tactics.measure import Measured
from tactician.tactics.record import CandidateRecord, Decision, Outcome
from tactician.tactics.rules import allowed_by_rule, check_rules, find_rule, no_tactic_message
from tactician.tactics.selector import AlgorithmChoice, AlgorithmContext, AlgorithmSelector
from tactician.tactics.verdict import default_choice, final_records, regret

logger = logging.getLogger(__name__)

Hook = Callable[..., Any]
Hooks = Sequence[tuple[str, Hook]]


@dataclass(frozen=True)
class Restriction:
    """Who left which candidates to choose from; ``allowed`` is None where nobody did."""

    who: str
    allowed: tuple[str, ...] | None
    note: str = ""


def choose(
    measured: Measured,
    nodes: Sequence[str],
    *,
    target: str = "",
    device: str = "",
    lock: LockFile | None = None,
    selector: AlgorithmSelector | None = None,
    hooks: Hooks = (),
    config: BuilderConfig | None = None,
) -> list[Decision]:
    """Choose for all ``nodes`` that share one signature.

    Returns
    -------
    list of Decision
        One, or several where a rule, the lock file or the selector treats nodes differently.

    Raises
    ------
    NoTacticError
        If no candidate is usable; the message lists every one with its reason.
    SelectionError
        If a rule leaves no candidate or, under ``config.strict``, a selector or hook fails.
    """
    chooser = _Chooser(lock, selector, hooks, config or BuilderConfig())
    return chooser.choose(measured, nodes, target, device)


def choose_all(
    measured: Mapping[str, Measured],
    nodes: Mapping[str, Sequence[str]],
    *,
    targets: Mapping[str, str] | None = None,
    lock: LockFile | None = None,
    selector: AlgorithmSelector | None = None,
    hooks: Hooks = (),
    cache: TimingCache | None = None,
    fingerprints: Mapping[str, Mapping[str, str]] | None = None,
    config: BuilderConfig | None = None,
) -> list[Decision]:
    """Choose for every node of a network.

    Parameters
    ----------
    measured, nodes, targets, fingerprints
        By signature key: what was measured, the names of the nodes, where it runs, and that device's
        fingerprint.
    lock
        Choices to replay; with ``config.locked`` anything else is an error.
    cache
        Where winners by the default rule are remembered.

    Raises
    ------
    NoTacticError, SelectionError
        As ``choose``.
    LockMismatchError
        With ``config.locked``, listing all that differs from the lock file.
    """
    config = config or BuilderConfig()
    signatures = {name: measured[key].signature for key, names in nodes.items() for name in names}
    check_rules(config.tactic_rules, signatures)
    if lock is not None and config.locked:
        lock.require(signatures, {key: m.candidates for key, m in measured.items()})
    chooser = _Chooser(lock, selector, hooks, config)
    decisions = []
    for key, names in nodes.items():
        target = (targets or {}).get(key, "")
        decisions += chooser.choose(measured[key], names, target, _device(fingerprints, key))
    if lock is not None and config.locked:
        refuse(_departures(decisions, lock))
    if selector is not None:
        chooser.report(
            [
                AlgorithmContext(d.nodes, measured[d.key].signature, d.target, _device(fingerprints, d.key))
                for d in decisions
            ],
            decisions,
        )
    if cache is not None:
        _remember(cache, measured, decisions, fingerprints or {})
    return decisions


def decided(
    signatures: Mapping[str, OpSignature], lock: LockFile | None, config: BuilderConfig
) -> dict[str, frozenset[str]]:
    """Return, by signature key, the tactics of those calls whose every node the lock file decides.

    They need not be measured against others: ``Measurer`` takes this as ``decided``.
    """
    chosen: dict[str, set[str | None]] = {}
    for node, signature in signatures.items():
        by_rule = find_rule(node, config.tactic_rules) is not None
        locked = None if by_rule or lock is None else lock.choice(node, signature)
        chosen.setdefault(signature.key, set()).add(locked)
    return {key: frozenset(i for i in ids if i) for key, ids in chosen.items() if None not in ids}


class _Chooser:
    """Asks everyone in turn. What fails is reported once, and the next in order decides."""

    def __init__(
        self,
        lock: LockFile | None,
        selector: AlgorithmSelector | None,
        hooks: Hooks,
        config: BuilderConfig,
    ) -> None:
        self._lock = lock
        self._selector = selector
        self._hooks = hooks
        self._config = config
        self._reported: set[str] = set()

    def choose(self, measured: Measured, nodes: Sequence[str], target: str, device: str) -> list[Decision]:
        usable = measured.usable
        if not usable:
            raise NoTacticError(no_tactic_message(measured, nodes))
        groups: dict[Restriction, list[str]] = {}
        for node in nodes:
            context = AlgorithmContext((node,), measured.signature, target, device)
            groups.setdefault(self._restrict(measured, context), []).append(node)
        decisions = [_decide(measured, tuple(names), r, target) for r, names in groups.items()]
        return decisions

    def report(self, contexts: Sequence[AlgorithmContext], decisions: Sequence[Decision]) -> None:
        """Tell the selector what was chosen."""
        assert self._selector is not None  # the caller asked
        try:
            self._selector.report_algorithms(contexts, [_as_choice(d.winner) for d in decisions])
        except SelectionError:
            raise
        except Exception as error:
            self._fail("report_algorithms of the selector", error)

    def _restrict(self, measured: Measured, context: AlgorithmContext) -> Restriction:
        """Return who decides for one node, and between what."""
        rule = find_rule(context.name, self._config.tactic_rules)
        if rule is not None:
            return Restriction("cli", allowed_by_rule(measured, context.name, rule))
        notes = []
        for ask in (self._ask_lock, self._ask_selector, self._ask_hooks):
            answer = ask(measured, context)
            if answer.note:
                notes.append(answer.note)
            if answer.allowed is not None:
                return Restriction(answer.who, answer.allowed, "; ".join(notes))
        return Restriction("default", None, "; ".join(notes))

    def _ask_lock(self, measured: Measured, context: AlgorithmContext) -> Restriction:
        if self._lock is None:
            return Restriction("lock", None)
        entry = self._lock.nodes.get(context.name)
        if entry is None:
            return Restriction("lock", None, "not in the lock file")
        if entry.key != measured.signature.key:
            return Restriction("lock", None, f"the lock file has another signature for it: {entry.signature}")
        record = next((r for r in measured.records if r.tactic == entry.tactic), None)
        if record is None or record.outcome not in USABLE:
            why = f"is {record.outcome}: {record.reason}" if record else "is not offered here"
            return Restriction("lock", None, f"the lock file names {entry.tactic}, which {why}")
        plugin, locked = measured.candidates[entry.tactic].plugin, self._lock.plugins.get(entry.plugin)
        changed = locked is not None and locked.digest != plugin.digest
        note = f"plugin '{plugin.name}' has changed since the lock file was written" if changed else ""
        return Restriction("lock", (entry.tactic,), note)

    def _ask_selector(self, measured: Measured, context: AlgorithmContext) -> Restriction:
        if self._selector is None:
            return Restriction("selector", None)
        usable = measured.usable
        try:
            answer = self._selector.select_algorithms(context, [_as_choice(r) for r in usable])
            indices = sorted({int(i) for i in answer})
            if indices and not 0 <= indices[0] <= indices[-1] < len(usable):
                raise IndexError(f"it returned {list(answer)}, and there are {len(usable)} choices")
        except SelectionError:
            raise  # what a selector says on purpose
        except Exception as error:
            return Restriction("selector", None, self._fail("select_algorithms of the selector", error))
        if not indices or len(indices) == len(usable):
            return Restriction("selector", None)
        return Restriction("selector", tuple(usable[i].tactic for i in indices))

    def _ask_hooks(self, measured: Measured, context: AlgorithmContext) -> Restriction:
        notes = []
        for plugin, hook in self._hooks:
            try:
                answer = hook(signature=context.signature, measured=list(measured.usable))
                if answer is not None and answer not in {r.tactic for r in measured.usable}:
                    raise ValueError(f"it returned {answer!r}, which is no candidate that may be chosen")
            except SelectionError:
                raise  # what a hook says on purpose
            except Exception as error:
                notes.append(self._fail(f"select_tactic of plugin '{plugin}'", error))
                continue
            if answer is not None:
                return Restriction(f"hook:{plugin}", (answer,), "; ".join(notes))
        return Restriction("hook", None, "; ".join(notes))

    def _fail(self, what: str, error: Exception) -> str:
        """Report a failure once, and return the note for the decision."""
        text = f"{what} failed: {type(error).__name__}: {error}"
        if self._config.strict:
            raise SelectionError(text) from error
        if what not in self._reported:
            logger.warning("%s; it is ignored", text)
            self._reported.add(what)
        return text


_WHO = {"cli": "a --tactic rule", "lock": "the lock file", "selector": "the selector"}


def _decide(measured: Measured, nodes: tuple[str, ...], by: Restriction, target: str) -> Decision:
    usable = [r for r in measured.usable if by.allowed is None or r.tactic in by.allowed]
    winner, who = default_choice(usable, measured.incumbent)
    forced = by.allowed is not None
    reader = _WHO.get(by.who, f"plugin '{by.who.removeprefix('hook:')}'")
    return Decision(
        str(measured.signature),
        measured.signature.key,
        nodes,
        target,
        winner.tactic,
        by.who if forced else who,
        final_records(measured.records, winner.tactic, reader, by.allowed),
        by.note,
        regret(measured.records, winner.tactic),
    )


def _departures(decisions: Sequence[Decision], lock: LockFile) -> list[str]:
    """Return the nodes whose choice is not the locked one, with what stood in the way."""
    return [
        f"node '{node}': {lock.nodes[node].tactic} is locked, {d.chosen} was chosen by {d.chosen_by}"
        + (f" ({d.note})" if d.note else "")
        for d in decisions
        for node in d.nodes
        if lock.nodes[node].tactic != d.chosen
    ]


def _remember(
    cache: TimingCache,
    measured: Mapping[str, Measured],
    decisions: Sequence[Decision],
    fingerprints: Mapping[str, Mapping[str, str]],
) -> None:
    """Keep the winners of the default rule, unless the last one could not take part."""
    winners = []
    for d in decisions:
        call = measured[d.key]
        held = next((r for r in call.records if r.tactic == call.incumbent), None)
        absent = held is not None and held.outcome in (Outcome.FILTERED, Outcome.PRUNED)
        if d.chosen_by == "default" and d.key in fingerprints and not absent:
            winners.append((call.signature, fingerprints[d.key], d.chosen))
    try:
        if winners:
            cache.set_incumbents(winners)
    except CacheError as error:
        logger.warning("%s; the winners of this build are not remembered", error)


def _device(fingerprints: Mapping[str, Mapping[str, str]] | None, key: str) -> str:
    return (fingerprints or {}).get(key, {}).get("device", "")


def _as_choice(record: CandidateRecord) -> AlgorithmChoice:
    timing = record.timing.median if record.timing else None
    return AlgorithmChoice(
        record.tactic, record.plugin, timing, record.workspace, record.error, record.numerics, record.version
    )
