"""The stage of a build that merges products of one tensor."""

from __future__ import annotations

import time
from collections.abc import Callable

import onnx_ir as ir
from tactician.config import BuilderConfig
from tactician.layouts.stage import report_stage
from tactician.network import make_names_unique
from tactician.plugins.manager import Plugins
from tactician.plugins.target import Device
from tactician.siblings.merge import MERGE, Results, SiblingMerger
from tactician.stages import StageReport
from tactician.tactics.lock import LockFile
from tactician.tactics.measure import Measured
from tactician.tactics.record import Fusion

__all__ = ["MERGE", "merge_siblings"]


def merge_siblings(
    network: ir.Model,
    plugins: Plugins,
    device: Device,
    config: BuilderConfig,
    lock: LockFile | None,
    run: Callable[..., Results],
    number: int,
    known: dict[str, tuple[Device, Measured]],
) -> tuple[list[Fusion], list[StageReport]]:
    """Merge products where that is faster; return what came of each group, and the stage.

    Parameters
    ----------
    run
        Measures calls by name on devices.
    number
        Of the stages before.
    known
        What was measured before, by signature key; what is measured here is added.
    """
    if MERGE in config.without:
        return [], []
    before, start = network.graph.num_nodes(), time.perf_counter()
    merger = SiblingMerger(network, plugins.registry, device, config, lock)
    calls = merger.candidates()
    if calls:
        known |= run(calls, [device], lock=None, known=known)
    fusions = merger.settle(known)
    make_names_unique(network)
    seconds = time.perf_counter() - start
    count = sum(f.kept for f in fusions)
    return fusions, [report_stage(MERGE, network, before, seconds, config, number, plugins, count)]
