"""Runs a plan's steps over bound tensors: in order on the host, as replayed graphs where the device has them."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from tactician.errors import DeviceError
from tactician.plan import ABSENT, Plan, Step
from tactician.plugins.target import Device, Thunk
from tactician.tactics.tactic import Launch

MAX_BINDINGS = 8
"""Sets of caller's buffers for which captured graphs are kept."""


@dataclass(frozen=True)
class BoundStep:
    """A step with its launch and its workspace; ``launch`` is None for a copy between targets."""

    step: Step
    launch: Launch | None
    workspace: Any
    dynamic: bool
    releases: tuple[int, ...]
    """Dynamic tensors that nothing reads after this step."""

    def run(self, values: list[Any], devices: Mapping[str, Device], plan: Plan, stream: Any) -> None:
        """Do the step on ``values``, the tensors of the plan by index."""
        if self.launch is None:
            self._copy(values, devices, plan, stream)
        else:
            inputs = [None if i == ABSENT else values[i] for i in self.step.inputs]
            outputs = [None if i == ABSENT else values[i] for i in self.step.outputs]
            results = self.launch(inputs, outputs, self.workspace, stream)
            if self.dynamic and results is not None:
                self._store(values, outputs, results)
        for index in self.releases:
            values[index] = None

    def _store(self, values: list[Any], outputs: Sequence[Any], results: Sequence[Any]) -> None:
        for index, output, result in zip(self.step.outputs, outputs, results, strict=False):
            if index != ABSENT and output is None:
                values[index] = result

    def _copy(self, values: list[Any], devices: Mapping[str, Device], plan: Plan, stream: Any) -> None:
        (source,), (target,) = self.step.inputs, self.step.outputs
        origin = plan.tensors[source].target
        value = values[source]
        host = devices[origin].download(value, stream if origin == plan.target else None)
        destination = devices[plan.tensors[target].target]
        if values[target] is None:
            values[target] = host
        else:
            destination.upload(values[target], host, stream if destination.target == plan.target else None)


class Executor:
    """Runs the bound steps of one plan.

    Runs of consecutive steps on a device that captures graphs become one graph each, captured once for each set of
    caller's buffers; the last ``MAX_BINDINGS`` sets are kept.
    """

    def __init__(
        self, plan: Plan, devices: Mapping[str, Device], steps: Sequence[BoundStep], values: list[Any]
    ) -> None:
        self._plan = plan
        self._devices = devices
        self.steps = steps
        self._values = values
        self._segments = [list(group) for _, group in groupby(steps, self._segment_key)]
        self._bindings: OrderedDict[tuple[int, ...], list[Thunk | None]] = OrderedDict()

    @property
    def is_one_graph(self) -> bool:
        """Whether the whole plan replays as a single graph: then running never waits for the device."""
        return len(self._segments) == 1 and self._capturable(self._segments[0])

    def run(self, bound: Mapping[int, Any], stream: Any) -> list[Any]:
        """Enqueue the whole plan with the caller's tensors ``bound`` by index, and return all tensors by index."""
        key = tuple([getattr(t, "pointer", 0) for t in bound.values()])
        replays = self._bindings.get(key)
        values = list(self._values)
        for index, tensor in bound.items():
            values[index] = tensor
        if replays is None:
            replays = self._capture(values)
            if any(replays):
                self._bindings[key] = replays
                while len(self._bindings) > MAX_BINDINGS:
                    self._bindings.popitem(last=False)
        else:
            self._bindings.move_to_end(key)
        for segment, replay in zip(self._segments, replays, strict=True):
            if replay is not None:
                replay(stream)
            else:
                for step in segment:
                    step.run(values, self._devices, self._plan, stream)
        return values

    def whole(self, bound: Mapping[int, Any]) -> Thunk:
        """Return what enqueues every step in turn, without graphs of its own."""

        def run(stream: Any) -> None:
            values = list(self._values)
            for index, tensor in bound.items():
                values[index] = tensor
            for step in self.steps:
                step.run(values, self._devices, self._plan, stream)

        return run

    def run_timed(self, bound: Mapping[int, Any], stream: Any) -> list[float]:
        """Run step by step, waiting after each, and return the seconds of each."""
        values = list(self._values)
        for index, tensor in bound.items():
            values[index] = tensor
        seconds = []
        device = self._devices[self._plan.target]
        for step in self.steps:
            start = time.perf_counter()
            step.run(values, self._devices, self._plan, stream)
            device.synchronize(stream)
            seconds.append(time.perf_counter() - start)
        return seconds

    def thunk(self, step: BoundStep, values: list[Any]) -> Thunk:
        """Return what runs ``step`` alone on ``values``."""

        def run(stream: Any) -> None:
            step.run(values, self._devices, self._plan, stream)

        return run

    def _segment_key(self, step: BoundStep) -> tuple[bool, str]:
        return (step.launch is not None and not step.dynamic, "" if step.launch is None else step.step.target)

    def _capturable(self, segment: Sequence[BoundStep]) -> bool:
        return all(
            s.launch is not None and not s.dynamic and s.step.target == self._plan.target for s in segment
        )

    def _capture(self, values: list[Any]) -> list[Thunk | None]:
        replays: list[Thunk | None] = []
        for segment in self._segments:
            replay = None
            if self._capturable(segment) and self._plan.target != "cpu":
                replay = self._devices[self._plan.target].capture(self._run_all(segment, values))
            replays.append(replay)
        return replays

    def _run_all(self, segment: Sequence[BoundStep], values: list[Any]) -> Thunk:
        def run(stream: Any) -> None:
            for step in segment:
                step.run(values, self._devices, self._plan, stream)

        return run


def releases(plan: Plan, dynamic: Sequence[bool]) -> list[tuple[int, ...]]:
    """Return for each step the dynamic tensors that it is the last to read and that are no outputs of the plan."""
    last: dict[int, int] = {}
    for number, step in enumerate(plan.steps):
        for index in (*step.inputs, *step.outputs):
            if index != ABSENT and dynamic[index] and index not in plan.outputs:
                last[index] = number
    result: list[list[int]] = [[] for _ in plan.steps]
    for index, number in last.items():
        result[number].append(index)
    return [tuple(r) for r in result]


def as_host_array(value: Any, device: Device, stream: Any) -> Any:
    """Return a host array of a device's tensor; sequences, optionals and arrays of the host itself are returned as they are.

    Raises
    ------
    DeviceError
        If it is none of the device's tensors.
    """
    if isinstance(value, list | tuple) or value is None or np.isscalar(value):
        return value
    if isinstance(value, np.ndarray) and device.target == "cpu":
        return value
    try:
        return device.download(
            value, stream
        )  # a device's tensors may be arrays too: over memory that it reuses
    except AttributeError as error:
        if isinstance(value, np.ndarray):
            return value
        raise DeviceError(
            f"can't read a {type(value).__name__} from device {device.target}:{device.index}"
        ) from error
