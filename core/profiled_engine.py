"""An engine for several shapes: one static engine for each optimization profile, and the model for shapes between."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from tactician.config import BuilderConfig, Precision
from tactician.engine import MODEL, PROFILES, Engine, check_plan, has_profiles
from tactician.plan import BuildReport, Place, Plan, TensorSpec
from tactician.profiles import Dims, OptimizationProfile
from tactician.stored_model import StoredModel, WeightType


@dataclass(frozen=True)
class ProfiledEngine(Engine):
    """What ``build`` makes of a config with profiles: ``Session`` runs it with any shape within one of them.

    ``plan``, ``report``, ``weights`` and ``artifacts`` are those of the first profile.

    Parameters
    ----------
    profiles
        The shapes that it is for.
    engines
        One for each profile, built for its ``opt``.
    outputs
        The outputs, with those dimensions unknown that depend on the shapes of inputs.
    model
        What engines for other shapes are made of; None where every profile has one shape alone.
    config
        What it was built with.
    """

    profiles: tuple[OptimizationProfile, ...]
    engines: tuple[Engine, ...]
    outputs: tuple[TensorSpec, ...]
    model: StoredModel | None
    config: BuilderConfig

    @classmethod
    def of(
        cls,
        engines: Sequence[Engine],
        profiles: Sequence[OptimizationProfile],
        outputs: Sequence[TensorSpec],
        model: StoredModel | None,
        config: BuilderConfig,
    ) -> ProfiledEngine:
        """Return the engine of these parts; what several of them hold is held once."""
        artifacts = {key: data for engine in engines for key, data in engine.artifacts.items()}
        known = known_weights(engines)
        shared = [replace(share_weights(engine, known), artifacts=artifacts) for engine in engines]
        if model is not None:
            model = replace(model, weights=_shared(model.weights, known))
        first = shared[0]
        return cls(
            first.plan,
            first.report,
            first.weights,
            artifacts,
            tuple(profiles),
            tuple(shared),
            tuple(outputs),
            model,
            config,
        )

    def parts(self) -> dict[str, list[Any]]:
        """Return the sections of the file: those of the first profile's engine, with all weights, and what is beside it."""
        blobs = _Blobs(self.engines[0].weights)
        stored = _Stored(
            tuple(dict(profile.shapes) for profile in self.profiles),
            self.outputs,
            _Options.of(self.config),
            tuple(
                _StoredEngine(
                    e.plan, e.report, {name: blobs.add(name, data) for name, data in e.weights.items()}
                )
                for e in self.engines[1:]
            ),
            dict(self.model.types) if self.model else {},
            {name: blobs.add(name, data) for name, data in self.model.weights.items()} if self.model else {},
        )
        base = replace(self.engines[0], weights=blobs.named)
        graph = self.model.graph if self.model else b""
        return base.parts() | {PROFILES: [msgspec.json.encode(stored)], MODEL: [graph]}


def is_profiled(engine: Engine | str | os.PathLike[str]) -> bool:
    """Return whether an engine, or the file at a path, has optimization profiles."""
    return isinstance(engine, ProfiledEngine) if isinstance(engine, Engine) else has_profiles(engine)


def read_profiles(base: Engine, profiles: bytes, graph: bytes) -> ProfiledEngine:
    """Return the engine with the sections ``profiles`` and ``graph`` of a file whose other sections gave ``base``.

    Raises
    ------
    msgspec.MsgspecError, ValueError, KeyError
        If they are damaged.
    """
    stored = msgspec.json.decode(profiles, type=_Stored)
    own = {t.name for t in base.plan.tensors if t.place == Place.WEIGHT}
    engines = [replace(base, weights={name: data for name, data in base.weights.items() if name in own})]
    for other in stored.engines:
        check_plan(other.plan)
        weights = {name: base.weights[blob] for name, blob in other.weights.items()}
        engines.append(Engine(other.plan, other.report, weights, base.artifacts))
    if len(engines) != len(stored.profiles):
        raise ValueError(f"it has {len(stored.profiles)} profiles and {len(engines)} engines")
    weights = {name: base.weights[blob] for name, blob in stored.model_weights.items()}
    model = StoredModel(graph, stored.model_types, weights) if graph else None
    made = tuple(OptimizationProfile(shapes) for shapes in stored.profiles)
    return ProfiledEngine(
        base.plan,
        base.report,
        engines[0].weights,
        base.artifacts,
        made,
        tuple(engines),
        stored.outputs,
        model,
        stored.options.config(),
    )


Known = dict[bytes, Any]
"""Weights by the hash of their bytes."""


def known_weights(engines: Iterable[Engine]) -> Known:
    """Return the different weights of ``engines``."""
    known: Known = {}
    for engine in engines:
        _shared(engine.weights, known)
    return known


def share_weights(engine: Engine, known: Known) -> Engine:
    """Return ``engine`` with those of its weights that are ``known`` being the very same objects."""
    return replace(engine, weights=_shared(engine.weights, dict(known)))


def _shared(weights: Mapping[str, Any], known: Known) -> dict[str, Any]:
    return {name: known.setdefault(_digest(data), data) for name, data in weights.items()}


def _digest(data: Any) -> bytes:
    return hashlib.sha256(data).digest()


class _Blobs:
    """Weights of several engines by one set of names; equal ones have one name, unless the first engine has two."""

    def __init__(self, first: Mapping[str, Any]) -> None:
        self.named = dict(first)
        self._names = {_digest(data): name for name, data in first.items()}

    def add(self, name: str, data: Any) -> str:
        """Return the name under which ``data`` is kept."""
        digest = _digest(data)
        if digest not in self._names:
            free, number = name, 0
            while free in self.named:
                number += 1
                free = f"{name}#{number}"
            self.named[free], self._names[digest] = data, free
        return self._names[digest]


class _StoredEngine(msgspec.Struct, frozen=True):
    plan: Plan
    report: BuildReport
    weights: dict[str, str]


class _Options(msgspec.Struct, frozen=True):
    """What of a config has a say in what the network becomes, and in which tactics it may have."""

    shapes: dict[str, Dims]
    device: int
    precision: Precision | None
    precision_rules: tuple[tuple[str, str], ...]
    tf32: bool
    deterministic: bool
    workspace_limit: int | None
    sources: tuple[str, ...]
    tactic_rules: tuple[tuple[str, str], ...]
    exhaustive: bool
    plugins: tuple[str, ...] | None
    disabled_plugins: tuple[str, ...]
    strict: bool
    threads: int
    seed: int
    without: tuple[str, ...]

    @classmethod
    def of(cls, config: BuilderConfig) -> _Options:
        fields = {name: getattr(config, name) for name in cls.__struct_fields__}
        if config.plugins is not None:  # those without a file are the caller's to bring again
            fields["plugins"] = tuple(p for p in config.plugins if isinstance(p, str))
        return cls(**fields)

    def config(self) -> BuilderConfig:
        return BuilderConfig(**{name: getattr(self, name) for name in self.__struct_fields__})


class _Stored(msgspec.Struct, frozen=True):
    """The section: all but the first profile's engine, whose sections are those of any engine."""

    profiles: tuple[dict[str, tuple[Dims, Dims, Dims]], ...]
    outputs: tuple[TensorSpec, ...]
    options: _Options
    engines: tuple[_StoredEngine, ...]
    model_types: dict[str, WeightType]
    model_weights: dict[str, str]
