"""``tactician lock``: look into lock files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from tactician.cli.command import Output, command

if TYPE_CHECKING:
    from tactician.tactics.lock import LockedPlugin
    from tactician.tactics.lock_diff import Choice, ChoiceChange


@click.group("lock")
def lock_command() -> None:
    """Look into lock files."""


@command("diff")
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@click.option("--fail-if-different", is_flag=True, help="Exit with 5 if any choice or plugin differs.")
def diff_command(out: Output, before: Path, after: Path, fail_if_different: bool) -> None:
    """Show which nodes got another tactic, and which plugins have other files.

    Nodes that changed in the same way are shown together.
    """
    import msgspec
    from tactician.errors import LockMismatchError
    from tactician.report.format import plural
    from tactician.tactics.lock import LockFile
    from tactician.tactics.lock_diff import choice_changes, plugin_changes

    old, new = LockFile.load(before), LockFile.load(after)
    choices, plugins = choice_changes(old, new), plugin_changes(old, new)
    out.result({"choices": msgspec.to_builtins(choices), "plugins": msgspec.to_builtins(plugins)})
    for plugin in plugins:
        out.text(f"plugin {plugin.name}: {_version(plugin.before)} → {_version(plugin.after)}")
    for change in choices:
        out.text(describe(change))
    changed = len({node for c in choices for node in c.nodes})
    said = f"{plural(changed, 'node')} of {len(old.nodes.keys() | new.nodes.keys())} differ"
    out.text(said if choices or plugins else "no difference")
    if fail_if_different and (choices or plugins):
        raise LockMismatchError(
            f"'{after}' differs from '{before}': {said}, {plural(len(plugins), 'plugin')}"
        )


lock_command.add_command(diff_command)


def describe(change: ChoiceChange) -> str:
    """Return a change as lines of text."""
    nodes = ", ".join(change.nodes)
    signature = next(c.signature for c in (change.after, change.before) if c is not None)
    return f"{nodes}: {signature}\n  - {_choice(change.before)}\n  + {_choice(change.after)}"


def _choice(choice: Choice | None) -> str:
    return (
        "(not there)" if choice is None else f"{choice.tactic}, version {choice.version}, on {choice.target}"
    )


def _version(plugin: LockedPlugin | None) -> str:
    return "(not used)" if plugin is None else f"{plugin.version} ({plugin.digest[:12]})"
