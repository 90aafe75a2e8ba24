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
from tactician import __version__
from tactician.assembly import Assembly, Assignment
from tactician.config import BuilderConfig
from tactician.engine import Engine
from tactician.importer import import_model
from tactician.layouts.stage import report_stage
from tactician.measuring import is_isolated, measure
from tactician.network import tensor_type
from tactician.optimizing import optimise
from tactician.plan import FORMAT_VERSION, BuildReport, ModelInfo, Plan, PluginUse
from tactician.plugins.manager import Plugins, load_plugins
from tactician.plugins.target import Artifacts, Device, Target, Timer
from tactician.precision_race import race
from tactician.signature import OpSignature
from tactician.stages import FUSE
from tactician.supervisor import Workers
from tactician.tactics.cache import TimingCache
from tactician.tactics.choose import choose, choose_all
from tactician.tactics.lock import LockFile
from tactician.tactics.measure import Measured, Progress
from tactician.tactics.record import Decision
from tactician.tactics.selector import AlgorithmSelector
from tactician.views import view_nodes, view_offsets

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
    if config.precision == "best":
        again = partial(build, model, target=target, selector=selector, timer=timer, progress=progress)
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
        devices = _open_devices(plugins, config, target)
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
        plan, weights, artifacts = _assemble(
            network, signatures, measured, decisions, devices, plugins, info, config
        )
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


def _open_devices(plugins: Plugins, config: BuilderConfig, target: Target | str | None) -> list[Device]:
    """Return the device to build for, then those that run what it has no tactic for."""
    chosen = target if isinstance(target, Target) else plugins.target(target or config.target)
    devices = [chosen.device(config.device, Artifacts())]
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


def _assemble(
    network: ir.Model,
    signatures: Mapping[str, OpSignature],
    measured: Mapping[str, tuple[Device, Measured]],
    decisions: Sequence[Decision],
    devices: Sequence[Device],
    plugins: Plugins,
    info: ModelInfo,
    config: BuilderConfig,
) -> tuple[Plan, dict[str, Any], dict[str, bytes]]:
    by_target = {d.target: d for d in devices}
    chosen = {node: d for d in decisions for node in d.nodes}
    assembly = Assembly(devices[0].target, by_target)
    assignments: dict[str, Assignment] = {}
    for name, signature in signatures.items():
        candidate = measured[signature.key][1].candidates[chosen[name].chosen]
        assignments[name] = Assignment(candidate, measured[signature.key][0].target, signature)
    for value in network.graph.inputs:
        assembly.add_input(value, _input_target(value, network, assignments, devices))
    for node in network.graph:
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            continue
        if (node.name or "") in assignments:
            assembly.add_node(node, assignments[node.name or ""], network.graph.outputs)
        else:
            assembly.add_view(node, view_offsets(node) or ())
    outputs = tuple(assembly.output(value, devices[0].target) for value in network.graph.outputs)
    memory = assembly.place_memory()
    used = {a.candidate.plugin for a in assignments.values()}
    plan = Plan(
        format_version=FORMAT_VERSION,
        producer=f"tactician {__version__}",
        target=devices[0].target,
        requirements=devices[0].requirements(),
        model=info,
        plugins=tuple(PluginUse(p.name, p.version, p.digest) for p in sorted(used, key=lambda p: p.name)),
        tensors=tuple(assembly.tensors),
        inputs=tuple(assembly.locate_input(value) for value in network.graph.inputs),
        outputs=outputs,
        steps=tuple(assembly.steps),
        memory=memory,
        threads=config.threads,
    )
    return plan, assembly.weights, _used_artifacts(assignments.values(), by_target)


def _input_target(
    value: ir.Value, network: ir.Model, assignments: Mapping[str, Assignment], devices: Sequence[Device]
) -> str:
    """Return where an input is wanted: on the main device if any node there reads it."""
    main = devices[0].target
    type = tensor_type(value)
    if type is None or not type.is_static or type.dtype == "string":
        return devices[-1].target
    readers = {assignments[n.name or ""].target for n in value.consumers() if (n.name or "") in assignments}
    return main if not readers or main in readers else next(iter(readers))


def _used_artifacts(assignments: Any, devices: Mapping[str, Device]) -> dict[str, bytes]:
    """Prepare what was chosen once more, to see which compiled things it needs: only those go into the engine."""
    for device in devices.values():
        device.artifacts.forget_use()
    seen = set()
    for assignment in assignments:
        key = (assignment.candidate.id, assignment.signature.key)
        if key not in seen:
            seen.add(key)
            assignment.candidate.tactic.prepare(assignment.signature, devices[assignment.target])
    return {key: data for device in devices.values() for key, data in device.artifacts.used().items()}


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
