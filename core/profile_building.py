"""Builds an engine with optimization profiles: the network is built for the best shape of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import onnx_ir as ir
from tactician.config import BuilderConfig
from tactician.engine import Engine
from tactician.errors import ConfigError, ShapeError
from tactician.importer import import_model
from tactician.network import tensor_type
from tactician.plan import Place, TensorSpec
from tactician.plugins.manager import load_plugins
from tactician.plugins.op import Op
from tactician.profiled_engine import ProfiledEngine
from tactician.profiles import Shapes, numbered
from tactician.stored_model import StoredModel


def build_profiles(
    build: Callable[[BuilderConfig], Engine], model: Any, config: BuilderConfig
) -> ProfiledEngine:
    """Return the engine of ``model`` for ``config.profiles``.

    Parameters
    ----------
    build
        Builds the model with the options that it is given.

    Raises
    ------
    ConfigError
        If the profiles name different inputs, or ``config.shapes`` binds one of them.
    ShapeError
        If the model can't have a shape of a profile: its least and its largest are tried too.
    TacticianError
        As ``build`` does.
    """
    _check(config)
    stored = StoredModel.of(model)
    ops = load_plugins(config).ops
    outputs = _outputs(import_model(stored.open(), config.shapes, ops))
    for number, profile in enumerate(config.profiles):
        for what, shapes in {"min": profile.min, "max": profile.max}.items():
            if shapes != profile.opt:  # which is built
                _require(stored, config.shapes | shapes, ops, f"profile {number} ({profile}), at its {what}")
    engines = [build(_config_of(config, number)) for number in range(len(config.profiles))]
    is_fixed = all(profile.is_fixed for profile in config.profiles)
    return ProfiledEngine.of(engines, config.profiles, outputs, None if is_fixed else stored, config)


def _check(config: BuilderConfig) -> None:
    inputs = config.profiles[0].shapes.keys()
    for number, profile in enumerate(config.profiles):
        if profile.shapes.keys() != inputs:
            raise ConfigError(
                f"profile 0 names the inputs {', '.join(inputs)}, and profile {number} {', '.join(profile.shapes)}; "
                "name the same ones in all profiles"
            )
    for name in inputs:
        if name in config.shapes:
            raise ConfigError(
                f"input '{name}' has a shape and is in a profile; leave it out of one (--shapes, --profile)"
            )


def _config_of(config: BuilderConfig, number: int) -> BuilderConfig:
    """Return what profile ``number`` is built with."""
    stages = None if config.dump_stages is None else config.dump_stages / f"profile_{number}"
    shapes = config.shapes | config.profiles[number].opt
    lock_file = None if config.lock_file is None else numbered(config.lock_file, number)
    return replace(config, profiles=(), shapes=shapes, dump_stages=stages, lock_file=lock_file)


def _require(model: StoredModel, shapes: Shapes, ops: Mapping[str, Op], where: str) -> None:
    """Make sure that the model can have ``shapes``."""
    try:
        import_model(model.open(), shapes, ops)
    except ShapeError as error:
        raise ShapeError(f"{where}: {error}") from error


def _outputs(network: ir.Model) -> list[TensorSpec]:
    """Return the outputs of a network whose symbolic dimensions are not bound."""
    types = [(value.name or "", tensor_type(value)) for value in network.graph.outputs]
    return [
        TensorSpec(name, type.dtype if type else "float32", type.shape if type else None, "", Place.OUTPUT)
        for name, type in types
    ]
