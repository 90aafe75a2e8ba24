"""``tactician explain``: why this tactic."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

import click
from tactician.cli.command import Output, command


@command("explain")
@click.argument("engine", type=click.Path(path_type=Path))
@click.argument("node", required=False, metavar="[NODE-GLOB]")
@click.option("-v", "--verbose", is_flag=True, help="List declined candidates one by one.")
def explain_command(out: Output, engine: Path, node: str | None, verbose: bool) -> None:
    """Show why each tactic was chosen.

    For each node that runs: every candidate with its time, interval, error and workspace, and what became of it; who
    chose; and what it was fused with, or could have been. NODE-GLOB also finds operators within a fused node, and
    what each would have run by itself.
    """
    from tactician.engine import Engine
    from tactician.errors import SelectionError
    from tactician.project import near_matches
    from tactician.report.explain import explain, matching, to_plain

    loaded = Engine.load(engine, verify_weights=False)
    fusions, apart = loaded.report.fusions, loaded.report.apart if node is not None else ()
    decisions = matching(loaded.report.decisions, node)
    decisions += matching(apart, node)
    views = [v for v in loaded.report.views if node is not None and fnmatchcase(v, node)]
    if node is not None and not decisions and not views:
        names = [n for d in loaded.report.decisions for n in d.nodes] + [n for f in fusions for n in f.nodes]
        names += loaded.report.views
        raise SelectionError(f"no node of '{engine}' matches '{node}'{near_matches(node, names)}")
    out.result([to_plain(d, fusions) for d in decisions] + [{"nodes": [v], "view": True} for v in views])
    told = [explain(d, loaded.plan.target, fusions=fusions, verbose=verbose) for d in decisions]
    told += [f"{v}   a view: its result lies where its input does, and nothing runs" for v in views]
    out.text("\n\n".join(told))
