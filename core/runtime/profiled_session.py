"""A session of an engine with optimization profiles: the shapes of a run pick the engine that does it."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import numpy as np
from tactician.engine import Engine
from tactician.errors import ConfigError, InputError, ProfileError, SpecialisationError
from tactician.plan import TensorSpec
from tactician.plugins.inline import InlinePlugin
from tactician.plugins.manager import Plugins
from tactician.plugins.target import Thunk, Timer
from tactician.profiled_engine import ProfiledEngine
from tactician.profiles import Dims, OptimizationProfile, dims_text, find_profile
from tactician.runtime.device_weights import DeviceWeights
from tactician.runtime.session import Session, StepTime

if TYPE_CHECKING:
    from tactician.specialising import Specialiser

MOST_SHAPES = 8
"""Shapes beside those of the profiles that a session keeps."""

Result = TypeVar("Result")
Key = tuple[Dims, ...]
"""The shapes of the profiles' inputs, in order."""


class ProfiledSession(Session):
    """Runs an engine with optimization profiles; ``Session(engine)`` makes one.

    The ``opt`` shape of a profile runs at once. Any other shape within a profile is specialised when it is first seen:
    an engine is made for it, with the profile's choices and without timing anything, which takes seconds and needs
    ``onnx`` and the compilers of the tactics. ``prepare`` does that ahead.

    Parameters
    ----------
    engine
        A ``ProfiledEngine``, or the path of one.
    device, plugins, allow_mismatch
        As for ``Session``. ``plugins``, if these are not loaded ones, are also used to specialise.
    most_shapes
        Specialised shapes that are kept, each with memory for activations of its own; the one that was used longest ago
        goes first. Those of the profiles are kept for good, weights are shared.

    Raises
    ------
    EngineMismatchError
        As ``Session`` does.
    """

    def __init__(
        self,
        engine: Engine | str | os.PathLike[str],
        *,
        device: int = 0,
        plugins: Plugins | Sequence[str | InlinePlugin] | None = None,
        allow_mismatch: bool = False,
        most_shapes: int = MOST_SHAPES,
    ) -> None:
        loaded = engine if isinstance(engine, Engine) else Engine.load(engine)
        if not isinstance(loaded, ProfiledEngine):
            raise ConfigError("the engine has no profiles; run it with Session, or build it with some")
        if most_shapes < 1:
            raise ConfigError(f"most_shapes is {most_shapes}; a session keeps one shape at least")
        self.engine, self.plan, self._profiled = loaded, loaded.plan, loaded
        self._open = _Opener(device, plugins, allow_mismatch)
        self._most_shapes = most_shapes
        self._lock = threading.Lock()  # whoever runs something
        self._making = threading.Lock()  # whoever specialises
        self._specialiser: Specialiser | None = None
        self._names = tuple(loaded.profiles[0].shapes)
        self._weights = DeviceWeights()
        self._opts: dict[int, Session] = {}
        self._others: OrderedDict[Key, Session] = OrderedDict()
        self._last = self._session_of(0)
        self._last_key: Key | None = None  # of what ran last, to find it again at once

    @property
    def inputs(self) -> list[TensorSpec]:
        """Name and type of each input; a dimension that profiles leave open reads ``1..32``, their least and largest."""
        return [self._ranged(self.plan.tensors[i]) for i in self.plan.inputs]

    @property
    def outputs(self) -> list[TensorSpec]:
        """Name and type of each output, as far as it is the same for all shapes."""
        return list(self._profiled.outputs)

    @property
    def profiles(self) -> tuple[OptimizationProfile, ...]:
        """The engine's profiles."""
        return self._profiled.profiles

    @property
    def prepared(self) -> list[dict[str, Dims]]:
        """The specialised shapes that are kept, the one that was used longest ago first."""
        with self._lock:
            return [dict(zip(self._names, key, strict=True)) for key in self._others]

    def prepare(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Make ready for ``shapes``, so that no later run waits for it.

        Parameters
        ----------
        shapes
            Dimensions by name of input, of all inputs that the profiles name.

        Raises
        ------
        ProfileError
            If they are in no profile.
        SpecialisationError
            If no engine can be made for them.
        """
        for name in self._names:
            if name not in shapes:
                raise InputError(
                    f"the shape of input '{name}' is missing; profiles name {', '.join(self._names)}"
                )
        key = tuple(tuple(int(d) for d in shapes[name]) for name in self._names)
        self._with(key, lambda session: session)

    def run(self, feeds: Mapping[str, Any], *, on_device: bool = False) -> dict[str, Any]:
        """Run the engine, as ``Session.run`` does.

        Raises
        ------
        ProfileError
            If the inputs' shapes are in no profile.
        SpecialisationError
            If no engine can be made for them.
        """
        return self._with(self._key(feeds), lambda session: session.run(feeds, on_device=on_device))

    def enqueue(
        self, stream: Any, inputs: Mapping[str, Any], outputs: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Enqueue the engine, as ``Session.enqueue`` does; a shape that is seen for the first time is waited for."""
        return self._with(self._key(inputs), lambda session: session.enqueue(stream, inputs, outputs))

    def thunk(self, feeds: Mapping[str, Any]) -> Thunk:
        """Return what enqueues one whole run, as ``Session.thunk`` does."""
        return self._with(self._key(feeds), lambda session: session.thunk(feeds))

    def timer(self) -> Timer:
        """Return a timer for the last thunk."""
        return self._last.timer()

    def profile(self, feeds: Mapping[str, Any], iterations: int = 10) -> list[StepTime]:
        """Return how long each step takes, as ``Session.profile`` does."""
        return self._with(self._key(feeds), lambda session: session.profile(feeds, iterations))

    def _ranged(self, spec: TensorSpec) -> TensorSpec:
        if spec.name not in self._names:
            return spec
        ranges = [profile.shapes[spec.name] for profile in self.profiles]
        lows = [min(dims) for dims in zip(*(least for least, _, _ in ranges), strict=True)]
        highs = [max(dims) for dims in zip(*(most for _, _, most in ranges), strict=True)]
        shape = (low if low == high else f"{low}..{high}" for low, high in zip(lows, highs, strict=True))
        return msgspec.structs.replace(spec, shape=tuple(shape))

    def _key(self, feeds: Mapping[str, Any]) -> Key:
        for name in self._names:
            if name not in feeds:
                spec = next(s for s in self.inputs if s.name == name)
                raise InputError(f"input '{name}' ({spec.type}) is missing")
        return tuple(_shape(feeds[name]) for name in self._names)

    def _with(self, key: Key, use: Callable[[Session], Result]) -> Result:
        """Return what ``use`` makes of the session for ``key``, which no other thread uses meanwhile."""
        with self._lock:
            if key == self._last_key:
                return use(self._last)
        number = self._profile_of(key)
        while True:
            with self._lock:
                session = self._found(key, number)
                if session is not None:
                    self._last, self._last_key = session, key
                    return use(session)
            self._specialise(key, number)

    def _profile_of(self, key: Key) -> int:
        shapes = dict(zip(self._names, key, strict=True))
        number = find_profile(self.profiles, shapes)
        if number is None:
            raise ProfileError(_refusal(self.profiles, shapes))
        return number

    def _found(self, key: Key, number: int) -> Session | None:
        if key == tuple(self.profiles[number].opt.values()):
            return self._session_of(number)
        if key in self._others:
            self._others.move_to_end(key)
        return self._others.get(key)

    def _session_of(self, number: int) -> Session:
        """Return the session for the ``opt`` of a profile."""
        if number not in self._opts:
            self._opts[number] = self._open(self._profiled.engines[number], self._weights)
        return self._opts[number]

    def _specialise(self, key: Key, number: int) -> None:
        """Make an engine for ``key``; other threads may run other shapes meanwhile."""
        with self._making:
            with self._lock:
                if key in self._others:
                    return  # another thread was faster
            made = self._the_specialiser().specialise(number, dict(zip(self._names, key, strict=True)))
            with self._lock:
                while len(self._others) >= self._most_shapes:
                    _, oldest = self._others.popitem(last=False)
                    oldest._device.synchronize()  # what was enqueued with it may not have ended
                    if self._last is oldest:
                        self._last, self._last_key = self._opts[0], None
                    del oldest
                self._others[key] = self._open(made, DeviceWeights(self._weights))

    def _the_specialiser(self) -> Specialiser:
        if self._specialiser is None:
            try:
                from tactician.specialising import Specialiser
            except ImportError as error:
                opts = "; ".join(map(str, self.profiles))
                raise SpecialisationError(
                    f"a shape that is no profile's opt takes an engine of its own to be made, and '{error.name}', which that "
                    f"needs, is not installed here; install it (pip install onnx onnx-ir onnxscript), run the shapes in the "
                    f"middle of {opts}, or build with a profile whose opt this shape is"
                ) from error
            self._specialiser = Specialiser(
                self._profiled, device=self._open.device, plugins=self._open.names
            )
        return self._specialiser


@dataclass(frozen=True)
class _Opener:
    """Opens sessions, all with the same options."""

    device: int
    plugins: Plugins | Sequence[str | InlinePlugin] | None
    allow_mismatch: bool

    def __call__(self, engine: Engine, weights: DeviceWeights) -> Session:
        return Session(
            engine,
            device=self.device,
            plugins=self.plugins,
            allow_mismatch=self.allow_mismatch,
            weights=weights,
        )

    @property
    def names(self) -> Sequence[str | InlinePlugin] | None:
        """The plugins, if they are not loaded ones."""
        return None if isinstance(self.plugins, Plugins) else self.plugins


def _shape(value: Any) -> Dims:
    shape = getattr(value, "shape", None)
    return tuple(map(int, np.shape(value) if shape is None else shape))


def _refusal(profiles: Sequence[OptimizationProfile], shapes: Mapping[str, Dims]) -> str:
    """Return why no profile holds ``shapes``, and what to do."""
    reasons = [profile.refusal(shapes) for profile in profiles]
    culprit = next(reason[0] for reason in reasons if reason is not None)
    lines = [
        f"\n  profile {number}, {profile}: input '{reason[0]}': {reason[1]}"
        for number, (profile, reason) in enumerate(zip(profiles, reasons, strict=True))
        if reason is not None
    ]
    given = ", ".join(f"{name}:{dims_text(dims)}" for name, dims in shapes.items())
    return (
        f"input '{culprit}' has shape {list(shapes[culprit])}, and no profile of the engine holds {given}:{''.join(lines)}\n"
        "give shapes within one profile (split or pad the batch), or build the engine again with a profile that holds "
        "these: --profile NAME:MIN..OPT..MAX"
    )
