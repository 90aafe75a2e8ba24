"""Times launches of one call as they will run: weights from memory, activations warm, rivals interleaved."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from tactician.errors import DeviceError
from tactician.signature import TensorType
from tactician.tactics.admission import Examination, failure, require_alive
from tactician.tactics.race import Around, RacePolicy, RaceResult, race
from tactician.tactics.tactic import Launch

if TYPE_CHECKING:
    from tactician.plugins.target import Thunk, Timer

MIN_ROTATED_BYTES = 16 * 1024
"""Smaller constants stay where they are: they do stay in the cache in a real network."""
MAX_ROTATED_BYTES = 1 << 30
MAX_COPIES = 8
CACHE_MULTIPLE = 3
"""The copies together exceed this many times the L2 cache."""


@dataclass(frozen=True)
class Entrant:
    """A launch that is right: ``workspace`` in bytes."""

    id: str
    launch: Launch
    workspace: int


class Track:
    """Buffers that all contenders of one call share: inputs, outputs, workspace, copies of the weights."""

    def __init__(self, exam: Examination, timer: Timer) -> None:
        self._device = exam.device
        self._timer = timer
        self._exam = exam
        self._outputs = [
            self._new(t) if t is not None and t.is_static and t.dtype != "string" else None
            for t in exam.signature.outputs
        ]
        self._input_sets = [exam.inputs(), *(self._copy_of_weights() for _ in range(self._copies() - 1))]

    def race(
        self, entrants: Sequence[Entrant], policy: RacePolicy, rng: np.random.Generator
    ) -> tuple[RaceResult, Mapping[str, str]]:
        """Race ``entrants``; also return, by id, why some could not be timed."""
        most = max((e.workspace for e in entrants), default=0)
        scratch = self._device.allocate(most) if most else None
        contenders: dict[str, Any] = {}
        failures: dict[str, str] = {}
        around = partial(self._exam.watch.running, self._exam.signature.key, stage="time")
        try:
            for entrant in entrants:
                thunks = self._thunks(entrant, scratch)
                try:
                    with around((entrant.id,)):
                        contender = self._timer.prepare(thunks[0], thunks if len(thunks) > 1 else ())
                except Exception as error:
                    failures[entrant.id] = failure("timing", error)
                    require_alive(self._device, self._exam.signature, (entrant.id,), "time", error)
                else:
                    contenders[entrant.id] = contender
            return self._run(contenders, policy, rng, around), failures
        finally:
            for contender in contenders.values():
                self._timer.release(contender)

    def _run(
        self, contenders: Mapping[str, Any], policy: RacePolicy, rng: np.random.Generator, around: Around
    ) -> RaceResult:
        running: list[str] = []

        @contextmanager
        def noted(names: Sequence[str]) -> Iterator[None]:
            running[:] = names
            with around(names):
                yield

        try:
            return race(contenders, self._timer, policy, rng, around=noted)
        except DeviceError as error:
            # a timer that runs them one by one says itself whose turn it was
            names = getattr(error, "candidates", None) or running
            require_alive(self._device, self._exam.signature, names, "time", error)
            raise

    def _thunks(self, entrant: Entrant, scratch: Any) -> list[Thunk]:
        size = TensorType("uint8", (entrant.workspace,))
        workspace = self._device.view(scratch, 0, size) if entrant.workspace else None

        def enqueue(inputs: Sequence[Any], stream: Any) -> None:
            entrant.launch(inputs, self._outputs, workspace, stream)

        return [partial(enqueue, inputs) for inputs in self._input_sets]

    def _rotated(self) -> list[int]:
        """Return the indices of the constants that are worth copying."""
        return [
            i
            for i, value in enumerate(self._exam.host_inputs[0])
            if self._exam.signature.is_constant(i)
            and isinstance(value, np.ndarray)
            and value.dtype.kind not in "OUST"
            and value.nbytes >= MIN_ROTATED_BYTES
        ]

    def _copies(self) -> int:
        """Return how many sets of weights, the first one included, are cycled through."""
        cache = int(self._device.facts.get("l2_bytes", 0))
        nbytes: int = sum(self._exam.host_inputs[0][i].nbytes for i in self._rotated())
        if not cache or not nbytes:
            return 1
        enough = math.floor(CACHE_MULTIPLE * cache / nbytes) + 1
        return max(1, min(enough, MAX_COPIES, MAX_ROTATED_BYTES // nbytes))

    def _copy_of_weights(self) -> list[Any]:
        inputs = list(self._exam.inputs())
        for i in self._rotated():
            value = self._exam.host_inputs[0][i]
            tensor = self._exam.signature.input(i)
            inputs[i] = self._new(TensorType(tensor.dtype if tensor else value.dtype.name, value.shape))
            self._device.upload(inputs[i], value)
        return inputs

    def _new(self, tensor: TensorType) -> Any:
        return self._device.view(self._device.allocate(tensor.nbytes), 0, tensor)
