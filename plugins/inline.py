"""A plugin without a file: hooks that were written in a notebook or a script, under a name."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import cached_property
from types import ModuleType
from typing import Any

from tactician.errors import PluginError

DECLARATIONS = ("TACTICIAN_API", "TACTICIAN_DOMAINS", "__version__")
_MARK = "tactician_impl"
"""Attribute that ``hookimpl`` sets on a function."""


class InlinePlugin:
    """The hooks in a namespace, as a plugin: ``BuilderConfig(plugins=(InlinePlugin("square", globals()),))``.

    What a notebook's cells or a script define competes as what a distribution brings: the same functions, decorated
    with ``hookimpl``, are found. The plugin is sent to other processes by value, so that it is measured in isolation
    too, and its content hash is of what was sent. An engine that uses it needs it again:
    ``Session(engine, plugins=[plugin])``.

    Parameters
    ----------
    name
        Name of the plugin: its tactics' ids begin with it, and its operators live in the domain of that name.
    namespace
        A mapping such as ``globals()``, or a module.

    Raises
    ------
    PluginError
        If the namespace holds no hook.
    """

    def __init__(self, name: str, namespace: Mapping[str, Any] | ModuleType) -> None:
        members = dict(vars(namespace)) if isinstance(namespace, ModuleType) else dict(namespace)
        hooks = {
            key: value for key, value in members.items() if inspect.isroutine(value) and hasattr(value, _MARK)
        }
        if not hooks:
            raise PluginError(
                f"InlinePlugin '{name}': the namespace has no hook; decorate functions such as tactics() with "
                "tactician.hookimpl, and make the plugin after them"
            )
        self.name = name
        self._take(hooks | {key: members[key] for key in DECLARATIONS if key in members})

    def __repr__(self) -> str:
        return f"InlinePlugin({self.name!r}: {', '.join(sorted(self._hooks))})"

    def __reduce__(self) -> tuple[Callable[..., InlinePlugin], tuple[str, bytes, str]]:
        return _restore, (self.name, self.content, self.digest)

    @cached_property
    def content(self) -> bytes:
        """The hooks and all that they refer to, as cloudpickle writes them.

        Raises
        ------
        PluginError
            If they refer to something that can't be sent to another process.
        """
        import cloudpickle  # 30 ms, for those alone who use it

        members = {key: value for key, value in vars(self).items() if key in (*self._hooks, *DECLARATIONS)}
        with ExitStack() as stack:
            for module in {value.__module__ for value in self._hooks.values()} - {"__main__"}:
                # what a module's name stands for may be another thing in the other process, or in the next hour
                if module in sys.modules:
                    cloudpickle.register_pickle_by_value(sys.modules[module])
                    stack.callback(cloudpickle.unregister_pickle_by_value, sys.modules[module])
            try:
                return bytes(cloudpickle.dumps(members))
            except Exception as error:
                raise PluginError(
                    f"InlinePlugin '{self.name}' refers to what can't be sent to another process "
                    f"({type(error).__name__}: {error}); make such objects within prepare, or put the plugin into a "
                    "file: plugins=('my_plugin.py',)"
                ) from error

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of its content: another one as soon as anything that its hooks refer to is another.

        The same cells, run again, have the same one.
        """
        return hashlib.sha256(_without_marks(self.content)).hexdigest()

    def _take(self, members: Mapping[str, Any]) -> None:
        self._hooks = {key: value for key, value in members.items() if key not in DECLARATIONS}
        vars(self).update(members)  # pluggy finds hooks as attributes


def _without_marks(content: bytes) -> bytes:
    """Return ``content`` without the random marks by which cloudpickle knows a class again."""
    import cloudpickle

    # not public: where it is gone, the same cells have another hash when they are run again, and are measured again
    marks = getattr(cloudpickle.cloudpickle, "_DYNAMIC_CLASS_TRACKER_BY_CLASS", {})
    for mark in sorted(set(marks.values())):
        content = content.replace(str(mark).encode(), b"")
    return content


def _restore(name: str, content: bytes, digest: str) -> InlinePlugin:
    import cloudpickle

    plugin = InlinePlugin.__new__(InlinePlugin)
    plugin.name = name
    plugin._take(cloudpickle.loads(content))
    # made of the classes here they would be others
    vars(plugin).update(content=content, digest=digest)
    return plugin
