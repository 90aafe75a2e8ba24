"""``tactician explain``: why this tactic."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import click
from tactician.cli.command import Output, command
from tactician.cli.session import load_engine, profile_option

if TYPE_CHECKING:
    from tactician.engine import Engine


@command("explain")
@click.argument("engine", type=click.Path(path_type=Path))
@click.argument("node", required=False, metavar="[NODE-GLOB]")
@click.option(
    "--fusion", "fusion_only", is_flag=True, help="Show only what nodes were, or could have been, fused with."
)
@click.option("-v", "--verbose", is_flag=True, help="List declined candidates one by one.")
@profile_option
def explain_command(
    out: Output, engine: Path, node: str | None, fusion_only: bool, verbose: bool, profile_index: int
) -> None:
    """Show why each tactic was chosen.

    For each node that runs: every candidate with its time, interval, error and workspace, and what became of it; who
    chose; and what it was fused with, or could have been. NODE-GLOB also finds operators within a fused node, and
    what each would have run by itself.
    """
    from tactician.errors import SelectionError
    from tactician.project import near_matches
    from tactician.report.explain import explain, matching, to_plain

    loaded, _ = load_engine(engine, profile_index)
    if fusion_only:
        _tell_fusions(out, loaded, engine, node)
        return
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


def _tell_fusions(out: Output, loaded: Engine, path: Path, node: str | None) -> None:
    """Tell what came of each subgraph that could have been one node, or why something near one is none."""
    import msgspec
    from tactician.errors import SelectionError
    from tactician.project import near_matches
    from tactician.report.explain import fusion_text

    report = loaded.report
    found = [
        f for f in report.fusions if node is None or any(fnmatchcase(n, node) for n in (f.name, *f.nodes))
    ]
    known = [n for d in (*report.decisions, *report.apart) for n in d.nodes] + list(report.views)
    if node is not None and not found and not any(fnmatchcase(n, node) for n in known):
        raise SelectionError(f"no node of '{path}' matches '{node}'{near_matches(node, known)}")
    out.result(msgspec.to_builtins(found))
    nothing = f"nothing that could be one node was found at '{node}'" if node else "nothing could be one node"
    out.text("\n".join(map(fusion_text, found)) or nothing)
