"""A session: an engine made ready on a device. The run path; imports neither ONNX nor a compiler."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from tactician.config import BuilderConfig
from tactician.engine import Engine
from tactician.errors import EngineMismatchError, InputError
from tactician.plan import ABSENT, Place, Plan, TensorSpec
from tactician.plugins.inline import InlinePlugin
from tactician.plugins.manager import Plugins, load_plugins
from tactician.plugins.target import Artifacts, Device, Thunk, Timer
from tactician.profiled_engine import is_profiled
from tactician.runtime.device_weights import DeviceWeights
from tactician.runtime.executor import BoundStep, Executor, as_host_array, releases
from tactician.runtime.seen import Seen
from tactician.runtime.wall_timer import WallTimer


class StepTime(msgspec.Struct, frozen=True):
    """Seconds that one step takes alone: median over its samples."""

    node: str
    op: str
    tactic: str
    target: str
    seconds: float


class Session:
    """Runs an engine. Calls from several threads, and what they enqueue on several streams, are done one after the other.

    For runs at the same time, make several sessions of one engine.

    Parameters
    ----------
    engine
        A built engine, or the path of one.
    device
        Index of the device of the engine's target.
    plugins
        Loaded plugins, or those to load: names, ``.py`` files and ``InlinePlugin`` objects, as ``BuilderConfig.plugins``
        has them. By default those installed ones that the engine names are loaded.
    allow_mismatch
        Whether a plugin whose files differ from those at build time may be used all the same.
    weights
        Weights on devices that are shared with other sessions; by default the session has its own.

    Raises
    ------
    EngineMismatchError
        If a plugin is missing or differs, or the device is not the kind that the engine was built for.
    """

    def __new__(cls, engine: Engine | str | os.PathLike[str], **_: Any) -> Session:
        """Return a ``ProfiledSession`` for an engine with optimization profiles."""
        if cls is Session and is_profiled(engine):
            from tactician.runtime.profiled_session import ProfiledSession

            return super().__new__(ProfiledSession)
        return super().__new__(cls)

    def __init__(
        self,
        engine: Engine | str | os.PathLike[str],
        *,
        device: int = 0,
        plugins: Plugins | Sequence[str | InlinePlugin] | None = None,
        allow_mismatch: bool = False,
        weights: DeviceWeights | None = None,
    ) -> None:
        self.engine = engine if isinstance(engine, Engine) else Engine.load(engine)
        self.plan: Plan = self.engine.plan
        self._lock = threading.Lock()
        self._plugins = plugins if isinstance(plugins, Plugins) else _load_engine_plugins(self.plan, plugins)
        _check_plugins(self.plan, self._plugins, allow_mismatch)
        self._devices = self._open_devices(device)
        self._device = self._devices[self.plan.target]
        self._stream = self._device.create_stream()
        self._weights = weights or DeviceWeights()
        self._values, self._buffers = self._place_tensors()
        self._executor = Executor(self.plan, self._devices, self._bind_steps(), self._values)
        self._owned: dict[int, Any] = {}
        self._pending: Any = None  # mark of what was enqueued last: the arena is its own until then
        self._pending_on: Any = None  # the stream that it is on
        self._seen: dict[int, Seen] = {}

    @property
    def inputs(self) -> list[TensorSpec]:
        """Name and type of each input."""
        return [self.plan.tensors[i] for i in self.plan.inputs]

    @property
    def outputs(self) -> list[TensorSpec]:
        """Name and type of each output."""
        return [self.plan.tensors[i] for i in self.plan.outputs]

    def run(self, feeds: Mapping[str, Any], *, on_device: bool = False) -> dict[str, Any]:
        """Run the engine and wait for its outputs.

        Parameters
        ----------
        feeds
            Input name to NumPy array, or to any tensor with DLPack: one that lies on the engine's GPU is used where it
            lies. Sequences are lists, absent optionals None.
        on_device
            Whether outputs are returned as tensors of the device (take them with DLPack: ``torch.from_dlpack``),
            valid until the next run, instead of as NumPy arrays.

        Raises
        ------
        InputError
            If an input is missing, unknown, or has another type or shape than the engine's.
        """
        with self._lock:
            bound = self._bind_inputs(feeds)
            for index in self.plan.outputs:
                if self.plan.tensors[index].place == Place.OUTPUT:
                    bound[index] = self._output_buffer(index, reuse=self.plan.target != "cpu")
            self._device.wait(self._stream, self._pending)
            values = self._executor.run(bound, self._stream)
            self._device.synchronize(self._stream)
            self._pending = self._pending_on = None
            return {
                self.plan.tensors[i].name: self._result(i, values[i], on_device) for i in self.plan.outputs
            }

    def enqueue(
        self, stream: Any, inputs: Mapping[str, Any], outputs: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Enqueue the engine on the caller's stream and return without waiting for it.

        Parameters
        ----------
        stream
            An object with ``__cuda_stream__``, a torch stream, or a raw handle.
        inputs
            Input name to tensor on the engine's device; used where they lie and must stay valid until the work is done.
            What other streams have still to do to them is the caller's to wait for.
        outputs
            Output name to tensor to write to; those not given are the session's own, valid until the next call.

        Returns
        -------
        dict
            Output name to tensor of the device.

        Raises
        ------
        InputError
            If a tensor is not on the engine's device, not contiguous, or has another type or shape.

        Notes
        -----
        Where some nodes run on the CPU (``inspect`` says so), the call waits for the device at each of them.
        """
        with self._lock:
            stream = self._device.wrap_stream(stream)
            bound = {i: self._given(i, inputs, stream) for i in self.plan.inputs}
            if len(inputs) > len(bound):
                _check_names(inputs, self.inputs, "input")
            if outputs:
                _check_names(outputs, self.outputs, "output", partial=True)
            for index in self.plan.outputs:
                spec = self.plan.tensors[index]
                if spec.place == Place.OUTPUT:
                    given = spec.name in (outputs or {})
                    bound[index] = (
                        self._given(index, outputs or {}, stream)
                        if given
                        else self._output_buffer(index, reuse=True)
                    )
            if stream is not self._pending_on:  # a stream's own work is in order
                self._device.wait(stream, self._pending)
            try:
                values = self._executor.run(bound, stream)
            finally:  # also what was enqueued before a failure uses the arena
                mark = self._device.mark(stream)
                if mark is not None:
                    self._pending, self._pending_on = mark, stream
            return {self.plan.tensors[i].name: values[i] for i in self.plan.outputs}

    def thunk(self, feeds: Mapping[str, Any]) -> Thunk:
        """Return what enqueues one whole run with ``feeds`` already in place, to be timed with ``timer``.

        It waits for nothing that was enqueued on another stream.
        """
        bound = self._bind_inputs(feeds)
        for index in self.plan.outputs:
            if self.plan.tensors[index].place == Place.OUTPUT:
                bound[index] = self._output_buffer(index, reuse=True)
        return self._executor.whole(bound)

    def timer(self) -> Timer:
        """Return a timer that can time ``thunk``: the device's own or, where the plan waits for the host, the wall clock."""
        device_timer = self.plan.target == "cpu" or self._executor.is_one_graph
        return self._device.timer() if device_timer else WallTimer(self._device)

    def profile(self, feeds: Mapping[str, Any], iterations: int = 10) -> list[StepTime]:
        """Return how long each step takes, timed alone after one whole run with ``feeds``."""
        with self._lock:
            self._device.wait(self._stream, self._pending)
            bound = self._bind_inputs(feeds)
            for index in self.plan.outputs:
                if self.plan.tensors[index].place == Place.OUTPUT:
                    bound[index] = self._output_buffer(index, reuse=True)
            return profile_steps(self._executor, self._devices, bound, self._stream, iterations)

    def _open_devices(self, index: int) -> dict[str, Device]:
        targets = {
            self.plan.target,
            *(s.target for s in self.plan.steps),
            *(t.target for t in self.plan.tensors),
        }
        devices = {}
        for name in sorted(targets):
            target = self._plugins.target(name)
            devices[name] = target.device(
                index if name == self.plan.target else 0, Artifacts(self.engine.artifacts)
            )
        present = devices[self.plan.target].requirements()
        for key, wanted in self.plan.requirements.items():
            if present.get(key) != wanted:
                raise EngineMismatchError(
                    f"the engine was built for {key.replace('_', ' ')} '{wanted}', this is '{present.get(key)}'; build it on this device"
                )
        return devices

    def _place_tensors(self) -> tuple[list[Any], list[Any]]:
        """Allocate arenas, upload weights, and return the views by tensor index, and the buffers to keep."""
        arenas = {
            report.target: self._devices[report.target].allocate(report.peak) for report in self.plan.memory
        }
        self._arenas = arenas
        weights, buffers = self._weights.place(self.engine, self._devices)
        values: list[Any] = []
        for spec in self.plan.tensors:
            device = self._devices[spec.target]
            match spec.place:
                case Place.ARENA:
                    values.append(device.view(arenas[spec.target], spec.offset, spec.type))
                case Place.WEIGHT:
                    values.append(weights[len(values)])
                case _:
                    values.append(None)
        return values, [*arenas.values(), *buffers]

    def _bind_steps(self) -> list[BoundStep]:
        dynamic = [
            t.place in (Place.DYNAMIC, Place.INPUT, Place.OUTPUT) and not _static(t)
            for t in self.plan.tensors
        ]
        free = releases(self.plan, dynamic)
        steps = []
        for step, released in zip(self.plan.steps, free, strict=True):
            launch = workspace = None
            if not step.is_copy:
                device = self._devices[step.target]
                candidate = self._plugins.registry.parse(step.tactic)
                if candidate.tactic.version != step.tactic_version:
                    raise EngineMismatchError(
                        f"node '{step.node}': tactic '{step.tactic}' has version {candidate.tactic.version}, the engine was "
                        f"built with version {step.tactic_version}; build it again"
                    )
                launch = candidate.tactic.prepare(step.op_signature, device)
                if step.workspace:
                    workspace = device.view(
                        self._arenas[step.target],
                        step.workspace_offset,
                        TensorSpec("", "uint8", (step.workspace,), step.target, Place.ARENA).type,
                    )
            is_dynamic = any(i != ABSENT and dynamic[i] for i in (*step.inputs, *step.outputs))
            steps.append(BoundStep(step, launch, workspace, is_dynamic, released))
        return steps

    def _bind_inputs(self, feeds: Mapping[str, Any]) -> dict[int, Any]:
        _check_names(feeds, self.inputs, "input")
        bound = {}
        for index in self.plan.inputs:
            spec = self.plan.tensors[index]
            value = feeds[spec.name]
            if not spec.type.is_tensor:
                bound[index] = value
                continue
            device = self._devices[spec.target]
            tensor = device.import_tensor(value, self._stream)
            if tensor is None or not _static(spec):
                array = _as_array(spec, value)
                _check_type(spec, array, "input")
                tensor = np.ascontiguousarray(array).reshape(array.shape)
                if spec.target != "cpu":
                    tensor = self._owned_tensor(index)
                    device.upload(tensor, array, self._stream)
            else:
                _check_type(spec, tensor, "input")
            bound[index] = tensor
        return bound

    def _given(self, index: int, tensors: Mapping[str, Any], stream: Any) -> Any:
        spec = self.plan.tensors[index]
        if spec.name not in tensors:
            raise InputError(f"input '{spec.name}' ({spec.type}) is missing")
        seen = self._seen.get(index)
        if seen is not None and seen.is_same(tensors[spec.name]):
            # what is returned must keep the caller's memory, what is only read need not
            return seen.kept_by(tensors[spec.name]) if index in self.plan.outputs else seen.tensor
        device = self._devices[spec.target]
        tensor = device.import_tensor(tensors[spec.name], stream)
        if tensor is None:
            raise InputError(
                f"'{spec.name}': a {type(tensors[spec.name]).__name__} that is not a contiguous tensor on "
                f"{spec.target}:{device.index}; move it there, or use Session.run"
            )
        _check_type(spec, tensor, "tensor")
        self._seen.pop(index, None)
        if remembered := Seen.of(tensors[spec.name], tensor):
            self._seen[index] = remembered
        return tensor

    def _owned_tensor(self, index: int) -> Any:
        if index not in self._owned:
            spec = self.plan.tensors[index]
            device = self._devices[spec.target]
            self._owned[index] = device.view(device.allocate(spec.type.nbytes), 0, spec.type)
        return self._owned[index]

    def _output_buffer(self, index: int, *, reuse: bool) -> Any:
        """Return where output ``index`` is written: on the host new memory that the caller may keep."""
        if reuse and index in self._owned:
            return self._owned[index]
        spec = self.plan.tensors[index]
        if not _static(spec):
            return None
        if spec.target == "cpu" and not reuse:
            return np.empty(spec.type.dims, spec.type.numpy_dtype)
        return self._owned_tensor(index)

    def _result(self, index: int, value: Any, on_device: bool) -> Any:
        spec = self.plan.tensors[index]
        if on_device:
            return value
        result = as_host_array(value, self._devices[spec.target], self._stream)
        # an output that is an input or a weight must not share its memory with the caller
        shared = (
            isinstance(result, np.ndarray)
            and spec.target == "cpu"
            and (spec.place != Place.OUTPUT or index in self._owned)
        )
        return result.copy() if shared else result


def load(path: str | os.PathLike[str], *, device: int = 0) -> Session:
    """Load an engine file and make it ready to run."""
    return Session(Path(path), device=device)


def profile_steps(
    executor: Executor, devices: Mapping[str, Device], bound: Mapping[int, Any], stream: Any, iterations: int
) -> list[StepTime]:
    """Time every step of ``executor``: alone on its device's timer or, where its shapes are dynamic, within whole runs."""
    whole = np.median([executor.run_timed(bound, stream) for _ in range(iterations)], axis=0)
    values = executor.run(bound, stream)
    timers = {name: device.timer() for name, device in devices.items()}
    times = []
    for bound_step, seconds in zip(executor.steps, whole, strict=True):
        step = bound_step.step
        if bound_step.launch is not None and not bound_step.dynamic:
            timer = timers[step.target]
            contender = timer.prepare(executor.thunk(bound_step, values))
            seconds = np.median([timer.round([contender])[0] for _ in range(iterations)])
            timer.release(contender)
        times.append(StepTime(step.node, step.op, step.tactic, step.target, float(seconds)))
    return times


def _load_engine_plugins(plan: Plan, allowed: Sequence[str | InlinePlugin] | None) -> Plugins:
    config = BuilderConfig(plugins=None if allowed is None else tuple(allowed))
    return load_plugins(config, only={p.name for p in plan.plugins})


def _check_plugins(plan: Plan, plugins: Plugins, allow_mismatch: bool) -> None:
    loaded = {ref.name: ref for ref, _ in plugins.registry}
    for use in plan.plugins:
        ref = loaded.get(use.name)
        if ref is None:
            state = plugins.states.get(use.name)
            why = f" ({state.state}: {state.reason})" if state and state.reason else ""
            raise EngineMismatchError(
                f"the engine needs plugin '{use.name}' {use.version}, which is not loaded{why}; install it, or build again without it"
            )
        if ref.digest != use.digest and not allow_mismatch:
            raise EngineMismatchError(
                f"the engine was built with plugin '{use.name}' {use.version}, installed is {ref.version} with other files; "
                "build again, or pass allow_mismatch"
            )


def _check_names(
    given: Mapping[str, Any], specs: Sequence[TensorSpec], kind: str, *, partial: bool = False
) -> None:
    names = [s.name for s in specs]
    for name in given:
        if name not in names:
            raise InputError(f"the engine has no {kind} '{name}'; its {kind}s are {', '.join(names)}")
    for spec in specs:
        if not partial and spec.name not in given:
            raise InputError(f"{kind} '{spec.name}' ({spec.type}) is missing")


def _as_array(spec: TensorSpec, value: Any) -> np.ndarray[Any, Any]:
    try:
        if isinstance(value, np.ndarray | np.generic | list | tuple | int | float | bool | str):
            return np.asarray(value)
        return np.from_dlpack(value)
    except (TypeError, ValueError, RuntimeError, BufferError) as error:
        raise InputError(
            f"input '{spec.name}': can't read a {type(value).__name__} as {spec.type}: {error}"
        ) from error


def _check_type(spec: TensorSpec, tensor: Any, kind: str) -> None:
    shape = tuple(tensor.shape)
    wanted = spec.type
    dtype = tensor.dtype if isinstance(tensor.dtype, str) else None
    same_type = (
        dtype == wanted.dtype
        if dtype
        else np.dtype(tensor.dtype) == wanted.numpy_dtype
        or (wanted.dtype == "string" and np.dtype(tensor.dtype).kind in "OUST")
    )
    if not same_type:
        raise InputError(f"{kind} '{spec.name}' must be {wanted}, but it is {tensor.dtype}; convert it first")
    fits = wanted.shape is None or (
        len(shape) == len(wanted.shape)
        and all(not isinstance(w, int) or w == s for s, w in zip(shape, wanted.shape, strict=True))
    )
    if not fits:
        raise InputError(
            f"{kind} '{spec.name}' must be {wanted}, but its shape is {list(shape)}; build an engine for that shape with "
            f"--shapes {spec.name}:{'x'.join(map(str, shape))}"
        )


def _static(spec: TensorSpec) -> bool:
    return spec.type.is_static and spec.dtype != "string"
