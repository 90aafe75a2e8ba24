"""The registry: which tactics installed plugins offer for an operator signature."""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast, get_type_hints
from weakref import WeakKeyDictionary

from tactician.errors import EngineMismatchError, PluginError
from tactician.signature import OpSignature
from tactician.tactics.fused_form import FusedForm, accepts_form
from tactician.tactics.record import CandidateRecord, Outcome
from tactician.tactics.tactic import ANY_OP, Tactic, format_fields

if TYPE_CHECKING:
    from tactician.plugins.target import Device

_ID = re.compile(r"(?P<plugin>[\w.-]+?)\.(?P<name>\w+)\((?P<fields>.*)\)", re.DOTALL)


@dataclass(frozen=True)
class PluginRef:
    """Which plugin, exactly: its name, its distribution's version, and a hash of its files' contents."""

    name: str
    version: str
    digest: str


@dataclass(frozen=True)
class Candidate:
    """A tactic that accepted a signature, with its id and where it comes from."""

    id: str
    tactic: Tactic
    plugin: PluginRef

    @property
    def source(self) -> str:
        """The library behind the kernel or, where there is none, the plugin's name."""
        return self.tactic.library or self.plugin.name


Answers = tuple[list[Candidate], list[CandidateRecord]]
"""Those that accepted a call, and the records of those that did not."""


class Registry:
    """Tactic classes by operator, from all loaded plugins.

    The order of registration never matters: candidates come in the order of plugin name, tactic name and the
    tactic's own preference.

    Parameters
    ----------
    exhaustive
        Whether tactics are asked for their whole search space instead of what they take to be fastest.
    """

    def __init__(self, exhaustive: bool = False) -> None:
        self._exhaustive = exhaustive
        self._classes: dict[tuple[str, str], tuple[PluginRef, type[Tactic]]] = {}
        self._by_op: dict[str, set[tuple[str, str]]] = defaultdict(set)
        self._answers: WeakKeyDictionary[Device, dict[tuple[str, tuple[str, str]], Answers]] = (
            WeakKeyDictionary()
        )

    def add(self, plugin: PluginRef, tactic: type[Tactic]) -> None:
        """Register ``tactic`` as offered by ``plugin``.

        Raises
        ------
        PluginError
            If the class is no frozen dataclass, lacks ``op`` or ``target``, has a field of another type than
            int, bool and str or a fused form that is none, or its name is taken within the plugin.
        """
        key = (plugin.name, tactic.name())
        _check_class(plugin, tactic)
        if key in self._classes:
            raise PluginError(
                f"plugin '{plugin.name}' registers two tactics called '{tactic.name()}'; rename one of the classes"
            )
        self._classes[key] = (plugin, tactic)
        self._answers.clear()
        for op in (tactic.op,) if isinstance(tactic.op, str) else tactic.op:
            self._by_op[op].add(key)

    def __iter__(self) -> Iterator[tuple[PluginRef, type[Tactic]]]:
        """Iterate over all tactic classes, sorted by plugin and name."""
        return iter(self._classes[key] for key in sorted(self._classes))

    def candidates(
        self, signature: OpSignature, device: Device
    ) -> tuple[list[Candidate], list[CandidateRecord]]:
        """Return the candidates that accept ``signature`` on ``device``, and the records of those that declined.

        A tactic that raises instead of answering is recorded as failed: it can't take the others down. Each is asked
        once for a call: stages of a build ask again, and some ask a library that builds plans to know.
        """
        answers = list(self._answers_of(signature, device))
        return [c for accepted, _ in answers for c in accepted], [
            r for _, refused in answers for r in refused
        ]

    def accepts(
        self, signature: OpSignature, device: Device, wanted: Callable[[Candidate], bool] = lambda _: True
    ) -> bool:
        """Return whether some candidate that is ``wanted`` accepts ``signature``; no more are asked than it takes to know."""
        return any(any(map(wanted, accepted)) for accepted, _ in self._answers_of(signature, device))

    def _answers_of(self, signature: OpSignature, device: Device) -> Iterator[Answers]:
        """Yield what each tactic class says to a call, as long as it is wanted."""
        known = self._answers.setdefault(device, {})
        for key in sorted(self._by_op[signature.op] | self._by_op[ANY_OP] | self._with_form(signature)):
            plugin, cls = self._classes[key]
            if cls.target != device.target:
                continue
            if (signature.key, key) not in known:
                known[signature.key, key] = self._ask(plugin, cls, signature, device)
            yield known[signature.key, key]

    def _ask(self, plugin: PluginRef, cls: type[Tactic], signature: OpSignature, device: Device) -> Answers:
        accepted: list[Candidate] = []
        refused: list[CandidateRecord] = []
        try:
            offer = cls.search_space if self._exhaustive else cls.candidates
            for tactic in offer(signature, device):
                candidate = Candidate(tactic_id(plugin, tactic), tactic, plugin)
                reason = tactic.decline(signature, device)
                if reason is None:
                    accepted.append(candidate)
                else:
                    refused.append(CandidateRecord(candidate.id, plugin.name, Outcome.DECLINED, reason))
        except Exception as error:
            reason = f"raised {type(error).__name__} while it was asked: {error}"
            refused.append(
                CandidateRecord(f"{plugin.name}.{cls.name()}", plugin.name, Outcome.FAILED, reason)
            )
        return accepted, refused

    def forms(self, target: str) -> list[FusedForm]:
        """Return the different forms of fused nodes that tactics of ``target`` name, those of one tactic together."""
        return list(dict.fromkeys(f for _, cls in self if cls.target == target for f in cls.fused_forms))

    def _with_form(self, signature: OpSignature) -> set[tuple[str, str]]:
        if not signature.parts:
            return set()
        return {key for key, (_, cls) in self._classes.items() if accepts_form(cls.fused_forms, signature)}

    def parse(self, id: str) -> Candidate:
        """Return the candidate that ``id`` names.

        Raises
        ------
        EngineMismatchError
            If no loaded plugin offers such a tactic.
        """
        match = _ID.fullmatch(id)
        found = match and self._classes.get((match["plugin"], match["name"]))
        if not match or not found:
            raise EngineMismatchError(
                f"tactic '{id}' is offered by no loaded plugin; install the plugin '{id.partition('.')[0]}' "
                f"(`tactician plugins` lists what is there)"
            )
        plugin, cls = found
        return Candidate(id, _parse_fields(cls, id, match["fields"]), plugin)


def tactic_id(plugin: PluginRef, tactic: Tactic) -> str:
    """Return the tactic's readable, stable id: ``builtin.gemm_mma(block_m=128, stages=3)``."""
    return f"{plugin.name}.{tactic.name()}({format_fields(tactic)})"


def _check_class(plugin: PluginRef, tactic: type[Tactic]) -> None:
    where = f"plugin '{plugin.name}': tactic {tactic.__name__}"
    parameters: Any = getattr(tactic, "__dataclass_params__", None)
    if parameters is None or not parameters.frozen:
        raise PluginError(f"{where} is no frozen dataclass; decorate it with @dataclass(frozen=True)")
    for attribute in ("op", "target"):
        if not getattr(tactic, attribute, None):
            raise PluginError(f"{where} has no class attribute '{attribute}'")
    forms = tactic.fused_forms
    if not isinstance(forms, tuple) or not all(isinstance(form, FusedForm) for form in forms):
        raise PluginError(f"{where}: fused_forms is {forms!r}; write a tuple of FusedForm objects")
    hints = get_type_hints(tactic)
    for field in dataclasses.fields(cast(Any, tactic)):
        if hints[field.name] not in (int, bool, str):
            raise PluginError(
                f"{where}: field '{field.name}' has type {hints[field.name]}; only int, bool and str are stable in an id"
            )


def _parse_fields(cls: type[Tactic], id: str, text: str) -> Tactic:
    hints = get_type_hints(cls)
    values: dict[str, Any] = {}
    try:
        for item in filter(None, text.split(", ")):
            name, _, value = item.partition("=")
            values[name] = value == "True" if hints[name] is bool else hints[name](value)
        return cls(**values)
    except (KeyError, TypeError, ValueError) as error:
        raise EngineMismatchError(
            f"tactic '{id}' does not fit the installed version of {cls.__name__} ({error}); rebuild, or install the version that made it"
        ) from error
