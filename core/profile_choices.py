"""Chooses for nodes of one shape what a profile chose for them in another, as far as it can be had."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from tactician.assembly import Assignment
from tactician.config import BuilderConfig
from tactician.errors import NoTacticError
from tactician.plugins.manager import Plugins
from tactician.plugins.target import Device
from tactician.signature import OpSignature
from tactician.tactics.measure import Measured
from tactician.tactics.policies import Policies
from tactician.tactics.record import CandidateRecord, Decision, Outcome
from tactician.tactics.registry import Candidate
from tactician.tactics.rules import no_tactic_message

_BAD = (Outcome.WRONG, Outcome.FAILED)


class ProfileChoices:
    """Chooses without measuring.

    Of what accepts a node: the tactic that was chosen for it, else one of the same class, else the one that was measured
    as fastest, else the first. What was wrong or failed for it is left out. A node that the profile has not follows one
    of the same operators; if there is none, it gets a tactic of the class that the profile chose most often.

    Parameters
    ----------
    decisions
        Of the profile.
    devices
        The main one, then those that run what it has no tactic for.
    """

    def __init__(
        self,
        decisions: Sequence[Decision],
        plugins: Plugins,
        config: BuilderConfig,
        devices: Sequence[Device],
    ) -> None:
        self._by_node = {node: decision for decision in decisions for node in decision.nodes}
        self._by_kind = {kind_of(decision.signature): decision for decision in reversed(decisions)}
        self._wins = Counter(_name(d.chosen) for d in decisions for _ in d.nodes)
        self._registry = plugins.registry
        self._devices = [(d, Policies(config, d, plugins.hooks.filter_tactics)) for d in devices]
        self._offered: dict[str, tuple[Device, Policies, list[Candidate]]] = {}

    def choose(self, node: str, signature: OpSignature) -> tuple[Decision, Assignment]:
        """Return the choice for ``node``.

        Raises
        ------
        NoTacticError
            If nothing accepts it.
        """
        device, policies, offered = self._offer(node, signature)
        kind = kind_of(str(signature))
        model = self._by_node.get(node)
        if model is None or kind_of(model.signature) != kind:
            model = self._by_kind.get(kind)
        chosen = max(offered, key=lambda c: self._wins[_name(c.id)])
        note = "the profile has no such operator there"
        if model is not None and model.target == device.target:
            chosen, note = self._like(model, signature, device, policies, offered)
        decision = Decision(
            str(signature),
            signature.key,
            (node,),
            device.target,
            chosen.id,
            "profile",
            (_record(chosen, signature, device),),
            note,
        )
        return decision, Assignment(chosen, device.target, signature)

    def _offer(self, node: str, signature: OpSignature) -> tuple[Device, Policies, list[Candidate]]:
        """Return the first device that has tactics for a call, and these."""
        if signature.key not in self._offered:
            told: list[CandidateRecord] = []
            for device, policies in self._devices:
                accepted, refused = self._registry.candidates(signature, device)
                left, out = policies.apply(signature, accepted)
                told += [*out, *refused]
                if left:
                    self._offered[signature.key] = device, policies, left
                    break
            else:
                raise NoTacticError(no_tactic_message(Measured(signature, tuple(told), {}), [node]))
        return self._offered[signature.key]

    def _like(
        self,
        model: Decision,
        signature: OpSignature,
        device: Device,
        policies: Policies,
        offered: Sequence[Candidate],
    ) -> tuple[Candidate, str]:
        """Return what is most like the profile's choice, and what is to be said of it."""
        same = next((c for c in offered if c.id == model.chosen), None) or self._searched(
            model.chosen, signature, device, policies
        )
        if same is not None:
            return same, "the profile's choice"
        seconds = {r.tactic: r.timing.median for r in model.candidates if r.timing is not None}
        bad = {r.tactic for r in model.candidates if r.outcome in _BAD}
        left = [c for c in offered if c.id not in bad] or offered
        name = _name(model.chosen)
        best = min(left, key=lambda c: (_name(c.id) != name, seconds.get(c.id, math.inf)))
        return best, f"the profile's choice, {model.chosen}, does not accept this shape"

    def _searched(
        self, id: str, signature: OpSignature, device: Device, policies: Policies
    ) -> Candidate | None:
        """Return the tactic ``id`` if its class offers it somewhere in its whole search space."""
        try:
            candidate = self._registry.parse(id)
            tactic = candidate.tactic
            if tactic not in tactic.search_space(signature, device) or tactic.decline(signature, device):
                return None
        except Exception:  # a tactic that can't answer does not accept, as in the registry
            return None
        return candidate if policies.apply(signature, [candidate])[0] else None


def kind_of(signature: str) -> str:
    """Return the operators of a signature out of its text: those of ``Conv+Relu(float32[…`` are ``Conv+Relu``."""
    return signature.partition("(")[0]


def _name(id: str) -> str:
    return id.partition("(")[0]


def _record(candidate: Candidate, signature: OpSignature, device: Device) -> CandidateRecord:
    tactic = candidate.tactic
    return CandidateRecord(
        candidate.id,
        candidate.plugin.name,
        Outcome.CHOSEN,
        workspace=tactic.workspace(signature, device),
        numerics=tuple(sorted(tactic.numerics(signature))),
        version=tactic.version,
    )
