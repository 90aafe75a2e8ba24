"""What one plugin contributes, checked against the contract before anything of it is used."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pluggy
from tactician.errors import PluginError
from tactician.plugins import hookspecs
from tactician.plugins.api_version import API_VERSION, api_mismatch
from tactician.plugins.hookspecs import PROJECT
from tactician.plugins.op import Op
from tactician.plugins.target import Target
from tactician.project import near_matches
from tactician.tactics.registry import PluginRef, Registry
from tactician.tactics.tactic import Tactic

if TYPE_CHECKING:
    from tactician.passes import Pass

RESERVED_DOMAINS = ("ai.onnx", "com.microsoft", "org.pytorch", "pkg.onnxscript")
STEERING_HOOKS = ("filter_tactics", "select_tactic", "report_choices")

Hook = Callable[..., Any]
"""A hook of one plugin: called with arguments by name, it returns what the plugin returned, or None."""


class IncompatibleError(PluginError):
    """A plugin was written for another version of the contract."""


@dataclass(frozen=True)
class Contribution:
    """All that one plugin brings."""

    ops: tuple[Op, ...] = ()
    tactics: tuple[type[Tactic], ...] = ()
    targets: tuple[Target, ...] = ()
    passes: tuple[Pass, ...] = ()
    hooks: dict[str, Hook] = field(default_factory=dict)


def read_contribution(ref: PluginRef, plugin: Any, *, run_only: bool = False) -> Contribution:
    """Ask the hooks of ``plugin`` (a module or an object) and check what they return.

    Parameters
    ----------
    run_only
        Leave out what only a build needs: passes and steering hooks.

    Raises
    ------
    IncompatibleError
        If ``TACTICIAN_API`` of the plugin names a contract that this version does not keep.
    PluginError
        If a hook is misspelt, has wrong arguments, or returns what its contract does not allow.
    """
    _check_api(plugin)
    if inspect.isclass(plugin):
        raise PluginError(f"its entry point names the class {plugin.__name__}; name a module or an object")
    manager = _register(ref.name, plugin)
    ops = tuple(_ask(manager, "ops", Op))
    for op in ops:
        _check_domain(ref.name, op, getattr(plugin, "TACTICIAN_DOMAINS", ()))
    tactics = tuple(_ask(manager, "tactics", Tactic, classes=True))
    scratch = Registry()
    for tactic in tactics:
        scratch.add(ref, tactic)
    targets = tuple(cls() for cls in _ask(manager, "targets", Target, classes=True))
    if run_only:
        return Contribution(ops, tactics, targets)
    passes = tuple(_ask(manager, "passes", object))
    for step in passes:
        if not callable(step):
            raise PluginError(f"its hook passes() returned {step!r}, which can't be called")
    hooks = {
        name: _steering_hook(manager, name)
        for name in STEERING_HOOKS
        if getattr(manager.hook, name).get_hookimpls()
    }
    return Contribution(ops, tactics, targets, passes, hooks)


def _check_api(plugin: Any) -> None:
    """Compare ``TACTICIAN_API = (major, minor)``, which a plugin's module may set, with the contract here."""
    wanted = getattr(plugin, "TACTICIAN_API", None)
    if wanted is None:
        return
    if not isinstance(wanted, tuple) or len(wanted) != 2 or not all(isinstance(n, int) for n in wanted):
        raise PluginError(f"its TACTICIAN_API is {wanted!r}; write a tuple such as {API_VERSION}")
    reason = api_mismatch(wanted)
    if reason:
        raise IncompatibleError(reason)


def _register(name: str, plugin: Any) -> pluggy.PluginManager:
    """Return a manager that knows this plugin alone, so that every result is known to be its own."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hookspecs)
    try:
        manager.register(plugin, name)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        known = {n for n in vars(manager.hook) if not n.startswith("_")}
        unknown = next((c.name for c in manager.get_hookcallers(plugin) or () if not c.has_spec()), None)
        if unknown is None:
            raise PluginError(f"a hook has wrong arguments: {' '.join(str(error).split())}") from error
        raise PluginError(
            f"it implements '{unknown}', which is no hook{near_matches(unknown, known - {unknown})}"
        ) from error
    return manager


def _ask(manager: pluggy.PluginManager, hook: str, kind: type, *, classes: bool = False) -> list[Any]:
    """Call a hook that returns a list, and check the list and the type of its members."""
    items: list[Any] = []
    for result in getattr(manager.hook, hook)():
        if not isinstance(result, Sequence) or isinstance(result, str):
            raise PluginError(f"its hook {hook}() returned {result!r} instead of a list")
        items += result
    for item in items:
        if classes and not (inspect.isclass(item) and issubclass(item, kind)):
            raise PluginError(f"its hook {hook}() returned {item!r}, which is no subclass of {kind.__name__}")
        if classes and inspect.isabstract(item):
            missing = ", ".join(sorted(item.__abstractmethods__))
            raise PluginError(f"{item.__name__}, which its hook {hook}() returned, lacks {missing}")
        if not classes and not isinstance(item, kind):
            raise PluginError(f"its hook {hook}() returned {item!r}, which is no {kind.__name__}")
    return items


def _check_domain(plugin: str, op: Op, declared: Sequence[str]) -> None:
    domain, separator, op_type = op.name.partition("::")
    if not separator or not op_type or not domain:
        raise PluginError(f"its operator is called '{op.name}'; write 'domain::Name'")
    if any(domain == r or domain.startswith(r + ".") for r in RESERVED_DOMAINS):
        raise PluginError(
            f"its operator '{op.name}' is in the reserved domain '{domain}'; use '{plugin}::{op_type}'"
        )
    if domain != plugin and domain not in declared:
        raise PluginError(
            f"its operator '{op.name}' is outside of its own domain; use '{plugin}::{op_type}', or declare "
            f'TACTICIAN_DOMAINS = ("{domain}",)'
        )


def _steering_hook(manager: pluggy.PluginManager, name: str) -> Hook:
    caller = getattr(manager.hook, name)

    def hook(**arguments: Any) -> Any:
        results = caller(**arguments)  # pluggy leaves None out
        return results[0] if results else None

    hook.__name__ = name
    return hook
