"""The passes over a network, and their order."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import onnx_ir as ir
from tactician.config import BuilderConfig
from tactician.errors import ConfigError, PluginError
from tactician.network import make_names_unique
from tactician.passes.convert_precision import KINDS, ConvertPrecision
from tactician.passes.fold_batch_norm import FoldBatchNorm
from tactician.passes.fold_constants import FoldConstants
from tactician.passes.lift_constants import LiftConstants
from tactician.passes.merge_common import MergeCommon
from tactician.passes.remove_dead import RemoveDead
from tactician.passes.remove_no_ops import RemoveNoOps
from tactician.passes.sink_transposes import SinkTransposes
from tactician.stages import FUSE, StageReport

__all__ = ["Pass", "StageReport", "pass_name", "pipeline", "run", "save_stage"]

Pass: TypeAlias = ir.passes.PassBase
"""A pass: onnx_ir's own contract. Its ``name`` attribute is what ``--without`` takes; else the class name is."""

INLINE_BYTES = 1 << 30
"""Networks with more weights than this are written with their weights in a file of their own."""


def pipeline(
    config: BuilderConfig,
    extra: Sequence[Pass] = (),
    ops: Mapping[str, Any] | None = None,
    later: Sequence[str] = (),
) -> list[Pass]:
    """Return the passes in order, ``extra`` (of plugins) last, without those that ``config.without`` names.

    ``ops`` are plugins' operators by name, ``later`` names of what comes after the passes and may be left out too.

    Raises
    ------
    ConfigError
        If ``config.without`` names no pass.
    """
    steps: list[Pass] = [
        LiftConstants(),
        FoldConstants(ops),
        RemoveNoOps(),
        FoldBatchNorm(),
        *([ConvertPrecision(config.precision, config.precision_rules)] if config.precision in KINDS else []),
        SinkTransposes(),
        MergeCommon(),
        RemoveDead(),
        *extra,
    ]
    names = [pass_name(step) for step in steps]
    known = [*names, FUSE, *later]
    for name in config.without:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f" (did you mean '{near[0]}'?)" if near else ""
            raise ConfigError(
                f"--without {name}: there is no such pass{hint}; the passes are {', '.join(known)}"
            )
    return [step for step, name in zip(steps, names, strict=True) if name not in config.without]


def run(
    model: ir.Model,
    passes: Sequence[Pass],
    dump_stages: Path | None = None,
    on_stage: Callable[[StageReport], None] | None = None,
) -> list[StageReport]:
    """Run ``passes`` on ``model`` in place and report what each did.

    Parameters
    ----------
    dump_stages
        Folder to which the network is written after every pass, as ``NN_name.onnx``.
    on_stage
        Called after every pass.

    Raises
    ------
    PluginError
        If a plugin's pass fails.
    """
    reports = []
    for number, step in enumerate(passes):
        name, before, start = pass_name(step), model.graph.num_nodes(), time.perf_counter()
        matches = getattr(_run_one(step, model), "matches", None)
        make_names_unique(model)
        seconds = time.perf_counter() - start
        report = StageReport(name, before, model.graph.num_nodes(), seconds, matches)
        reports.append(report)
        if dump_stages is not None:
            save_stage(model, dump_stages / f"{number:02d}_{name}.onnx")
        if on_stage is not None:
            on_stage(report)
    return reports


def pass_name(step: Pass) -> str:
    """Return the name that ``--without`` knows ``step`` by."""
    return str(getattr(step, "name", type(step).__name__))


def save_stage(model: ir.Model, path: Path) -> None:
    """Write ``model`` as an ONNX file, with its weights beside it where they are many or lie in files already."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = [v.const_value for v in model.graph.initializers.values() if v.const_value is not None]
    outside = (
        any(isinstance(t, ir.ExternalTensor) for t in tensors)
        or sum(t.nbytes for t in tensors) > INLINE_BYTES
    )
    ir.save(model, path, external_data=f"{path.name}.weights" if outside else None)


def _run_one(step: Pass, model: ir.Model) -> ir.passes.PassResult:
    try:
        result = step(model)
    except PluginError as error:
        raise PluginError(f"{error}; build with --without {pass_name(step)}, or fix the plugin") from error
    except Exception as error:
        if type(step).__module__.startswith("tactician.passes"):
            raise
        raise PluginError(
            f"pass '{pass_name(step)}' of {type(step).__module__} failed: {type(error).__name__}: {error}; "
            f"build with --without {pass_name(step)}, or fix the plugin"
        ) from error
    if result.model is not model:
        raise PluginError(
            f"pass '{pass_name(step)}' returned another model; it must work in place (ir.passes.InPlacePass)"
        )
    return result
