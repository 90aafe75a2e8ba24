"""What ``tactician build`` says of an engine that it made: as text, as JSON, and as a report for scripts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tactician.engine import Engine
    from tactician.profiles import OptimizationProfile

LATENCY_SECONDS = 0.5


def summary(
    engine: Engine, output: Path, lock_files: Sequence[Path], latencies: Sequence[float | None]
) -> str:
    """Return what a build came to, as lines of text.

    Parameters
    ----------
    lock_files, latencies
        Of each profile; one of an engine without any.
    """
    from collections import Counter

    from tactician.report.format import duration, plural, size
    from tactician.report.inspect import describe_memory, describe_trial, device_name, fallbacks

    plan, report = engine.plan, engine.report
    chosen_by = Counter(d.chosen_by for d in report.decisions)
    lines = [f"device   {plan.target}: {device_name(report.device) or 'unknown'}"]
    lines += [
        f"pass     {s.name}: {s.nodes_before} → {s.nodes_after} nodes"
        + (f", {plural(s.matches, 'match')}" if s.matches else "")
        for s in report.stages
        if s.nodes_before != s.nodes_after
    ]
    lines.append(
        f"nodes    {sum(not s.is_copy for s in plan.steps)}, "
        f"{plural(len(report.decisions), 'different call')}; chosen by "
        + ", ".join(f"{who} ({n})" for who, n in sorted(chosen_by.items()))
    )
    lines += [f"races    {describe_trial(trial)}" for trial in report.precisions]
    lines += [f"WARNING  {line}" for line in fallbacks(plan)]
    lines += [f"memory   {describe_memory(report)}" for report in plan.memory]
    lines.append("time     " + ", ".join(f"{phase} {duration(s)}" for phase, s in report.seconds.items()))
    if report.measuring:
        lines.append("of that  " + ", ".join(f"{what} {duration(s)}" for what, s in report.measuring.items()))
    present = [str(path) for path in lock_files if path.exists()]
    lines.append(
        f"wrote    {output} ({size(output.stat().st_size)})" + "".join(f" and {path}" for path in present)
    )
    profiles = profiles_of(engine)
    for number, latency in enumerate(latencies):
        where = f", at the opt of profile {number}: {profiles[number]}" if profiles else ""
        lines.append(f"latency  {_latency_text(latency)}{where}")
    if profiles:
        lines.insert(1, f"profiles {len(profiles)}; nodes, memory and time are those of profile 0")
    return "\n".join([*lines, f"why      tactician explain {output}"])


def to_plain(
    engine: Engine, output: Path, lock_files: Sequence[Path], latencies: Sequence[float | None]
) -> dict[str, Any]:
    """Return what a build came to, for JSON; parameters as of ``summary``."""
    from collections import Counter

    import msgspec
    from tactician.report.inspect import fallbacks

    plan, report = engine.plan, engine.report
    locks = [str(path) if path.exists() else None for path in lock_files]
    plain = {
        "engine": str(output),
        "lock": locks[0],
        "model": msgspec.to_builtins(plan.model),
        "target": plan.target,
        "device": dict(report.device),
        "plugins": msgspec.to_builtins(plan.plugins),
        "nodes": sum(not s.is_copy for s in plan.steps),
        "decisions": len(report.decisions),
        "chosen_by": dict(Counter(d.chosen_by for d in report.decisions)),
        "fallbacks": fallbacks(plan),
        "stages": msgspec.to_builtins(report.stages),
        "memory": msgspec.to_builtins(plan.memory),
        "seconds": dict(report.seconds),
        "measuring": dict(report.measuring),
        "latency_seconds": latencies[0],
        "precisions": msgspec.to_builtins(report.precisions),
        "warnings": list(report.warnings),
    }
    profiles = [
        {"profile": str(profile), "lock": lock, "latency_seconds": latency}
        for profile, lock, latency in zip(profiles_of(engine), locks, latencies, strict=False)
    ]
    return plain | ({"profiles": profiles} if profiles else {})


def measure_latency(engine: Engine, options: dict[str, Any]) -> float | None:
    """Return the median seconds of a few runs on data in place, or None where inputs have no fixed shape."""
    import time
    from statistics import median

    from tactician.cli.options import make_feeds
    from tactician.cli.session import open_session

    tensors = [engine.plan.tensors[i] for i in engine.plan.inputs]
    if not all(t.type.is_static for t in tensors):
        return None
    session = open_session(
        engine,
        device=options["device"],
        plugins=options["plugins"],
        disabled_plugins=options["disabled_plugins"],
    )
    feeds = make_feeds(session.inputs, (), options["seed"])
    timer = session.timer()
    contender = timer.prepare(session.thunk(feeds))
    samples: list[float] = []
    end = time.perf_counter() + LATENCY_SECONDS
    while len(samples) < 5 or (time.perf_counter() < end and len(samples) < 1000):
        samples += timer.round([contender])
    timer.release(contender)
    return median(samples)


def write_report(engine: Engine, path: Path) -> None:
    """Write what hooks and selectors are told at the end of a build, for scripts that are neither."""
    import msgspec
    from tactician.errors import ConfigError

    plain = _choices(engine)
    profiles = [
        {"profile": str(profile)} | _choices(part)
        for profile, part in zip(profiles_of(engine), engines_of(engine), strict=False)
    ]
    plain |= {"profiles": profiles} if profiles else {}
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(plain), indent=2) + b"\n")
    except OSError as error:
        raise ConfigError(f"can't write the report '{path}': {error.strerror}") from error


def engines_of(engine: Engine) -> tuple[Engine, ...]:
    """Return the engine of each profile; of an engine without any, itself."""
    from tactician.profiled_engine import ProfiledEngine

    return engine.engines if isinstance(engine, ProfiledEngine) else (engine,)


def profiles_of(engine: Engine) -> tuple[OptimizationProfile, ...]:
    """Return the engine's profiles."""
    from tactician.profiled_engine import ProfiledEngine

    return engine.profiles if isinstance(engine, ProfiledEngine) else ()


def _choices(engine: Engine) -> dict[str, Any]:
    import msgspec
    from tactician.report.explain import to_plain

    report = engine.report
    return {
        "target": engine.plan.target,
        "device": report.device,
        "decisions": [to_plain(d, report.fusions) for d in report.decisions],
        "fusions": msgspec.to_builtins(report.fusions),
    }


def _latency_text(latency: float | None) -> str:
    from tactician.report.format import duration

    return "not measured: shapes are dynamic" if latency is None else duration(latency)
