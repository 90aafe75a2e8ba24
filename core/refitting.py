"""New weights for a built engine: the network is prepared as for a build, every choice stays, and nothing is timed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import msgspec
import onnx_ir as ir
from tactician.builder import model_info
from tactician.config import BuilderConfig
from tactician.engine import Engine, weight_bytes
from tactician.errors import RefitError
from tactician.importer import import_model
from tactician.network import call_inputs
from tactician.optimizing import optimise
from tactician.plan import ABSENT, Place, Step
from tactician.plugins.manager import load_plugins
from tactician.plugins.target import Artifacts
from tactician.profiled_engine import ProfiledEngine
from tactician.signature import OpSignature
from tactician.specialising import config_for
from tactician.stored_model import StoredModel
from tactician.tactics.lock import LockFile

MOST_TOLD = 3
"""Differences that a message lists."""


def refit(engine: Engine, model: Any, config: BuilderConfig | None = None) -> Engine:
    """Return ``engine`` with the weights of ``model``: the same network, of the same shapes, trained otherwise.

    Tactics, memory and compiled kernels stay as they are; no kernel runs.

    Parameters
    ----------
    engine
        A built engine.
    model
        As ``build`` takes it.
    config
        What the engine was built with, as far as it changes the network: ``shapes``, ``without`` and ``plugins``. An
        engine with profiles knows all of it; ``plugins`` and ``device`` alone are taken from here.

    Returns
    -------
    Engine
        A new one; sessions of the old one are not touched.

    Raises
    ------
    RefitError
        If the model makes other calls than the engine has, or shares weights otherwise: it must be built anew.
    InvalidModelError, ShapeError, UnknownOpError
        If the model can't be imported.
    """
    if isinstance(engine, ProfiledEngine):
        return _refit_profiles(engine, model, config)
    lock = LockFile.of(engine.report.decisions, engine.plan.plugins, target=engine.plan.target)
    config = replace(config or BuilderConfig(), locked=True, dump_stages=None)
    plugins = load_plugins(config)
    device = plugins.target(engine.plan.target).device(config.device, Artifacts())
    network = import_model(model, config.shapes, plugins.ops)
    info = model_info(model, network)
    made = optimise(network, plugins, device, config, lock, _measure_nothing, _no_clock)
    steps = {step.node: step for step in engine.plan.steps if not step.is_copy}
    _compare(steps, made.fuser.signatures())
    weights = dict(_weights(engine, network, steps))
    plan = msgspec.structs.replace(engine.plan, model=info)
    return Engine(plan, engine.report, weights, engine.artifacts)


def _refit_profiles(engine: ProfiledEngine, model: Any, given: BuilderConfig | None) -> ProfiledEngine:
    """Return ``engine`` with the weights of ``model`` in every profile, and for what is specialised later."""
    config = replace(engine.config, profiles=(), lock_file=None)
    if given is not None:
        config = replace(config, device=given.device, plugins=given.plugins or config.plugins)
    engines = [
        refit(part, model, config_for(part, config, profile.opt))
        for part, profile in zip(engine.engines, engine.profiles, strict=True)
    ]
    stored = StoredModel.of(model) if engine.model else None
    return ProfiledEngine.of(engines, engine.profiles, engine.outputs, stored, config)


def _compare(steps: Mapping[str, Step], calls: Mapping[str, OpSignature]) -> None:
    """Make sure that the model makes the calls that the engine has."""
    told = [f"'{n}' is not in the model" for n in steps if n not in calls]
    for name, call in calls.items():
        if name not in steps:
            told.append(f"'{name}' ({call}) is not in the engine")
            continue
        old = OpSignature.from_plain(steps[name].signature)
        if call.key != old.key:
            told.append(
                f"'{name}' is {old} in the engine and {call} in the model"
                if str(old) != str(call)
                else f"'{name}' ({call}) differs in an attribute or in a small constant"
            )
    if told:
        more = f", and {len(told) - MOST_TOLD} more" if len(told) > MOST_TOLD else ""
        raise RefitError(
            f"the model is another network than the engine's: {'; '.join(told[:MOST_TOLD])}{more}; build it anew"
        )


def _weights(engine: Engine, network: ir.Model, steps: Mapping[str, Step]) -> Iterator[tuple[str, Any]]:
    """Yield name and bytes of each weight of the engine, taken from where the network has it."""
    found: dict[int, tuple[ir.Value, str]] = {}
    for node in network.graph:
        step = steps.get(node.name or "")
        if step is None:
            continue
        for index, value in zip(step.inputs, call_inputs(node), strict=True):
            if index != ABSENT and value is not None and engine.plan.tensors[index].place == Place.WEIGHT:
                known, where = found.setdefault(index, (value, step.node))
                if known is not value and not _is_same(known, value):
                    raise RefitError(
                        f"'{where}' and '{step.node}' share a weight in the engine, '{engine.plan.tensors[index].name}', "
                        "and have two in the model; build it anew"
                    )
    for index, value in zip(engine.plan.outputs, network.graph.outputs, strict=True):
        if engine.plan.tensors[index].place == Place.WEIGHT:
            found.setdefault(index, (value, "the outputs"))
    for index, tensor in enumerate(engine.plan.tensors):
        if tensor.place == Place.WEIGHT:
            value, where = found[index]
            constant = ir.convenience.get_const_tensor(value)
            if constant is None:
                raise RefitError(
                    f"'{value.name}', which {where} reads, is no constant in the model; build it anew"
                )
            yield tensor.name, weight_bytes(constant.numpy())


def _is_same(a: ir.Value, b: ir.Value) -> bool:
    tensors = [ir.convenience.get_const_tensor(v) for v in (a, b)]
    contents = [None if t is None else hashlib.sha256(t.tobytes()).digest() for t in tensors]
    return contents[0] is not None and contents[0] == contents[1]


def _measure_nothing(calls: Mapping[str, OpSignature], *rest: Any, **options: Any) -> dict[str, Any]:
    raise RefitError(f"{len(calls)} calls would have to be measured; build the engine anew")


@contextmanager
def _no_clock(phase: str) -> Iterator[None]:
    yield
