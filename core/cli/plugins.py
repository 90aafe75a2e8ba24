"""``tactician plugins``: which plugins are there, in what state, and why; what helps to write and to mend one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from tactician.cli.command import Output, command
from tactician.cli.options import plugin_config, plugin_options
from tactician.cli.plugins_check import check_command
from tactician.cli.plugins_new import new_command

if TYPE_CHECKING:
    from tactician.plugins.discovery import PluginStatus
    from tactician.tactics.cache_rows import CacheRow


class ListByDefault(click.Group):
    """A group that runs ``list`` where no command is named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put ``list`` before options that are not the group's own."""
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Say what may have been meant where a plugin is named in place of a command."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            raise click.UsageError(
                f"{error.message} For a plugin: tactician plugins info {args[0]}"
            ) from error


@click.group("plugins", cls=ListByDefault)
def plugins_command() -> None:
    """List plugins, look into one, check it, begin one.

    Without a command, `list`.
    """


@command("list")
@click.option("--load", is_flag=True, help="Import and check them, and count what they bring.")
@plugin_options
def list_command(out: Output, load: bool, **options: Any) -> None:
    """List plugins, their state and why.

    Without --load no plugin code is imported, so that a broken plugin can't stand in the way of its own
    removal.
    """
    from dataclasses import asdict

    from tactician.plugins.manager import load_plugins, survey_plugins
    from tactician.report.format import table

    config = plugin_config(**options)
    loaded = load_plugins(config) if load else None
    states = dict(sorted((loaded.states if loaded else survey_plugins(config)).items()))
    counts = {name: _counts(loaded, name) for name in states} if loaded else {}
    out.result([asdict(s) | counts.get(name, {}) for name, s in states.items()])
    brings = ["brings"] if loaded else []
    header = ["plugin", "version", "state", *brings, "distribution", "where", "reason"]
    rows = [
        [
            n,
            s.version,
            s.state,
            *map(_brings, [counts[n]] if loaded else []),
            s.distribution or "-",
            s.location,
            s.reason,
        ]
        for n, s in states.items()
    ]
    out.text(table(header, rows))


@command("info")
@click.argument("name")
@click.option("--load", is_flag=True, help="Import it, and list what it brings.")
@plugin_options
def info_command(out: Output, name: str, load: bool, **options: Any) -> None:
    """Show what is known of the plugin NAME.

    Its state, where it comes from, what it brings (with --load), and which of its tactics the timing cache knows to
    fail or to be wrong.
    """
    from dataclasses import asdict

    from tactician.plugins.manager import load_plugins, survey_plugins

    config = plugin_config(**options)
    loaded = load_plugins(config) if load else None
    status = _known(name, loaded.states if loaded else survey_plugins(config))
    counts = _counts(loaded, name) if loaded else {}
    failures = _failures(name)
    failed = [{"tactic": row.tactic, "outcome": str(row.outcome), "reason": row.reason} for row in failures]
    out.result(asdict(status) | counts | {"failures": failed})
    for key, value in asdict(status).items():
        out.text(f"{key:13}{value or '-'}")
    for key, value in counts.items():
        out.text(f"{key:13}{', '.join(value) if isinstance(value, list) else value or '-'}")
    for tactic, outcome, reason in dict.fromkeys((f["tactic"], f["outcome"], f["reason"]) for f in failed):
        out.text(f"{outcome:13}{tactic}: {reason}")


@command("retry")
@click.argument("name")
@plugin_options
def retry_command(out: Output, name: str, **options: Any) -> None:
    """Try the plugin NAME again.

    Forgets that importing it took a process down, and which of its tactics failed, were wrong, hung or crashed. The
    next build imports, checks and times them as if it had never seen them. A new version of a plugin needs no retry.
    """
    from tactician.plugins.manager import survey_plugins
    from tactician.plugins.quarantine import Quarantine
    from tactician.report.format import plural
    from tactician.tactics.cache import TimingCache, default_path

    _known(name, survey_plugins(plugin_config(**options)))
    released = Quarantine.of_user().release(name)
    forgotten = TimingCache().forget_failures(name) if default_path().exists() else 0
    out.result({"plugin": name, "released": released, "forgotten": forgotten})
    parts = ["released from quarantine"] if released else []
    parts += [f"{plural(forgotten, 'verdict')} forgotten"] if forgotten else []
    out.text(f"{name}: {', '.join(parts) or 'there was nothing to forget'}")


for subcommand in (list_command, info_command, check_command, new_command, retry_command):
    plugins_command.add_command(subcommand)


def _known(name: str, states: dict[str, PluginStatus]) -> PluginStatus:
    from tactician.errors import UnknownPluginError
    from tactician.project import near_matches

    if name not in states:
        hint = near_matches(name, states)
        if name.endswith(".py"):
            hint = f"; a file is named with -p: tactician plugins list -p {name}"
        raise UnknownPluginError(f"plugin '{name}' is not installed{hint}")
    return states[name]


def _failures(name: str) -> list[CacheRow]:
    from tactician.tactics.cache import TimingCache, default_path

    return TimingCache().failures(name) if default_path().exists() else []


def _counts(plugins: Any, name: str) -> dict[str, Any]:
    ref = plugins.refs.get(name)
    return {
        "tactics": [f"{name}.{t.name()}" for r, t in plugins.registry if r.name == name],
        "targets": sorted(t for t, owner in plugins.target_plugins.items() if owner == name),
        "ops": sorted(plugins.op_names(name)),
        "digest": ref.digest if ref else None,
    }


def _brings(counts: dict[str, Any]) -> str:
    parts = [f"{len(counts['tactics'])} tactics"] if counts["tactics"] else []
    parts += [f"{len(counts['ops'])} ops"] if counts["ops"] else []
    return ", ".join([*parts, *(f"target {t}" for t in counts["targets"])]) or "-"
