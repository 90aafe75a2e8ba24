"""``tactician plugins new``: begins a package that passes its own tests, with a kernel to put one's own in place of."""

from __future__ import annotations

from pathlib import Path

import click
from tactician.cli.command import Output, command

KINDS = ("cuda", "triton", "op", "selector", "target")


@command("new")
@click.argument("name")
@click.option("--kind", type=click.Choice(KINDS), required=True, help="What the package is to bring.")
@click.option(
    "--into",
    type=click.Path(path_type=Path),
    help="Folder to make; by default tactician-NAME in the working folder.",
)
def new_command(out: Output, name: str, kind: str, into: Path | None) -> None:
    """Begin the plugin package NAME.

    Writes a distribution that can be installed and passes its own tests at once: a kernel in CUDA C++
    (cuda) or Triton (triton), an operator (op), a policy (selector), or a kind of device (target). Put your
    own in its place.
    """
    from tactician.scaffold import create

    files = create(name, kind, into)
    folder = files[0].parent
    out.result({"folder": str(folder), "files": [str(f.relative_to(folder)) for f in files]})
    out.text(f"made {folder}:")
    out.text("\n".join(f"  {f.relative_to(folder)}" for f in files))
    out.text(f"\nnext:\n  pip install -e '{folder}[test]'\n  python -m pytest {folder}")
