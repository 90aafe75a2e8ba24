"""``tactician refit``: new weights in a built engine, without timing again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from tactician.cli.command import Output, command
from tactician.cli.options import Shape, plugin_options


@command("refit")
@click.argument("engine", type=click.Path(path_type=Path))
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The new engine file.",
)
@click.option("--shapes", type=Shape(), multiple=True, help="As the engine was built with. Repeatable.")
@click.option("--without", metavar="PASS", multiple=True, help="As the engine was built with. Repeatable.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "tf32", "fp16", "bf16"]),
    help="As the engine was built with.",
)
@click.option("--device", type=click.IntRange(min=0), default=0, help="Index of the device.")
@plugin_options
def refit_command(out: Output, engine: Path, model: Path, output: Path, shapes: Any, **options: Any) -> None:
    """Put new weights into an engine.

    MODEL is the network that ENGINE was built from, trained otherwise. Tactics, memory and compiled kernels stay as
    they are, and nothing is timed. It fails where the new model is another network: other shapes, operators or
    scalars, or weights that were equal and no longer are.
    """
    import time

    from tactician.config import BuilderConfig
    from tactician.engine import Engine
    from tactician.refitting import refit
    from tactician.report.format import duration, size

    config = BuilderConfig(shapes=dict(shapes), **options | {"plugins": options["plugins"] or None})
    start = time.perf_counter()
    made = refit(Engine.load(engine), model, config)
    made.save(output)
    seconds = time.perf_counter() - start
    out.result({"engine": str(output), "seconds": seconds, "weights": len(made.weights)})
    out.text(
        f"wrote    {output} ({size(output.stat().st_size)}) in {duration(seconds)}, with the weights of {model}"
    )
