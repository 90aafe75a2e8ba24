"""An engine for one more shape within a profile: the network with the profile's choices, and nothing is timed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from tactician.assembly import Assignment
from tactician.builder import open_devices
from tactician.config import BuilderConfig
from tactician.engine import Engine
from tactician.errors import SpecialisationError, TacticianError
from tactician.importer import import_model
from tactician.optimizing import optimise
from tactician.plan import BuildReport
from tactician.planning import make_plan
from tactician.plugins.inline import InlinePlugin
from tactician.plugins.manager import load_plugins
from tactician.profile_choices import ProfileChoices, kind_of
from tactician.profiled_engine import ProfiledEngine, known_weights, share_weights
from tactician.profiles import Shapes, dims_text
from tactician.signature import OpSignature
from tactician.tactics.lock import LockFile
from tactician.tactics.record import Decision


class Specialiser:
    """Makes engines of one ``ProfiledEngine`` for shapes within its profiles.

    Parameters
    ----------
    device
        Index of the device that they are for.
    plugins
        Plugins to load in the place of those that the engine was built with.
    """

    def __init__(
        self,
        engine: ProfiledEngine,
        *,
        device: int = 0,
        plugins: Sequence[str | InlinePlugin] | None = None,
    ) -> None:
        given = engine.config.plugins if plugins is None else tuple(plugins)
        config = replace(engine.config, profiles=(), lock_file=None, locked=True, dump_stages=None)
        self._config = replace(config, plugins=given, device=device)
        self._plugins = load_plugins(self._config)
        self._engines = engine.engines
        self._known = known_weights(engine.engines)
        assert engine.model is not None, "every profile has one shape: there is nothing to be specialised"
        self._model = engine.model.open()

    def specialise(self, number: int, shapes: Shapes) -> Engine:
        """Return the engine for ``shapes``, with what profile ``number`` chose.

        Raises
        ------
        SpecialisationError
            If the model can't have these shapes, or a node has no tactic that can be used.
        """
        try:
            return self._specialise(self._engines[number], shapes)
        except TacticianError as error:
            what = ", ".join(f"'{name}' as {dims_text(dims)}" for name, dims in shapes.items())
            raise SpecialisationError(
                f"no engine can be made for {what}, which profile {number} holds: {error}"
            ) from error

    def _specialise(self, base: Engine, shapes: Shapes) -> Engine:
        config = config_for(base, self._config, shapes)
        plugins = self._plugins
        devices = open_devices(plugins, config, base.plan.target, base.artifacts)
        network = import_model(self._model, config.shapes, plugins.ops)
        lock = ProfileLock.of_decisions(base.report.decisions)
        made = optimise(network, plugins, devices[0], config, lock, _measure_nothing, _no_clock)
        choices = ProfileChoices(base.report.decisions, plugins, config, devices)
        assignments: dict[str, Assignment] = {}
        decisions = []
        for name, signature in made.fuser.signatures().items():
            decision, assignments[name] = choices.choose(name, signature)
            decisions.append(decision)
        plan, weights, artifacts = make_plan(network, assignments, devices, base.plan.model, config)
        report = BuildReport(devices[0].fingerprint(), tuple(decisions), tuple(made.stages), {})
        return share_weights(Engine(plan, report, weights, artifacts), self._known)


class ProfileLock(LockFile, frozen=True):
    """The choices of a profile, for nodes of other shapes: what a node is called and what it does must be the same.

    A fused node is called after its first and its last operator. What is recognised as a call may begin elsewhere in
    another shape, with a reshape that a batch of one does not need: then the last one alone is compared.
    """

    ends: Mapping[str, str] = {}
    """Tactics of fused nodes, by last and by all operators."""

    @classmethod
    def of_decisions(cls, decisions: Iterable[Decision]) -> ProfileLock:
        """Return the lock of a profile's decisions."""
        lock = cls.of(decisions, ())
        fused = {name: entry for name, entry in lock.nodes.items() if entry.operators}
        ends = {_end(name, entry.signature): entry.tactic for name, entry in fused.items()}
        return cls(lock.format, lock.nodes, {}, ends=ends)

    def choice(self, node: str, signature: OpSignature) -> str | None:
        """Return the id of the tactic for ``node``, if it has the same operators still."""
        entry = self.nodes.get(node)
        if entry is not None and kind_of(entry.signature) == kind_of(str(signature)):
            return entry.tactic
        return self.ends.get(_end(node, str(signature))) if "+" in node else None


def _end(node: str, signature: str) -> str:
    return f"{node.rpartition('+')[2]}: {kind_of(signature)}"


def config_for(base: Engine, config: BuilderConfig, shapes: Shapes) -> BuilderConfig:
    """Return the options for ``shapes``: in the precision that won, where several raced."""
    kept = [trial.precision for trial in base.report.precisions if trial.kept]
    options: dict[str, Any] = {"precision": kept[0]} if kept else {}
    return replace(config, shapes=config.shapes | dict(shapes), **options)


def _measure_nothing(calls: Mapping[str, OpSignature], *rest: Any, **options: Any) -> dict[str, Any]:
    raise SpecialisationError(f"{len(calls)} calls would have to be measured")


@contextmanager
def _no_clock(phase: str) -> Iterator[None]:
    yield
