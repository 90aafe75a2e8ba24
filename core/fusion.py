"""Fusing: each region that could be one node is measured beside its operators, and becomes one where that is faster.

Nothing is assumed to be faster: the fastest tactic for the whole must not take longer than the fastest ones for the parts
together. Where the measurement can't tell, the whole is taken: there is one launch instead of several, whose gaps are not
in the parts' times. What a rule or the lock file says about a node comes first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import onnx_ir as ir
from tactician.config import BuilderConfig
from tactician.network import signatures as network_signatures
from tactician.plugins.target import Device
from tactician.recognition import Missed
from tactician.recognition.recognise import RECOGNISERS, recognise
from tactician.regions import Region, apply, propose
from tactician.signature import OpSignature
from tactician.stages import FUSE
from tactician.tactics.lock import LockFile
from tactician.tactics.measure import Measured
from tactician.tactics.record import CandidateRecord, Fusion, Outcome
from tactician.tactics.registry import Registry
from tactician.tactics.rules import find_rule
from tactician.tactics.verdict import default_choice
from tactician.views import view_nodes

_BAD = (Outcome.WRONG, Outcome.FAILED)

Results = Mapping[str, tuple[Device, Measured]]
"""By signature key: the device that a call was measured on, and what came of it."""


class Fuser:
    """Fuses the nodes of one network in place: first what is demanded, then what proves to be faster.

    Parameters
    ----------
    network
        Changed as it goes on: at once where a rule or the lock file names a fused node.

    Attributes
    ----------
    fusions
        What came of each region, once ``settle`` was called.
    absorbed
        The calls of the operators that were fused since they are not slower so, by name; they were measured too.
    """

    def __init__(
        self,
        network: ir.Model,
        registry: Registry,
        device: Device,
        config: BuilderConfig,
        lock: LockFile | None,
    ) -> None:
        self._network, self._main, self._config = network, device.target, config
        recognisers = (
            [] if FUSE in config.without else [r for r in RECOGNISERS if r.name not in config.without]
        )
        found, missed = recognise(network, recognisers)
        regions = [] if FUSE in config.without else propose(network, registry, device, found)
        self._applied = _without_overlap(r for r in regions if _is_demanded(r, lock, config))
        self.fusions = [_forced(region) for region in self._applied] + [_missed(m) for m in missed]
        self.absorbed: dict[str, OpSignature] = {}
        taken = {name for region in self._applied for name in region.names}
        untaken = [r for r in regions if taken.isdisjoint(r.names) and _is_open(r, lock, config)]
        self._open = untaken if config.exhaustive else shortest_and_longest(untaken)
        self._moved: dict[ir.Value, ir.Value] = {}
        apply(network, self._applied, self._moved)

    def signatures(self) -> dict[str, OpSignature]:
        """Return the signature of each node that runs, as the network stands now, by name, in the graph's order."""
        views = view_nodes(self._network, self._config)
        plain = {n: s for n, s in network_signatures(self._network).items() if n not in views}
        return plain | {r.name: r.signature for r in self._applied}

    def operators(self) -> dict[str, tuple[str, ...]]:
        """Return the names of the operators in each fused node, by its name."""
        return {region.name: region.names for region in self._applied}

    def candidates(self) -> dict[str, OpSignature]:
        """Return the calls that regions would become, by name: to be measured beside those of ``signatures``."""
        return {region.name: region.signature for region in self._open}

    def settle(self, measured: Results) -> None:
        """Fuse the regions that ``measured`` does not prove to be slower."""
        signatures = self.signatures()
        kept, fusions = weigh(self._open, signatures, measured, self._main)
        self.absorbed = {n: signatures[n] for region in kept for n in region.names if n in signatures}
        apply(self._network, kept, self._moved)
        self._applied += kept
        self.fusions += fusions
        self._open = []


def weigh(
    regions: Sequence[Region], signatures: Mapping[str, OpSignature], measured: Results, main: str
) -> tuple[list[Region], list[Fusion]]:
    """Return the regions to fuse, none of which overlap, and what is to be said of all of them.

    Parameters
    ----------
    signatures
        Of the operators, by name of node; views, which cost nothing, have none.
    measured
        By signature key: the device that it was measured on, and the results.
    main
        The target that is built for; what runs elsewhere is not fused.

    Notes
    -----
    Of regions that overlap the one that saves most goes first; one that contains it, and whose saving is not told apart
    from that by the measurement, goes in its place: there is less left over to launch.
    """
    found = [_compare(region, signatures, measured, main) for region in regions]
    found.sort(key=lambda w: -w.saving)
    taken: set[str] = set()
    kept: list[_Weighed] = []
    for first in found:
        if first.is_worth_it and taken.isdisjoint(first.region.names):
            best = _widest(first, [w for w in found if taken.isdisjoint(w.region.names)])
            kept.append(best)
            taken.update(best.region.names)
    said = [_verdict(w, w in kept, taken) for w in found]
    return [w.region for w in kept], said


@dataclass(frozen=True, eq=False)
class _Weighed:
    """A region with what it saves, in seconds, and by how much that may be wrong."""

    region: Region
    fusion: Fusion
    saving: float = -math.inf
    uncertainty: float = 0.0

    @property
    def is_worth_it(self) -> bool:
        """Whether it is faster, or not told apart."""
        return self.saving > -self.uncertainty

    @property
    def is_tie(self) -> bool:
        """Whether the measurement does not tell it apart from its operators one by one."""
        return abs(self.saving) <= self.uncertainty


def _widest(first: _Weighed, others: Iterable[_Weighed]) -> _Weighed:
    """Return the one with the most operators of those that contain ``first`` and save as much as can be told."""
    inside = set(first.region.names)
    equal = [
        w
        for w in others
        if inside < set(w.region.names)
        and w.is_worth_it
        and first.saving - w.saving <= first.uncertainty + w.uncertainty
    ]
    return max([first, *equal], key=lambda w: len(w.region.names))


def _verdict(weighed: _Weighed, is_kept: bool, taken: set[str]) -> Fusion:
    fusion = weighed.fusion
    if fusion.reason:
        return fusion
    if is_kept and math.isinf(weighed.saving):
        reason = "not all of its operators run there one by one"
    elif is_kept:
        reason = "not told apart, and one launch" if weighed.is_tie else "faster"
    elif not weighed.is_worth_it:
        reason = "slower than its operators one by one"
    else:
        clash = ", ".join(name for name in weighed.region.names if name in taken)
        reason = f"{clash} went into another fusion"
    return msgspec.structs.replace(fusion, kept=is_kept, reason=reason, tie=weighed.is_tie)


def _without_overlap(regions: Iterable[Region]) -> list[Region]:
    """Return ``regions`` without those that share an operator with one before."""
    taken: set[str] = set()
    kept = []
    for region in regions:
        if taken.isdisjoint(region.names):
            taken.update(region.names)
            kept.append(region)
    return kept


def shortest_and_longest(regions: Iterable[Region]) -> list[Region]:
    """Return ``regions`` without those between the shortest and the longest around one anchor, which cost time to measure.

    What follows an anchor costs its kernel next to nothing, or else already the first operator does.
    """
    groups: dict[tuple[str, ...], list[Region]] = {}
    for region in regions:
        groups.setdefault(region.around, []).append(region)
    kept: list[Region] = []
    for group in groups.values():
        group.sort(key=lambda region: len(region.nodes))
        kept += dict.fromkeys((group[0], group[-1]))
    return kept


def _forced(region: Region) -> Fusion:
    return Fusion(region.name, region.names, str(region.signature), True, "a rule or the lock file names it")


def _missed(missed: Missed) -> Fusion:
    return Fusion(missed.node, (missed.node,), "", False, f"no {missed.name}: {missed.reason}")


def _is_demanded(region: Region, lock: LockFile | None, config: BuilderConfig) -> bool:
    """Return whether a rule or the lock file names the fused node. A rule that matches an operator too is for that."""
    if _ruled(region, config):
        return False
    locked = lock is not None and lock.choice(region.name, region.signature) is not None
    return locked or find_rule(region.name, config.tactic_rules) is not None


def _is_open(region: Region, lock: LockFile | None, config: BuilderConfig) -> bool:
    """Return whether nobody has spoken for one of the operators: a rule, or the lock file."""
    if _ruled(region, config) or (lock is not None and config.locked):
        return False
    return lock is None or lock.nodes.keys().isdisjoint(region.names)


def _ruled(region: Region, config: BuilderConfig) -> bool:
    return any(find_rule(name, config.tactic_rules) is not None for name in region.names)


def _compare(region: Region, signatures: Mapping[str, OpSignature], measured: Results, main: str) -> _Weighed:
    _, result = measured[region.signature.key]
    bad = tuple(f"{r.tactic} {r.outcome}: {r.reason}" for r in result.records if r.outcome in _BAD)
    fusion = Fusion(region.name, region.names, str(region.signature), False, "", set_aside=bad)
    whole = _best(region.signature, measured, main)
    parts = [_best(signatures[name], measured, main) for name in region.names if name in signatures]
    if whole is None:
        return _Weighed(region, msgspec.structs.replace(fusion, reason="no tactic for it can be chosen"))
    known = [part for part in parts if part is not None]
    if len(known) < len(parts) and region.is_recognised:
        seconds = None if whole.timing is None else whole.timing.median
        return _Weighed(
            region, msgspec.structs.replace(fusion, tactic=whole.tactic, seconds=seconds), math.inf
        )
    if len(known) < len(parts):
        return _Weighed(
            region, msgspec.structs.replace(fusion, reason=f"some of its operators don't run on the {main}")
        )
    timings = [part.timing for part in known if part.timing is not None]
    apart = sum(t.median for t in timings) if len(timings) == len(parts) else None
    seconds = None if whole.timing is None else whole.timing.median
    fusion = msgspec.structs.replace(fusion, tactic=whole.tactic, seconds=seconds, seconds_apart=apart)
    if whole.timing is None or apart is None:
        return _Weighed(region, msgspec.structs.replace(fusion, reason="not timed"))
    uncertainty = math.hypot(*((t.high - t.low) / 2 for t in (whole.timing, *timings)))
    return _Weighed(region, fusion, apart - whole.timing.median, uncertainty)


def _best(signature: OpSignature, measured: Results, main: str) -> CandidateRecord | None:
    """Return the record of the tactic that the default rule takes; None where none runs on ``main``."""
    device, result = measured[signature.key]
    if device.target != main or not result.usable:
        return None
    return default_choice(result.usable, result.incumbent)[0]
