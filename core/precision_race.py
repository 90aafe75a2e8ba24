"""``precision="best"``: the network is built in every precision, and the fastest is kept whose results are close enough."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
from tactician.config import BuilderConfig, Precision
from tactician.engine import Engine
from tactician.errors import ConfigError, NoTacticError
from tactician.plan import PrecisionTrial, TensorSpec
from tactician.plugins.manager import Plugins
from tactician.report.accuracy import compare_outputs
from tactician.runtime.random_inputs import random_input
from tactician.runtime.session import Session

Feeds = dict[str, np.ndarray[Any, Any]]

CHALLENGERS: tuple[Precision, ...] = ("tf32", "fp16", "bf16")
"""What races against float32."""
SETS, ROUNDS = 2, 10
"""Sets of random inputs that are compared, and rounds of times, the engines in turn."""


def race(build: Callable[[BuilderConfig], Engine], config: BuilderConfig, plugins: Plugins) -> Engine:
    """Return the fastest engine whose outputs are within ``config.precision_tolerance`` of those in float32.

    Parameters
    ----------
    build
        Builds the model with the options that it is given.
    plugins
        What engines are run with.

    Raises
    ------
    ConfigError
        If an input's shape is not known.
    TacticianError
        As ``build`` does for float32. A precision in which there is no engine is left out.
    """
    first = _Contender("fp32", build(replace(config, precision="fp32", tf32=False)))
    for spec in first.inputs:
        if not spec.type.is_static:
            raise ConfigError(
                f"precision 'best' runs the network, and the shape of input '{spec.name}' is not known, {spec.type}; "
                f"bind it with --shapes {spec.name}:DIMS"
            )
    contenders = [first]
    for precision in CHALLENGERS:
        try:
            contenders.append(_Contender(precision, build(replace(config, precision=precision))))
        except NoTacticError as error:
            contenders.append(_Contender(precision, None, str(error)))
    _run(contenders, config, plugins)
    return _decide(contenders, config.precision_tolerance)


@dataclass
class _Contender:
    """An engine in one precision, and what came of it; ``reason`` says why it is out."""

    precision: str
    built: Engine | None
    reason: str = ""
    seconds: float | None = None
    error: float | None = None

    @property
    def engine(self) -> Engine:
        """The engine, which is there."""
        assert self.built is not None, self.reason
        return self.built

    @property
    def inputs(self) -> list[TensorSpec]:
        """The inputs of the network."""
        return [self.engine.plan.tensors[i] for i in self.engine.plan.inputs]


def _run(contenders: Sequence[_Contender], config: BuilderConfig, plugins: Plugins) -> None:
    """Compare and time the engines; one that is the same as an earlier one is left out."""
    seen: dict[bytes, str] = {}
    running: list[tuple[_Contender, Session]] = []
    for contender in contenders:
        if contender.built is None:
            continue
        twin = seen.setdefault(contender.built.plan.encode(), contender.precision)
        if twin != contender.precision:
            contender.reason = f"is the same as {twin}"
        else:
            running.append((contender, Session(contender.built, device=config.device, plugins=plugins)))
    rng = np.random.default_rng(config.seed)
    specs = running[0][1].inputs
    sets: list[Feeds] = [{spec.name: random_input(spec, rng) for spec in specs} for _ in range(SETS)]
    for feeds in sets:
        wanted = running[0][1].run(feeds)
        for contender, session in running:
            errors = compare_outputs(session.run(feeds), wanted, config.precision_tolerance)
            contender.error = max([contender.error or 0.0, *(e.relative for e in errors)])
    _time(running, sets[0])


def _time(running: Sequence[tuple[_Contender, Session]], feeds: Feeds) -> None:
    timers = [session.timer() for _, session in running]
    prepared = [
        timer.prepare(session.thunk(feeds)) for timer, (_, session) in zip(timers, running, strict=True)
    ]
    samples: list[list[float]] = [[] for _ in running]
    for _ in range(ROUNDS):
        for k, timer in enumerate(timers):
            samples[k] += timer.round([prepared[k]])
    for k, (contender, _) in enumerate(running):
        contender.seconds = statistics.median(samples[k])
        timers[k].release(prepared[k])


def _decide(contenders: Sequence[_Contender], tolerance: float) -> Engine:
    """Return the fastest of those that are close enough, with all of them in its report."""
    for contender in contenders:
        if contender.error is not None and not contender.error <= tolerance:
            contender.reason = f"its error {contender.error:.1e} is over {tolerance:.1e}"
    able = [c for c in contenders if not c.reason]
    best = min(able, key=lambda c: c.seconds if c.seconds is not None else float("inf"))
    trials = tuple(
        PrecisionTrial(
            c.precision, c is best, c.seconds, c.error, c.reason or ("fastest" if c is best else "slower")
        )
        for c in contenders
    )
    report = msgspec.structs.replace(best.engine.report, precisions=trials)
    return replace(best.engine, report=report)
