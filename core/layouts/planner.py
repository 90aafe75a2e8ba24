"""Chooses where the channels lie innermost: the sum of measured times of operators and of conversions between layouts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import cached_property

import onnx_ir as ir
from tactician.errors import EngineMismatchError
from tactician.layouts.rewrite import conversion, convert
from tactician.layouts.twins import Twins, follows, operands
from tactician.network import signature_of
from tactician.plugins.target import Device
from tactician.recognition.layout import static_shape
from tactician.signature import OpSignature
from tactician.tactics.lock import LockFile
from tactician.tactics.measure import Measured
from tactician.tactics.registry import Registry
from tactician.tactics.verdict import default_choice

LAYOUTS = "layouts"
"""What ``--without`` and reports call it."""

WORTH_IT = 0.99
"""Part of the time that is left at most, for a change of layouts to be made: less is noise."""

Results = Mapping[str, tuple[Device, Measured]]
"""By signature key: the device that a call was measured on, and what came of it."""


class LayoutPlanner:
    """Lays out one network in place.

    Nodes whose operator has a twin are *anchors*: each works in the one layout or the other. What lies between them
    follows where it can. A value that is needed in both layouts is converted once.

    Parameters
    ----------
    network
        As the passes left it.
    twins
        The operators that have a twin.
    lock
        Anchors that it names keep their layout.
    """

    def __init__(
        self, network: ir.Model, twins: Twins, registry: Registry, device: Device, lock: LockFile | None
    ) -> None:
        self._network, self._twins, self._main = network, twins, device.target
        self._registry = registry
        self._version = network.graph.opset_imports.get("", 1)
        self._plain: dict[ir.Node, OpSignature] = {}
        self._moved: dict[ir.Node, OpSignature] = {}
        accepted: dict[str, bool] = {}
        for node in network.graph if twins.found else ():
            moved = twins.signature(node, network)
            if moved is None:
                continue
            if moved.key not in accepted:
                accepted[moved.key] = _has_kernel(moved, registry, device)
            if accepted[moved.key]:
                self._plain[node], self._moved[node] = signature_of(node, network), moved
        self._locked = self._of_lock(lock)

    def candidates(self) -> dict[str, OpSignature]:
        """Return the calls whose times decide, by made-up names: anchors in both layouts, and conversions."""
        if not self._moved or self._locked is not None:
            return {}
        calls = [*self._plain.values(), *self._moved.values(), *self._conversions.values()]
        return {f"layout {s.key}": s for s in calls if s is not None}

    def settle(self, measured: Results) -> int:
        """Convert what is faster so, and return how many anchors that are."""
        if not self._moved:
            return 0
        chosen = self._locked if self._locked is not None else self._best(measured)
        if chosen:
            convert(self._network, self._twins, self._labels(chosen))
        return len(chosen)

    def _of_lock(self, lock: LockFile | None) -> frozenset[ir.Node] | None:
        if lock is None:
            return None
        fused = {name: entry.tactic for entry in lock.nodes.values() for name in entry.operators}
        return frozenset(
            n
            for n, s in self._moved.items()
            if lock.choice(n.name or "", s) is not None or self._is_for(fused.get(n.name or ""), s)
        )

    def _is_for(self, tactic: str | None, signature: OpSignature) -> bool:
        """Return whether ``tactic``, which runs an anchor fused with others, is one for this very call of it."""
        if tactic is None:
            return False
        try:
            kind = type(self._registry.parse(tactic).tactic)
        except EngineMismatchError:
            return False
        anchors = (name for form in kind.fused_forms for name in form.anchors)
        return signature.op in (*_names(kind.op), *anchors)

    @cached_property
    def _conversions(self) -> dict[tuple[ir.Value, bool], OpSignature | None]:
        """The conversions of values that anchors and what follows them read and make, to the one layout and back."""
        labels = self._labels(self._moved)
        nodes = [node for node in self._network.graph if node in labels]
        values = dict.fromkeys(v for node in nodes for v in (*operands(node), *node.outputs))
        return {
            (v, to_last): conversion(v, to_last=to_last, version=self._version)
            for v in values
            if len(static_shape(v) or ()) > 2
            for to_last in (True, False)
        }

    def _labels(self, last: Iterable[ir.Node]) -> set[ir.Node]:
        """Return the nodes that work with the channels innermost when the anchors ``last`` do."""
        anchors, labels = set(last), set(last)
        for node in self._network.graph:
            if node not in anchors and node not in self._moved and follows(node):
                makers = {v.producer() for v in operands(node)}
                if not makers.isdisjoint(labels):
                    labels.add(node)
        return labels

    def _best(self, measured: Results) -> frozenset[ir.Node]:
        """Return the anchors to convert: from all or from none of them one at a time, as long as it gets faster."""
        seconds = self._seconds(measured)
        none = self._cost(frozenset(), seconds)
        best, least = frozenset[ir.Node](), none
        for start in (frozenset(n for n, s in self._moved.items() if math.isfinite(seconds[s.key])), best):
            chosen, cost = start, self._cost(start, seconds)
            is_better = True
            while is_better:
                is_better = False
                for node in self._moved:
                    other = chosen ^ {node}
                    changed = self._cost(other, seconds)
                    if changed < cost:
                        chosen, cost, is_better = other, changed, True
            if cost < least:
                best, least = chosen, cost
        return best if least < WORTH_IT * none else frozenset()

    def _cost(self, last: frozenset[ir.Node], seconds: Mapping[str, float]) -> float:
        """Return the seconds of anchors and conversions; what follows takes as long in either layout."""
        labels = self._labels(last)
        total = sum(seconds[(self._moved[n] if n in last else self._plain[n]).key] for n in self._moved)
        for (value, to_last), call in self._conversions.items():
            made_last = value.producer() in labels
            wanted = any((use.node in labels) is to_last for use in value.uses())
            if to_last is not made_last and (wanted or (made_last and value.is_graph_output())):
                total += 0.0 if call is None else seconds[call.key]
        return total

    def _seconds(self, measured: Results) -> dict[str, float]:
        """Return by signature key what each call takes; infinitely long where it does not run on the main target."""
        found = {}
        for signature in self.candidates().values():
            device, result = measured[signature.key]
            runs = device.target == self._main and bool(result.usable)
            timing = default_choice(result.usable, result.incumbent)[0].timing if runs else None
            found[signature.key] = math.inf if timing is None else timing.median
        return found


def _has_kernel(signature: OpSignature, registry: Registry, device: Device) -> bool:
    """Return whether a tactic for this very operator accepts the call; one for all operators is no reason to convert."""
    return registry.accepts(signature, device, lambda c: signature.op in _names(c.tactic.op))


def _names(op: str | tuple[str, ...]) -> tuple[str, ...]:
    return (op,) if isinstance(op, str) else op
