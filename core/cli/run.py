"""``tactician run``: run an engine once, save its outputs, and hold them against another runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from tactician.cli.command import Output, command
from tactician.cli.options import feed_option, make_feeds
from tactician.cli.session import feed_specs, open_session, session_options


@command("run")
@click.argument("engine", type=click.Path(path_type=Path))
@click.option(
    "--output-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Save each output there as a .npy file.",
)
@click.option(
    "--check",
    type=(click.Choice(["onnxruntime", "reference"]), click.Path(path_type=Path)),
    default=None,
    metavar="RUNTIME MODEL",
    help="Run the model with onnxruntime or reference (onnx's own evaluator) too, and compare.",
)
@click.option(
    "--tolerance", type=float, help="Largest relative error allowed; by default it follows the element type."
)
@feed_option
@session_options
def run_command(
    out: Output,
    engine: Path,
    output_dir: Path | None,
    check: tuple[str, Path] | None,
    tolerance: float | None,
    inputs: tuple[tuple[str, str], ...],
    seed: int,
    **options: Any,
) -> None:
    """Run an engine, and check its outputs.

    Inputs that are not given are random. The exit code is 3 if --check finds an output over its tolerance.
    """
    from tactician.report.inspect import fallbacks

    session = open_session(engine, **options)
    for line in fallbacks(session.plan):
        out.warn(line)
    feeds = make_feeds(feed_specs(session), inputs, seed)
    outputs = session.run(feeds)
    if output_dir:
        _save(output_dir, outputs)
    result: dict[str, Any] = {"outputs": {name: _describe(value) for name, value in outputs.items()}}
    if check:
        _check(out, outputs, _expected(*check, feeds), tolerance, result)
    else:
        out.result(result)
        _print(out, result["outputs"])


def _check(
    out: Output,
    outputs: dict[str, Any],
    expected: Mapping[str, Any],
    tolerance: float | None,
    result: dict[str, Any],
) -> None:
    import msgspec
    from tactician.errors import AccuracyError
    from tactician.report.accuracy import compare_outputs
    from tactician.report.format import table

    errors = compare_outputs(outputs, expected, tolerance)
    out.result(result | {"check": [msgspec.to_builtins(e) | {"ok": e.is_within} for e in errors]})
    rows = [
        (
            e.name,
            e.type,
            f"{e.max_absolute:.2e}",
            f"{e.max_relative:.2e}",
            f"{e.relative:.2e}",
            f"{e.tolerance:.0e}",
            "ok" if e.is_within else "OVER",
        )
        for e in errors
    ]
    header = ("output", "type", "max abs", "max rel", "‖out − ref‖/‖ref‖", "tolerance", "")
    out.text(table(header, rows, right=(2, 3, 4, 5)))
    over = [e for e in errors if not e.is_within]
    if over:
        worst = max(over, key=lambda e: e.relative)
        raise AccuracyError(
            f"output '{worst.name}' differs from the reference by {worst.relative:.2e}, over its tolerance "
            f"of {worst.tolerance:.0e}; `tactician explain` shows the error of every tactic"
        )


def _expected(runtime: str, model: Path, feeds: dict[str, Any]) -> dict[str, Any]:
    """Return what another runtime computes from the same inputs."""
    from tactician.errors import InvalidModelError

    if not model.is_file():
        raise InvalidModelError(f"model '{model}' does not exist")
    run = _run_onnxruntime if runtime == "onnxruntime" else _run_reference
    try:
        return run(model, feeds)
    except Exception as error:  # both raise types of their own for whatever is wrong with a model
        raise InvalidModelError(f"{runtime} can't run '{model}' on these inputs: {error}") from error


def _run_onnxruntime(model: Path, feeds: dict[str, Any]) -> dict[str, Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def _run_reference(model: Path, feeds: dict[str, Any]) -> dict[str, Any]:
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(str(model))
    return dict(zip(evaluator.output_names, evaluator.run(None, feeds), strict=True))


def _describe(value: Any) -> dict[str, Any]:
    import numpy as np
    from tactician.signature import dtype_name

    if not isinstance(value, np.ndarray):
        return {
            "type": type(value).__name__,
            "items": len(value) if isinstance(value, list | tuple) else None,
        }
    plain: dict[str, Any] = {"type": dtype_name(value.dtype), "shape": list(value.shape)}
    if plain["type"] != "string" and value.size and value.dtype.kind != "c":
        wide = value.astype(np.float64)
        finite = wide[np.isfinite(wide)]
        plain["nonfinite"] = int(wide.size - finite.size)
        if finite.size:
            plain |= {"min": float(finite.min()), "mean": float(finite.mean()), "max": float(finite.max())}
    return plain


def _print(out: Output, outputs: dict[str, dict[str, Any]]) -> None:
    from tactician.report.format import table

    rows = []
    for name, plain in outputs.items():
        shape = str(plain["shape"]) if "shape" in plain else ""
        numbers = [f"{plain[key]:.4g}" if key in plain else "-" for key in ("min", "mean", "max")]
        rows.append(
            (
                name,
                plain["type"] + shape,
                *numbers,
                f"{plain['nonfinite']} not finite" if plain.get("nonfinite") else "",
            )
        )
    out.text(table(("output", "type", "min", "mean", "max", ""), rows, right=(2, 3, 4)))


def _save(folder: Path, outputs: dict[str, Any]) -> None:
    import re

    import numpy as np
    from tactician.errors import ConfigError

    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in outputs.items():
            if isinstance(value, np.ndarray) and value.dtype != object:
                # the name comes out of the model: it must not lead out of the folder
                np.save(folder / (re.sub(r"[^\w.-]", "_", name).lstrip(".") + ".npy"), value)
    except OSError as error:
        raise ConfigError(f"can't write outputs to '{folder}': {error.strerror}") from error
