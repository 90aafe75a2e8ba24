"""``tactician explain``: why this tactic."""

from __future__ import annotations

from pathlib import Path

import click
from tactician.cli.command import Output, command


@command("explain")
@click.argument("engine", type=click.Path(path_type=Path))
@click.argument("node", required=False, metavar="[NODE-GLOB]")
@click.option("-v", "--verbose", is_flag=True, help="List declined candidates one by one.")
def explain_command(out: Output, engine: Path, node: str | None, verbose: bool) -> None:
    """Show why each tactic was chosen.

    For each node: every candidate with its time, interval, error and workspace, and what became of it; and
    who chose.
    """
    from tactician.engine import Engine
    from tactician.errors import SelectionError
    from tactician.project import near_matches
    from tactician.report.explain import explain, matching, to_plain

    loaded = Engine.load(engine, verify_weights=False)
    decisions = matching(loaded.report.decisions, node)
    if node is not None and not decisions:
        names = [n for d in loaded.report.decisions for n in d.nodes]
        raise SelectionError(f"no node of '{engine}' matches '{node}'{near_matches(node, names)}")
    out.result([to_plain(d) for d in decisions])
    out.text("\n\n".join(explain(d, loaded.plan.target, verbose=verbose) for d in decisions))
