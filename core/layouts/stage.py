"""The stage of a build that assigns layouts, and what stages that measure report."""

from __future__ import annotations

import time
from collections.abc import Callable

import onnx_ir as ir
from tactician import passes
from tactician.config import BuilderConfig
from tactician.layouts.planner import LAYOUTS, LayoutPlanner, Results
from tactician.layouts.standard import standard
from tactician.layouts.twins import Twins
from tactician.network import make_names_unique
from tactician.plugins.manager import Plugins
from tactician.plugins.target import Device
from tactician.stages import StageReport
from tactician.tactics.lock import LockFile
from tactician.tactics.measure import Measured

__all__ = ["LAYOUTS", "lay_out", "report_stage"]


def lay_out(
    network: ir.Model,
    plugins: Plugins,
    device: Device,
    config: BuilderConfig,
    lock: LockFile | None,
    run: Callable[..., Results],
    number: int,
) -> tuple[dict[str, tuple[Device, Measured]], list[StageReport]]:
    """Let nodes work with the channels innermost where that is faster; return what was measured, and the stage.

    Parameters
    ----------
    run
        Measures calls by name on devices.
    number
        Of the stages before.
    """
    if LAYOUTS in config.without:
        return {}, []
    before, start = network.graph.num_nodes(), time.perf_counter()
    planner = LayoutPlanner(network, Twins.of(plugins.ops), plugins.registry, device, lock)
    calls = planner.candidates()
    known = dict(run(calls, [device], lock=None)) if calls else {}
    count = planner.settle(known)
    make_names_unique(network)
    seconds = time.perf_counter() - start
    return known, [report_stage(LAYOUTS, network, before, seconds, config, number, plugins, count)]


def report_stage(
    name: str,
    network: ir.Model,
    before: int,
    seconds: float,
    config: BuilderConfig,
    number: int,
    plugins: Plugins,
    matches: int | None = None,
) -> StageReport:
    """Return the report of a stage that goes by measurements, and write the network where stages are asked for."""
    if config.dump_stages is not None:
        plain = standard(network, Twins.of(plugins.ops))
        passes.save_stage(plain, config.dump_stages / f"{number:02d}_{name}.onnx")
    return StageReport(name, before, network.graph.num_nodes(), seconds, matches)
