"""``tactician tactics``: every tactic class that loaded plugins offer."""

from __future__ import annotations

from typing import Any

import click
from tactician.cli.command import Output, command
from tactician.cli.options import plugin_config, plugin_options


@command("tactics")
@click.option("--op", metavar="GLOB", help="Only those that serve an operator, such as Conv or tactician::*.")
@click.option("--target", metavar="NAME", help="Only those for a target.")
@plugin_options
def tactics_command(out: Output, op: str | None, target: str | None, **options: Any) -> None:
    """List the tactics that plugins offer.

    What a tactic says to one particular node stands in `tactician explain`.
    """
    from tactician.plugins.manager import load_plugins
    from tactician.report.format import table

    plugins = load_plugins(plugin_config(**options))
    rows = [
        describe_tactic(ref.name, cls)
        for ref, cls in plugins.registry
        if (target is None or cls.target == target) and (op is None or _serves(cls, op))
    ]
    out.result(rows)
    header = ("tactic", "target", "library", "operators", "searched over")
    out.text(
        table(
            header,
            [
                (
                    row["id"],
                    row["target"],
                    row["library"] or "-",
                    _few([o.removeprefix("ai.onnx::") for o in row["ops"]]),
                    ", ".join(row["fields"]) or "-",
                )
                for row in rows
            ],
        )
    )


def describe_tactic(plugin: str, cls: Any) -> dict[str, Any]:
    """Return what there is to know of a tactic class."""
    import dataclasses

    return {
        "id": f"{plugin}.{cls.name()}",
        "plugin": plugin,
        "target": cls.target,
        "library": cls.library,
        "ops": [cls.op] if isinstance(cls.op, str) else sorted(cls.op),
        "version": cls.version,
        "fields": [f.name for f in dataclasses.fields(cls)],
    }


def _serves(cls: Any, pattern: str) -> bool:
    from fnmatch import fnmatchcase

    from tactician.tactics.tactic import ANY_OP

    ops = [cls.op] if isinstance(cls.op, str) else cls.op
    return any(o == ANY_OP or fnmatchcase(o, pattern) or fnmatchcase(o, f"ai.onnx::{pattern}") for o in ops)


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
