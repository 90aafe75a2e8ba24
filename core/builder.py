"""The main path: a model becomes an engine."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import onnx_ir as ir
from tactician.assembly import Assignment
from tactician.config import BuilderConfig
from tactician.engine import Engine
from tactician.importer import import_model
from tactician.layouts.stage import report_stage
from tactician.measuring import is_isolated, measure
from tactician.optimizing import optimise
from tactician.plan import BuildReport, ModelInfo
from tactician.planning import make_plan
from tactician.plugins.manager import Plugins, load_plugins
from tactician.plugins.target import Artifacts, Device, Target, Timer
from tactician.precision_race import race
from tactician.profile_building import build_profiles
from tactician.signature import OpSignature
from tactician.stages import FUSE
from tactician.supervisor import Workers
from tactician.tactics.cache import TimingCache
from tactician.tactics.choose import choose, choose_all
from tactician.tactics.lock import LockFile
from tactician.tactics.measure import Measured, Progress
from tactician.tactics.record import Decision
from tactician.tactics.selector import AlgorithmSelector
from tactician.views import view_nodes

logger = logging.getLogger(__name__)

Watch = Callable[[Progress], None]


def build(
    model: Any,
    config: BuilderConfig | None = None,
    *,
    target: Target | str | None = None,
    selector: AlgorithmSelector | None = None,
    timer: Timer | None = None,
    progress: Watch | None = None,
) -> Engine:
    """Build an engine: import, optimize, ask every tactic, check, time, fuse and choose, plan.

    Parameters
    ----------
    model
        Path of an ONNX file, its bytes, an ``onnx.ModelProto``, an ``onnx_ir.Model`` or a ``tactician.Network``.
    config
        Options; the defaults suit most models.
    target
        Overrides ``config.target``; a ``Target`` object needs no plugin.
    selector
        Restricts or makes choices, after the command line's rules and the lock file and before plugin hooks.
    timer
        Measures in place of the device's own timer (tests script it).
    progress
        Called as the build goes on; may raise ``KeyboardInterrupt`` to cancel.

    Returns
    -------
    Engine
        With ``config.profiles`` a ``ProfiledEngine``.

    Raises
    ------
    InvalidModelError, ShapeError, UnknownOpError
        If the model can't be imported.
    NoTacticError
        If no tactic runs a node.
    LockMismatchError
        If ``config.locked`` is set and something differs from the lock file.
    BuildCancelledError
        If cancelled; what was timed stays in the cache.
    """
    config = config or BuilderConfig()
    again = partial(build, model, target=target, selector=selector, timer=timer, progress=progress)
    if config.profiles:
        return build_profiles(again, model, config)
    if config.precision == "best":
        return race(again, config, load_plugins(config))
    with Workers(config) as workers:
        return _build(model, config, workers, target, selector, timer, progress)


def _build(
    model: Any,
    config: BuilderConfig,
    workers: Workers,
    target: Target | str | None,
    selector: AlgorithmSelector | None,
    timer: Timer | None,
    progress: Watch | None,
) -> Engine:
    clock = _Clock()
    with clock("load plugins"):
        plugins = load_plugins(config)
        devices = open_devices(plugins, config, target)
        device = devices[0]
    own = timer or (target if isinstance(target, Target) else None)
    if _is_cold(device, plugins, config, own):
        workers.start(device.target, device.index)  # it opens the device while the model is imported
    with clock("import"):
        network = import_model(model, config.shapes, plugins.ops)
        info = model_info(model, network)
    lock = _read_lock(config)
    run = partial(
        measure, plugins=plugins, config=config, timer=timer, progress=progress, own=own, workers=workers
    )
    made = optimise(network, plugins, device, config, lock, run, clock)
    fuser, stages = made.fuser, made.stages
    with clock("measure"):
        before = network.graph.num_nodes()
        measured = run(fuser.signatures(), devices, lock=lock, proposed=fuser.candidates(), known=made.known)
    with clock("fuse"):
        fuser.settle(measured)
        signatures = fuser.signatures()
    if FUSE not in config.without:
        stages.append(
            report_stage(FUSE, network, before, clock.seconds["fuse"], config, len(stages), plugins)
        )
    with clock("choose"):
        decisions = _choose(signatures, measured, plugins, config, lock, selector, fuser.operators())
    with clock("plan"):
        assignments = _assignments(signatures, measured, decisions)
        plan, weights, artifacts = make_plan(network, assignments, devices, info, config)
    warnings = tuple(str(w) for w in _fallbacks(decisions, device))
    report = BuildReport(
        device.fingerprint(),
        tuple(decisions),
        tuple(stages),
        dict(clock.seconds),
        warnings,
        (*made.fusions, *fuser.fusions),
        tuple(_choose_apart(fuser.absorbed, measured)),
        tuple(sorted(view_nodes(network, config))),
        dict(workers.stopwatch.seconds),
    )
    return Engine(plan, report, weights, artifacts)


class _Clock:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start


def _is_cold(device: Device, plugins: Plugins, config: BuilderConfig, own: Timer | Target | None) -> bool:
    """Return whether there is sure to be something for a worker to measure: nothing is known of the device yet."""
    if not is_isolated(plugins.targets.get(device.target), own, config):
        return False
    return not config.use_timing_cache or not TimingCache(config.timing_cache).knows(device.fingerprint())


def open_devices(
    plugins: Plugins,
    config: BuilderConfig,
    target: Target | str | None,
    stored: Mapping[str, bytes] | None = None,
) -> list[Device]:
    """Return the device to build for, then those that run what it has no tactic for.

    Parameters
    ----------
    stored
        Compiled things that the first one has already.
    """
    chosen = target if isinstance(target, Target) else plugins.target(target or config.target)
    devices = [chosen.device(config.device, Artifacts(stored))]
    while chosen.fallback:
        chosen = plugins.target(chosen.fallback)
        devices.append(chosen.device(0, Artifacts()))
    return devices


def _read_lock(config: BuilderConfig) -> LockFile | None:
    """Return the lock file to replay: one must be there only if the build is to be locked."""
    wanted = config.lock_file is not None and (config.locked or config.lock_file.exists())
    return LockFile.load(config.lock_file) if wanted and config.lock_file else None


def _choose(
    signatures: Mapping[str, OpSignature],
    measured: Mapping[str, tuple[Device, Measured]],
    plugins: Plugins,
    config: BuilderConfig,
    lock: LockFile | None,
    selector: AlgorithmSelector | None,
    operators: Mapping[str, tuple[str, ...]],
) -> list[Decision]:
    nodes = _by_key(signatures)
    cache = TimingCache(config.timing_cache) if config.use_timing_cache else None
    decisions = choose_all(
        {key: m for key, (_, m) in measured.items()},
        {key: tuple(names) for key, names in nodes.items()},
        targets={key: device.target for key, (device, _) in measured.items()},
        lock=lock,
        selector=selector,
        hooks=plugins.hooks.select_tactic,
        cache=cache,
        fingerprints={key: device.fingerprint() for key, (device, _) in measured.items()},
        config=config,
    )
    # nodes of one decision share a signature, so all of them are fused or none is
    decisions = [
        msgspec.structs.replace(d, operators=tuple(operators[n] for n in d.nodes if n in operators))
        for d in decisions
    ]
    _report(decisions, plugins, config)
    return decisions


def _choose_apart(
    absorbed: Mapping[str, OpSignature], measured: Mapping[str, tuple[Device, Measured]]
) -> list[Decision]:
    """Return what operators that are part of fused nodes would run by themselves: nobody was asked but the default."""
    decisions = []
    for key, names in _by_key(absorbed).items():
        device, result = measured[key]
        decisions += choose(result, names, target=device.target)
    return decisions


def _by_key(signatures: Mapping[str, OpSignature]) -> dict[str, list[str]]:
    """Return the names of the nodes that share a signature, by its key."""
    nodes: dict[str, list[str]] = defaultdict(list)
    for name, signature in signatures.items():
        nodes[signature.key].append(name)
    return dict(nodes)


def _report(decisions: Sequence[Decision], plugins: Plugins, config: BuilderConfig) -> None:
    for name, hook in plugins.hooks.report_choices:
        try:
            hook(choices=list(decisions))
        except Exception:
            if config.strict:
                raise
            logger.warning("plugin '%s': its hook report_choices failed and was ignored", name, exc_info=True)


def _assignments(
    signatures: Mapping[str, OpSignature],
    measured: Mapping[str, tuple[Device, Measured]],
    decisions: Sequence[Decision],
) -> dict[str, Assignment]:
    """Return what runs each node, by name."""
    chosen = {node: d.chosen for d in decisions for node in d.nodes}
    assignments = {}
    for name, signature in signatures.items():
        device, result = measured[signature.key]
        assignments[name] = Assignment(result.candidates[chosen[name]], device.target, signature)
    return assignments


def _fallbacks(decisions: Sequence[Decision], device: Device) -> list[str]:
    """Say which nodes run elsewhere than asked, and what that costs."""
    elsewhere = [d for d in decisions if d.target != device.target]
    return [
        f"{', '.join(d.nodes)}: {d.signature.partition('(')[0]} runs on the {d.target}, since no {device.target} tactic accepts it; "
        "its inputs and outputs are copied"
        for d in elsewhere
    ]


def model_info(source: Any, network: ir.Model) -> ModelInfo:
    """Return what an engine remembers of the model that it was built from."""
    path = Path(source) if isinstance(source, str | os.PathLike) else None
    digest = hashlib.sha256()
    if path is not None and path.is_file():
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
    else:
        digest.update(ir.serde.serialize_model(network).SerializeToString(deterministic=True))
    parameters = sum(
        v.const_value.size for v in network.graph.initializers.values() if v.const_value is not None
    )
    name = path.name if path else network.graph.name or "network"
    return ModelInfo(name, digest.hexdigest(), sum(1 for _ in network.graph), int(parameters))
