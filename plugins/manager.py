"""Loads plugins, each by itself: one that is broken is set aside with its reason and takes no other down."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tactician.config import BuilderConfig
from tactician.errors import DeviceError, PluginError
from tactician.plugins.contract import Contribution, Hook, IncompatibleError, read_contribution
from tactician.plugins.digest import plugin_digest
from tactician.plugins.discovery import GROUP, PluginStatus, Source, State, installed, name_clashes
from tactician.plugins.op import Op
from tactician.plugins.policy import Policy
from tactician.plugins.quarantine import Quarantine
from tactician.plugins.reference import ops_in_use, set_ops
from tactician.plugins.target import Target
from tactician.project import near_matches
from tactician.tactics.registry import PluginRef, Registry

if TYPE_CHECKING:
    from tactician.passes import Pass

logger = logging.getLogger(__name__)

PREFERRED_TARGETS = ("cuda", "cpu")
"""Where no target is asked for: the first of these that is available."""


@dataclass(frozen=True)
class Hooks:
    """Steering hooks with the names of the plugins that implement them, sorted by plugin."""

    filter_tactics: tuple[tuple[str, Hook], ...] = ()
    select_tactic: tuple[tuple[str, Hook], ...] = ()
    report_choices: tuple[tuple[str, Hook], ...] = ()


@dataclass
class Plugins:
    """All loaded plugins: what they contribute, and where each one stands.

    Parameters
    ----------
    registry
        Tactic classes by operator.
    ops
        Custom operators by name.
    targets
        Targets by name.
    passes
        Network passes, in the order of the plugins' names.
    hooks
        Steering hooks.
    states
        Status by name of plugin, of those that were set aside too.
    """

    registry: Registry = field(default_factory=Registry)
    ops: dict[str, Op] = field(default_factory=dict)
    targets: dict[str, Target] = field(default_factory=dict)
    passes: tuple[Pass, ...] = ()
    hooks: Hooks = field(default_factory=Hooks)
    states: dict[str, PluginStatus] = field(default_factory=dict)
    refs: dict[str, PluginRef] = field(default_factory=dict)
    target_plugins: dict[str, str] = field(default_factory=dict)
    """Name of the plugin that brought each target."""
    _op_plugins: dict[str, str] = field(default_factory=dict)
    _waiting: dict[str, Source] = field(default_factory=dict)

    def target(self, name: str | None = None) -> Target:
        """Return the target called ``name``; for None the first available one of ``PREFERRED_TARGETS``.

        Raises
        ------
        DeviceError
            If no loaded plugin brings that target, or it has no usable device here; the message says why.
        """
        if name is not None:
            return self._asked_target(name)
        reasons = []
        for preferred in PREFERRED_TARGETS:
            try:
                return self._asked_target(preferred)
            except DeviceError as error:
                reasons.append(str(error))
        raise DeviceError("; ".join(reasons))

    def op_names(self, plugin: str) -> list[str]:
        """Return the names of the operators that ``plugin`` defines."""
        return [name for name, owner in self._op_plugins.items() if owner == plugin]

    def _asked_target(self, name: str) -> Target:
        self._load_waiting_until(name)
        target = self.targets.get(name)
        if target is None:
            aside = [
                f"'{s.name}' is {s.state}: {s.reason}"
                for s in self.states.values()
                if s.state not in (State.READY, State.FOUND)
            ]
            raise DeviceError(
                f"target '{name}' is brought by no loaded plugin{near_matches(name, self.targets)}; there "
                f"{'is' if len(self.targets) == 1 else 'are'} {', '.join(sorted(self.targets)) or 'none'}"
                + (f" (plugin {'; plugin '.join(aside)})" if aside else "")
            )
        try:
            reason = target.unavailable()
        except Exception as error:
            reason = f"asking whether it is available raised {type(error).__name__}: {error}"
        if reason:
            raise DeviceError(f"target '{name}' can't be used here: {reason}")
        return target

    def _load_waiting_until(self, target: str) -> None:
        """Load plugins that an engine does not name, one by one, until one brings its target."""
        while target not in self.targets and self._waiting:
            name = next(iter(self._waiting))
            _load(self, self._waiting.pop(name), run_only=True)

    def accept(self, ref: PluginRef, contribution: Contribution) -> None:
        """Take what a plugin contributes: all of it, or nothing.

        Raises
        ------
        PluginError
            If an operator or target of that name is there already.
        """
        for op in contribution.ops:
            if op.name in self.ops:
                raise PluginError(f"operator '{op.name}' is already defined by '{self._op_plugins[op.name]}'")
        for target in contribution.targets:
            if target.name in self.targets:
                raise PluginError(
                    f"target '{target.name}' is already brought by '{self.target_plugins[target.name]}'"
                )
        self.refs[ref.name] = ref
        self.ops |= {op.name: op for op in contribution.ops}
        self._op_plugins |= {op.name: ref.name for op in contribution.ops}
        for target in contribution.targets:
            self.targets[target.name] = target
            self.target_plugins[target.name] = ref.name
        for tactic in contribution.tactics:
            self.registry.add(ref, tactic)
        self.passes += contribution.passes
        self.hooks = Hooks(
            **{
                kind: _with(getattr(self.hooks, kind), ref.name, contribution.hooks.get(kind))
                for kind in vars(self.hooks)
            }
        )


def load_plugins(config: BuilderConfig | None = None, *, only: Collection[str] | None = None) -> Plugins:
    """Find, import and check plugins, as allowed by ``config``, the environment and the project file.

    Parameters
    ----------
    only
        Names of the plugins that an engine needs: the others are not imported, unless they bring its target,
        and passes and steering hooks are left out.

    Raises
    ------
    UnknownPluginError
        If a plugin is named that is not there.
    PluginError
        If a plugin can't be loaded that the caller named, or any under ``config.strict``.
    ConfigError
        If the project file is damaged.
    """
    config = config or BuilderConfig()
    policy = Policy.of(config)
    plugins = Plugins(Registry(config.exhaustive))
    for source in _allowed_sources(policy, plugins.states):
        if only is None or source.name in only:
            _load(plugins, source, run_only=only is not None)
        else:
            plugins._waiting[source.name] = source
    _report(plugins.states, policy.requested, config.strict)
    return plugins


def survey_plugins(config: BuilderConfig | None = None) -> dict[str, PluginStatus]:
    """Return the status of every plugin, by name, without importing any of them.

    Raises
    ------
    UnknownPluginError, ConfigError
        As ``load_plugins``.
    """
    states: dict[str, PluginStatus] = {}
    _allowed_sources(Policy.of(config or BuilderConfig()), states)
    return dict(sorted(states.items()))


def _allowed_sources(policy: Policy, states: dict[str, PluginStatus]) -> list[Source]:
    """Return the sources that may be loaded, in order, and fill ``states`` for all."""
    sources = installed() + policy.sources()
    policy.check_names({s.name for s in sources})
    clashes = name_clashes(sources)
    quarantine = Quarantine.of_user()
    allowed = []
    for source in sources:
        refusal, problem = policy.refusal(source.name), source.problem()
        if refusal:
            states[source.name] = source.status(State.DISABLED, refusal)
        elif source.name in clashes:
            states[source.name] = source.status(State.BROKEN, clashes[source.name])
        elif problem:
            states[source.name] = source.status(*problem)
        elif _guarded(source) and (verdict := quarantine.verdict(source)):
            states[source.name] = _quarantined(source, verdict)
        else:
            states[source.name] = source.status(State.FOUND)
            allowed.append(source)
    return allowed


def _load(plugins: Plugins, source: Source, *, run_only: bool) -> None:
    """Import one plugin and take what it contributes; whatever goes wrong becomes its state."""
    state, reason = State.READY, ""
    quarantine = Quarantine.of_user()
    verdict = _guarded(source) and quarantine.verdict(source, confirm=True)
    if verdict:
        plugins.states[source.name] = _quarantined(source, verdict)
        return
    try:
        with quarantine.importing(source.name) if _guarded(source) else nullcontext():
            loaded = source.load()
        ref = PluginRef(source.name, _version(source, loaded), plugin_digest(source, loaded))
        plugins.accept(ref, read_contribution(ref, loaded, run_only=run_only))
        # a tactic that runs references finds them by name; sessions of several engines share one process
        set_ops({**ops_in_use(), **plugins.ops})
    except IncompatibleError as error:
        state, reason = State.INCOMPATIBLE, str(error)
    except PluginError as error:
        state, reason = State.BROKEN, str(error)
    except (Exception, SystemExit) as error:
        # anything may come out of a stranger's module; the log has the traceback for its author
        logger.debug("plugin '%s'", source.name, exc_info=True)
        state, reason = State.BROKEN, f"{type(error).__name__}: {error}"
    plugins.states[source.name] = source.status(state, reason)


def _guarded(source: Source) -> bool:
    """Return whether importing ``source`` may do harm: it is neither tactician's own nor in this process already."""
    return source.inline is None and source.distribution_name != GROUP


def _quarantined(source: Source, verdict: str) -> PluginStatus:
    return source.status(
        State.QUARANTINED,
        f"{verdict}; 'tactician plugins retry {source.name}' tries again, as a new version does",
    )


def _version(source: Source, loaded: Any) -> str:
    return source.version if source.distribution else str(getattr(loaded, "__version__", source.version))


def _report(states: Mapping[str, PluginStatus], requested: Collection[str], strict: bool) -> None:
    for status in states.values():
        if status.state in (State.READY, State.FOUND, State.DISABLED):
            continue
        where = f"plugin '{status.name}' ({status.distribution or status.location} {status.version})"
        if strict or status.name in requested:
            raise PluginError(
                f"{where} is {status.state}: {status.reason}; --no-plugin {status.name} leaves it out"
            )
        logger.warning("%s is %s and was set aside: %s", where, status.state, status.reason)


def _with(
    hooks: tuple[tuple[str, Hook], ...], plugin: str, hook: Hook | None
) -> tuple[tuple[str, Hook], ...]:
    return tuple(sorted((*hooks, (plugin, hook)), key=lambda item: item[0])) if hook else hooks
