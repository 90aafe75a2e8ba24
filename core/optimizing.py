"""From a model to the network whose calls are measured and chosen: passes, then the stages that go by measurements."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from tactician import passes
from tactician.arranging import ARRANGE, arrange_quantised
from tactician.config import BuilderConfig
from tactician.decompositions.stage import DECOMPOSE, decompose
from tactician.fusion import Fuser
from tactician.layouts.stage import LAYOUTS, lay_out
from tactician.plugins.manager import Plugins
from tactician.plugins.target import Device
from tactician.recognition.recognise import RECOGNISERS
from tactician.siblings.stage import MERGE, merge_siblings
from tactician.stages import StageReport
from tactician.tactics.lock import LockFile
from tactician.tactics.measure import Measured
from tactician.tactics.record import Fusion
from tactician.views import VIEWS

Clock = Callable[[str], AbstractContextManager[None]]
"""``with clock(phase):`` keeps the seconds that a phase takes."""

AFTER_PASSES = (*(r.name for r in RECOGNISERS), VIEWS, DECOMPOSE, LAYOUTS, MERGE, ARRANGE)
"""What ``--without`` may name beside the passes."""


@dataclass(frozen=True)
class Optimised:
    """A network before its fusions are settled.

    Parameters
    ----------
    fuser
        Has the network's calls, and those that regions of it could become.
    stages
        What was done to it.
    known
        What was measured on the way, by signature key.
    fusions
        What came of products that could be merged.
    """

    fuser: Fuser
    stages: list[StageReport]
    known: Mapping[str, tuple[Device, Measured]]
    fusions: list[Fusion]


def optimise(
    network: ir.Model,
    plugins: Plugins,
    device: Device,
    config: BuilderConfig,
    lock: LockFile | None,
    run: Callable[..., Any],
    clock: Clock,
) -> Optimised:
    """Run passes and stages on ``network`` in place.

    Parameters
    ----------
    lock
        Decides the stages that would measure.
    run
        Measures calls by name on devices, as ``tactician.measuring.measure``.

    Raises
    ------
    ConfigError
        If ``config.without`` names nothing that there is.
    PluginError
        If a plugin's pass fails.
    """
    with clock("optimize"):
        steps = passes.pipeline(config, plugins.passes, plugins.ops, AFTER_PASSES)
        stages = passes.run(network, steps, config.dump_stages)
    with clock("decompose"):
        stages += decompose(network, plugins, device, config, lock, len(stages))
    with clock("lay out"):
        known, stage = lay_out(network, plugins, device, config, lock, run, len(stages))
        stages += stage
    with clock("merge"):
        fusions, stage = merge_siblings(network, plugins, device, config, lock, run, len(stages), known)
        stages += stage
    with clock("fuse"):
        stages += arrange_quantised(network, plugins, device, config, len(stages))
        return Optimised(Fuser(network, plugins.registry, device, config, lock), stages, known, fusions)
