"""``tactician plugins``: which plugins are there, in what state, and why."""

from __future__ import annotations

from typing import Any

import click
from tactician.cli.command import Output, command
from tactician.cli.options import plugin_config, plugin_options


@command("plugins")
@click.argument("name", required=False)
@click.option("--load", is_flag=True, help="Import and check them, and count what they bring.")
@click.option(
    "--check",
    is_flag=True,
    help="Hold NAME, a plugin or a .py file, to the conformance kit; exit with 6 if it fails.",
)
@click.option("--target", default="cpu", show_default=True, help="Whose tactics --check is about.")
@plugin_options
def plugins_command(
    out: Output, name: str | None, load: bool, check: bool, target: str, **options: Any
) -> None:
    """List plugins, their state and why.

    Without --load no plugin code is imported, so that a broken plugin can't stand in the way of its own
    removal.
    """
    if check:
        if any(options.values()):
            raise click.UsageError(
                "--check loads NAME and the built-in kernels alone: leave -p, --no-plugin and --strict out"
            )
        _check(out, name, target)
        return
    from dataclasses import asdict

    from tactician.errors import UnknownPluginError
    from tactician.plugins.manager import load_plugins, survey_plugins
    from tactician.project import near_matches
    from tactician.report.format import table

    config = plugin_config(**options)
    loaded = load_plugins(config) if load else None
    states = loaded.states if loaded else survey_plugins(config)
    if name is not None and name not in states:
        raise UnknownPluginError(f"plugin '{name}' is not installed{near_matches(name, states)}")
    shown = {n: s for n, s in sorted(states.items()) if name in (None, n)}
    counts = {n: _counts(loaded, n) for n in shown} if loaded else {}
    out.result([asdict(s) | counts.get(n, {}) for n, s in shown.items()])
    header = [
        "plugin",
        "version",
        "state",
        *(["brings"] if loaded else []),
        "distribution",
        "where",
        "reason",
    ]
    rows = [
        [
            n,
            s.version,
            s.state,
            *([_brings(counts[n])] if loaded else []),
            s.distribution or "-",
            s.location,
            s.reason,
        ]
        for n, s in shown.items()
    ]
    out.text(table(header, rows))


def _check(out: Output, name: str | None, target: str) -> None:
    import msgspec
    from tactician.errors import ConfigError, PluginError
    from tactician.report.format import table

    if name is None:
        raise ConfigError("--check needs a plugin: tactician plugins NAME --check")
    try:
        from tactician.testing import check_plugin
    except ImportError as error:
        raise ConfigError(
            f"the conformance kit needs hypothesis ({error}); pip install hypothesis"
        ) from error
    results = check_plugin(name, target=target)
    out.result(msgspec.to_builtins(results))
    rows = [(r.name, "passed" if r.ok else "FAILED", r.message) for r in results]
    out.text(table(("check", "", "what was found"), rows))
    failed = [r for r in results if not r.ok]
    if failed:
        advice = "\n".join(f"  {r.name}: {r.advice}" for r in failed)
        raise PluginError(f"'{name}' fails {len(failed)} of {len(results)} checks:\n{advice}")


def _counts(plugins: Any, name: str) -> dict[str, Any]:
    ref = plugins.refs.get(name)
    return {
        "tactics": sum(r.name == name for r, _ in plugins.registry),
        "targets": sorted(t for t, owner in plugins.target_plugins.items() if owner == name),
        "ops": sorted(plugins.op_names(name)),
        "digest": ref.digest if ref else None,
    }


def _brings(counts: dict[str, Any]) -> str:
    parts = [f"{counts['tactics']} tactics"] if counts["tactics"] else []
    parts += [f"{len(counts['ops'])} ops"] if counts["ops"] else []
    return ", ".join([*parts, *(f"target {t}" for t in counts["targets"])]) or "-"
