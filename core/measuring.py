"""Has every call measured on the first device that runs it, in this process or in one of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from tactician.config import BuilderConfig
from tactician.errors import ConfigError
from tactician.plugins.manager import Plugins
from tactician.plugins.reference import reference_for
from tactician.plugins.target import Device, Target, Timer
from tactician.signature import OpSignature
from tactician.supervisor import Supervisor, Workers
from tactician.tactics.cache import TimingCache
from tactician.tactics.choose import decided
from tactician.tactics.lock import LockFile
from tactician.tactics.measure import Measured, Measurer, Progress


def measure(
    signatures: Mapping[str, OpSignature],
    devices: Sequence[Device],
    plugins: Plugins,
    config: BuilderConfig,
    lock: LockFile | None,
    timer: Timer | None,
    progress: Callable[[Progress], None] | None,
    *,
    own: Timer | Target | None,
    workers: Workers,
    proposed: Mapping[str, OpSignature] | None = None,
    known: Mapping[str, tuple[Device, Measured]] | None = None,
) -> dict[str, tuple[Device, Measured]]:
    """Measure every signature on the first device that has a tactic which runs it.

    Parameters
    ----------
    signatures
        By name of node.
    proposed
        By name, calls that the network may come to have: they are measured on the first device alone.
    known
        What was measured on the first device before, by signature key.
    own
        What of the caller's another process can't have: then candidates are measured in this one.
    workers
        Measure where candidates have a process of their own; they keep how many seconds it took.

    Raises
    ------
    ConfigError
        If ``config.isolate`` asks for a process that can't be had.
    TacticianError
        As ``Measurer.measure_all`` and ``Supervisor.measure``.
    """
    results: dict[str, tuple[Device, Measured]] = {}
    left = [*signatures.values(), *(proposed or {}).values()]
    chosen = decided(signatures, lock, config)
    needed = {s.key for s in signatures.values()}
    named = named_by(signatures, lock)
    known = {key: found for key, found in (known or {}).items() if key not in chosen}
    for device in devices:
        isolated = is_isolated(plugins.targets.get(device.target), own, config)
        measurer = Measurer(
            plugins.registry,
            device,
            timer or device.timer(),
            lambda signature: reference_for(signature, plugins.ops),
            cache=TimingCache(workers.cache_path) if config.use_timing_cache or isolated else None,
            config=config,
            hooks=plugins.hooks.filter_tactics,
            progress=progress,
            decided=chosen,
            named=named,
        )
        if isolated:
            supervisor = Supervisor(
                workers, device.target, device.index, chosen, named, measurer.condemn, progress
            )
            measurer.elsewhere = supervisor
        for key, measured in measurer.measure_all([s for s in left if s.key not in known]).items():
            results[key] = _with_earlier(results.get(key), (device, measured))
        took = measurer.stopwatch.seconds
        if isolated:
            workers.stopwatch.add(supervisor.stopwatch.seconds)
            took = {"ask (build)": took.get("ask", 0.0)}  # while the worker asks its own
        workers.stopwatch.add(took)
        results |= {s.key: known[s.key] for s in left if s.key in known}
        known = {}
        left = [s for s in left if s.key in needed and not results[s.key][1].usable]
        if not left:
            break
    return results


def _with_earlier(
    earlier: tuple[Device, Measured] | None, found: tuple[Device, Measured]
) -> tuple[Device, Measured]:
    """Return what was found on the device that runs the call, with why the tactics of others don't."""
    if earlier is None:
        return found
    (device, measured), (_, other) = (found, earlier) if found[1].usable else (earlier, found)
    return device, replace(measured, records=(*measured.records, *other.records))


def is_isolated(target: Target | None, own: Timer | Target | None, config: BuilderConfig) -> bool:
    """Return whether candidates for ``target`` are measured in a process of their own."""
    if config.isolate and own is not None:
        raise ConfigError(
            f"isolate=True: another process can't have the {type(own).__name__} object that was given; "
            "name the target, and leave the timer to it"
        )
    asked = config.isolate if config.isolate is not None else target is not None and target.isolated
    return asked and own is None


def named_by(signatures: Mapping[str, OpSignature], lock: LockFile | None) -> dict[str, frozenset[str]]:
    """Return, by signature key, the tactics that the lock file names for some node, so that they are tried."""
    named: dict[str, set[str]] = {}
    for node, signature in signatures.items():
        tactic = lock.choice(node, signature) if lock is not None else None
        if tactic is not None:
            named.setdefault(signature.key, set()).add(tactic)
    return {key: frozenset(ids) for key, ids in named.items()}
