"""The passes over a network, and their order."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import onnx_ir as ir

from tactician.config import BuilderConfig
from tactician.errors import ConfigError
from tactician.passes.fold_batch_norm import FoldBatchNorm
from tactician.passes.fold_constants import FoldConstants
from tactician.passes.remove_no_ops import RemoveNoOps
from tactician.passes.tidy import LiftConstants, MergeCommon, RemoveDead
from tactician.plan import StageReport

Pass: TypeAlias = ir.passes.PassBase
"""A pass: onnx_ir's own contract. Its ``name`` attribute is what ``--without`` takes; else the class name is."""


def pipeline(config: BuilderConfig, extra: Sequence[Pass] = ()) -> list[Pass]:
    """Return the passes in order, without those that ``config.without`` names.

    Raises
    ------
    ConfigError
        If ``config.without`` names no pass.
    """
    steps: list[Pass] = [
        LiftConstants(),
        FoldConstants(),
        RemoveNoOps(),
        FoldBatchNorm(),
        MergeCommon(),
        RemoveDead(),
        *extra,
    ]
    names = [pass_name(step) for step in steps]
    for name in config.without:
        if name not in names:
            raise ConfigError(f"--without {name}: there is no such pass; the passes are {', '.join(names)}")
    return [step for step, name in zip(steps, names, strict=True) if name not in config.without]


def run(model: ir.Model, steps: Sequence[Pass], dump_stages: Path | None = None) -> list[StageReport]:
    """Run ``steps`` on ``model`` in place, write it after each to ``dump_stages`` if given, and report."""
    reports = []
    for number, step in enumerate(steps):
        before, start = model.graph.num_nodes(), time.perf_counter()
        step(model)
        name = pass_name(step)
        reports.append(StageReport(name, before, model.graph.num_nodes(), time.perf_counter() - start))
        if dump_stages is not None:
            dump_stages.mkdir(parents=True, exist_ok=True)
            ir.save(model, dump_stages / f"{number:02d}_{name}.onnx")
    return reports


def pass_name(step: Pass) -> str:
    """Return the name that ``--without`` knows ``step`` by."""
    return str(getattr(step, "name", type(step).__name__))
