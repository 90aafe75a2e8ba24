"""``tactician build``: a model becomes an engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tactician import __version__
from tactician.cli.build_summary import engines_of, measure_latency, summary, to_plain, write_report
from tactician.cli.command import Output, command
from tactician.cli.options import Names, PrecisionRule, Profile, Rule, Shape, Size, plugin_options

if TYPE_CHECKING:
    from tactician.config import BuilderConfig
    from tactician.engine import Engine


@command("build", project_defaults=True)
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Engine file; by default MODEL with .tactician."
)
@click.option(
    "--shapes",
    type=Shape(),
    multiple=True,
    help="Bind an input's symbolic dimensions: input:8x3x224x224. Repeatable.",
)
@click.option(
    "--profile",
    "profiles",
    type=Profile(),
    multiple=True,
    help="Build for a range of shapes, measured at OPT: input:1x3x224x224..8x3x224x224..32x3x224x224, with commas between "
    "inputs. Repeatable: any shape within one profile runs.",
)
@click.option(
    "--target", metavar="NAME", help="cuda, cpu or another plugin's; by default cuda where there is a GPU."
)
@click.option("--device", type=click.IntRange(min=0), default=0, help="Index of the device.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "tf32", "fp16", "bf16", "best"]),
    help="What tensors of fp32 are computed in. Inputs and outputs keep their types; sums stay in fp32. best: build in "
    "all, and keep the fastest that is close enough.",
)
@click.option(
    "--precision-tolerance",
    type=float,
    default=5e-3,
    show_default=True,
    help="Largest relative error of an output, against fp32, that --precision best takes.",
)
@click.option(
    "--node-precision",
    "precision_rules",
    type=PrecisionRule(),
    multiple=True,
    help="Compute these nodes in fp32, or in 16 bits though it is risky; the last that matches wins. Repeatable.",
)
@click.option(
    "--tf32/--no-tf32", default=False, help="Whether fp32 products may be rounded to tf32. Default: no."
)
@click.option(
    "--deterministic", is_flag=True, help="Allow only tactics whose repeated runs are equal bit for bit."
)
@click.option(
    "--workspace", "workspace_limit", type=Size(), help="Most scratch memory of one tactic, such as 64MiB."
)
@click.option(
    "--sources", type=Names(), default=(), help="Allow plugins and libraries by name, or forbid them: -cudnn."
)
@click.option(
    "--tactic",
    "tactic_rules",
    type=Rule(),
    multiple=True,
    help="Pin tactics: 'NODE-GLOB=TACTIC-GLOB'. Repeatable.",
)
@click.option(
    "--avg-timing-iterations",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Fewest rounds of a race.",
)
@click.option(
    "--max-candidates", type=click.IntRange(min=1), help="Most candidates of one call that are timed."
)
@click.option(
    "--exhaustive", is_flag=True, help="Time every configuration of every tactic, not the likely ones alone."
)
@click.option(
    "--timing-cache", type=click.Path(path_type=Path), help="Timing cache file; by default the user's own."
)
@click.option("--no-timing-cache", is_flag=True, help="Neither read nor write a timing cache.")
@click.option("--error-on-timing-cache-miss", is_flag=True, help="Fail instead of measuring.")
@click.option(
    "--lock", type=click.Path(path_type=Path), help="Lock file: replayed if it exists, then written."
)
@click.option("--locked", is_flag=True, help="Fail if anything is not as in the lock file.")
@click.option(
    "--threads", type=click.IntRange(min=1), help="Host threads; by default all that this process may use."
)
@click.option(
    "--isolate/--no-isolate",
    default=None,
    help="Whether candidates are measured in a process of their own. By default as the target asks: on GPUs.",
)
@click.option(
    "--candidate-timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    help="Most seconds of one run of a candidate in a process of its own.",
)
@click.option("--seed", type=int, default=0, help="Seed of the random inputs for checking and timing.")
@click.option("--without", metavar="PASS", multiple=True, help="Leave out a pass. Repeatable.")
@click.option(
    "--dump-stages",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write the network as ONNX after each pass.",
)
@click.option(
    "--report",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write all decisions, with every candidate, and all fusions as JSON.",
)
@plugin_options
def build_command(
    out: Output, model: Path, output: Path | None, lock: Path | None, report: Path | None, **options: Any
) -> None:
    """Build an engine from an ONNX model.

    Every operator of the model is put to every tactic that installed plugins offer. Those that accept are
    checked against a reference and timed on this machine, and the fastest that is right is kept. Ctrl-C keeps
    what was timed: the next build goes on from there. Defaults may stand in the project file (tactician.toml,
    or [tool.tactician] in pyproject.toml) under the options' names.
    """
    from tactician.errors import ConfigError

    output = output or model.with_suffix(".tactician")
    if output.absolute() == model.absolute():
        raise ConfigError(f"the engine would overwrite the model '{model}'; name another file with -o")
    lock_file = lock or output.with_suffix(".lock.json")
    from tactician.builder import build
    from tactician.cli.progress import ProgressPrinter
    from tactician.profiles import numbered

    config = make_config(options, lock_file if lock or options["locked"] else None)
    _print_header(out, model, config)
    with ProgressPrinter(out) as progress:
        engine = build(model, config, progress=progress)
    engine.save(output)
    parts = engines_of(engine)
    lock_files = [numbered(lock_file, n) for n in range(len(parts))] if config.profiles else [lock_file]
    if not config.locked:
        for part, path in zip(parts, lock_files, strict=True):
            _write_lock(part, path)
    if report is not None:
        write_report(engine, report)
    latencies = [measure_latency(part, options) for part in parts]
    for warning in dict.fromkeys(w for part in parts for w in part.report.warnings):
        out.warn(warning)
    out.result(to_plain(engine, output, lock_files, latencies))
    out.text(summary(engine, output, lock_files, latencies))


def make_config(options: dict[str, Any], lock_file: Path | None) -> BuilderConfig:
    """Return the config that the command line's options make."""
    from tactician.config import BuilderConfig

    fields = dict(options)
    fields["shapes"] = dict(fields["shapes"])
    fields["plugins"] = fields["plugins"] or None
    fields["use_timing_cache"] = not fields.pop("no_timing_cache")
    if fields["threads"] is None:
        del fields["threads"]
    return BuilderConfig(**fields, lock_file=lock_file)


def _print_header(out: Output, model: Path, config: BuilderConfig) -> None:
    from tactician.plugins.discovery import State
    from tactician.plugins.manager import survey_plugins

    states = survey_plugins(config).values()
    names = [f"{s.name} {s.version}" for s in states if s.state is State.FOUND]
    aside = [f"{s.name} {s.state}" for s in states if s.state is not State.FOUND]
    out.note(f"tactician {__version__}   model {model}")
    out.note(
        f"plugins: {', '.join(names) or 'none'}" + (f"   (left out: {', '.join(aside)})" if aside else "")
    )


def _write_lock(engine: Engine, path: Path) -> None:
    from tactician.report.inspect import device_name
    from tactician.tactics.lock import LockFile

    plan, name = engine.plan, device_name(engine.report.device)
    LockFile.of(engine.report.decisions, plan.plugins, target=plan.target, device=name).save(path)
