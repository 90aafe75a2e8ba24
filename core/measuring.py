"""Has every call measured on the first device that runs it, in this process or in one of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tactician.config import BuilderConfig
from tactician.errors import ConfigError
from tactician.plugins.manager import Plugins
from tactician.plugins.reference import reference_for
from tactician.plugins.target import Device, Target, Timer
from tactician.signature import OpSignature
from tactician.supervisor import Supervisor
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
    known = {key: found for key, found in (known or {}).items() if key not in chosen}
    for device in devices:
        isolated = _is_isolated(plugins.targets.get(device.target), own, config)
        with _timing_cache(config, needed=isolated) as cache:
            measurer = Measurer(
                plugins.registry,
                device,
                timer or device.timer(),
                lambda signature: reference_for(signature, plugins.ops),
                cache=cache,
                config=config,
                hooks=plugins.hooks.filter_tactics,
                progress=progress,
                decided=chosen,
            )
            if isolated and cache is not None:
                shared = replace(config, timing_cache=cache.path, use_timing_cache=True)
                supervisor = Supervisor(
                    shared, device.target, device.index, chosen, measurer.condemn, progress
                )
                measurer.elsewhere = supervisor.measure
            for key, measured in measurer.measure_all([s for s in left if s.key not in known]).items():
                results[key] = _with_earlier(results.get(key), (device, measured))
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


def _is_isolated(target: Target | None, own: Timer | Target | None, config: BuilderConfig) -> bool:
    """Return whether candidates for ``target`` are measured in a process of their own."""
    if config.isolate and own is not None:
        raise ConfigError(
            f"isolate=True: another process can't have the {type(own).__name__} object that was given; "
            "name the target, and leave the timer to it"
        )
    asked = config.isolate if config.isolate is not None else target is not None and target.isolated
    return asked and own is None


@contextmanager
def _timing_cache(config: BuilderConfig, *, needed: bool) -> Iterator[TimingCache | None]:
    """Return the timing cache or, where it is ``needed`` all the same, one that is gone afterwards."""
    if config.use_timing_cache:
        yield TimingCache(config.timing_cache)
    elif needed:
        with tempfile.TemporaryDirectory(prefix="tactician-") as folder:
            yield TimingCache(Path(folder, "timing.sqlite"))
    else:
        yield None
