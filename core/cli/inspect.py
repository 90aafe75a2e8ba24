"""``tactician inspect``: what an engine is and does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tactician.cli.command import Output, command
from tactician.cli.options import feed_option, make_feeds
from tactician.cli.session import feed_specs, load_engine, open_session, profile_option, session_options

if TYPE_CHECKING:
    from tactician.engine import Engine


@command("inspect")
@click.argument("engine", type=click.Path(path_type=Path))
@click.option("--profile", is_flag=True, help="Run the engine and show the time of each step.")
@click.option(
    "--iterations", type=click.IntRange(min=1), default=10, show_default=True, help="Runs that are timed."
)
@click.option(
    "--export-layer-info", type=click.Path(path_type=Path), help="Write the layers as TensorRT's tools do."
)
@click.option(
    "--export-profile", type=click.Path(path_type=Path), help="Write times of layers as TensorRT's tools do."
)
@profile_option
@feed_option
@session_options
def inspect_command(
    out: Output,
    engine: Path,
    profile: bool,
    iterations: int,
    export_layer_info: Path | None,
    export_profile: Path | None,
    profile_index: int,
    inputs: tuple[tuple[str, str], ...],
    seed: int,
    **options: Any,
) -> None:
    """Show what an engine is and does.

    Its model, device, plugins, inputs and outputs, memory, and steps. Needs neither the device nor the
    plugins, unless it is asked for times.
    """
    from statistics import median

    from tactician.report.inspect import describe, describe_profiles, describe_steps, layer_info, profile_info

    loaded, profiles = load_engine(engine, profile_index)
    rounds = _times(loaded, inputs, seed, iterations, options) if profile or export_profile else []
    seconds = [median(r[i] for r in rounds) for i in range(len(loaded.plan.steps))] if rounds else None
    if export_layer_info:
        _write(export_layer_info, layer_info(loaded.plan))
    if export_profile:
        _write(export_profile, profile_info(loaded.plan, rounds))
    plain_profiles = {"profiles": [str(p) for p in profiles], "profile": profile_index} if profiles else {}
    out.result(_plain(loaded, seconds) | plain_profiles)
    out.text(describe(loaded.plan, loaded.report.device))
    if profiles:
        out.text(describe_profiles(profiles, profile_index))
    out.text("")
    out.text(describe_steps(loaded.plan, seconds))


def _times(
    engine: Engine, inputs: tuple[tuple[str, str], ...], seed: int, iterations: int, options: dict[str, Any]
) -> list[list[float]]:
    """Return, for every iteration, the seconds of each step."""
    session = open_session(engine, **options)
    feeds = make_feeds(feed_specs(session), inputs, seed)
    return [[step.seconds for step in session.profile(feeds, 1)] for _ in range(iterations)]


def _plain(engine: Engine, seconds: Sequence[float] | None) -> dict[str, Any]:
    import msgspec
    from tactician.report.inspect import fallbacks

    plain: dict[str, Any] = msgspec.to_builtins(engine.plan)
    for number, step in enumerate(plain["steps"]):
        del step["signature"]  # exact, but no reading matter
        if seconds:
            step["seconds"] = seconds[number]
    report = {"device": dict(engine.report.device), "seconds": dict(engine.report.seconds)}
    return plain | {"build": report, "fallbacks": fallbacks(engine.plan)}


def _write(path: Path, plain: Any) -> None:
    import json

    from tactician.errors import ConfigError

    try:
        path.write_text(json.dumps(plain, indent=2) + "\n")
    except OSError as error:
        raise ConfigError(f"can't write '{path}': {error.strerror}") from error
