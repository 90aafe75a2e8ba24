"""Checks that run a plugin's tactics: in place, many times, captured, on another device, in another process."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tactician.engine import Engine
from tactician.plugins.reference import reference_for
from tactician.plugins.target import Device
from tactician.runtime.executor import as_host_array
from tactician.signature import OpSignature
from tactician.tactics.admission import Examination
from tactician.tactics.call_buffers import CallBuffers, CallInputs
from tactician.tactics.registry import Candidate
from tactician.tactics.sampling import CannotSample, hard_inputs, sample_inputs
from tactician.testing.calls import resized
from tactician.testing.other_process import run_python
from tactician.testing.subject import Subject

REPEATS = 100
DRAWN_SHAPES = 15
POISON = 0xFF


def check_numerics(subject: Subject) -> None:
    """Hold every candidate to the reference: poisoned outputs, guard bytes, inputs unchanged, two runs alike."""
    for signature, candidate in subject.accepted():
        _examine(subject, signature, candidate)


def check_shapes(subject: Subject) -> None:
    """Do the same on shapes that hypothesis draws."""
    calls = [
        s for s in subject.calls if _has_static_inputs(s) and not s.parts
    ]  # parts have shapes of their own
    if not calls:
        return

    @settings(
        max_examples=DRAWN_SHAPES * min(len(calls), 4),
        deadline=None,
        database=None,
        derandomize=True,  # the same shapes each time: a verdict is not a matter of luck
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(calls).flatmap(resized))
    def hold(signature: OpSignature) -> None:
        for candidate in subject.registry.candidates(signature, subject.device)[0]:
            _examine(subject, signature, candidate)

    hold()


def check_repeats(subject: Subject) -> None:
    """Call one launch many times, with buffers of its own each time."""
    for signature, candidate in _one_each(subject, static=False):
        if "nondeterministic" in candidate.tactic.numerics(signature):
            continue
        runs = {_run(subject, signature, candidate, launch=None) for _ in range(2)}
        launch = candidate.tactic.prepare(signature, subject.device)
        runs |= {_run(subject, signature, candidate, launch=launch) for _ in range(REPEATS)}
        assert len(runs) == 1, (
            f"{candidate.id} on {signature}: {REPEATS} runs gave {len(runs)} different results"
        )


def check_stream(subject: Subject) -> None:
    """Make sure that nothing runs before the given stream does: while it is captured, nothing may."""
    for signature, candidate in _one_each(subject):
        device, rng = subject.device, np.random.default_rng(0)
        launch = candidate.tactic.prepare(signature, device)
        inputs = CallInputs(device, signature, sample_inputs(signature, rng), rng)
        buffers = CallBuffers(device, signature, candidate.tactic.workspace(signature, device), rng)
        launch(
            list(inputs.tensors), buffers.outputs, buffers.workspace, device.create_stream()
        )  # it is warm now
        device.synchronize()
        buffers.fill(POISON)
        device.synchronize()

        def call(stream: Any, launch: Any = launch, inputs: Any = inputs, buffers: Any = buffers) -> None:
            launch(list(inputs.tensors), buffers.outputs, buffers.workspace, stream)

        if device.capture(call) is None:
            return  # a device without graphs has no streams to mix up
        device.synchronize()
        for output in buffers.outputs:
            written = np.frombuffer(device.download(output).tobytes(), np.uint8) != POISON
            assert not written.any(), (
                f"{candidate.id} on {signature}: it enqueues work on another stream than the given one"
            )


def check_capture(subject: Subject) -> None:
    """Capture a launch as a graph and replay it, on devices that have graphs."""
    for signature, candidate in _one_each(subject):
        if "nondeterministic" in candidate.tactic.numerics(signature):
            continue
        plain = _run(subject, signature, candidate, launch=None)
        launch = candidate.tactic.prepare(signature, subject.device)

        def replayed(inputs: Any, outputs: Any, workspace: Any, stream: Any, launch: Any = launch) -> None:
            replay = subject.device.capture(lambda s: launch(inputs, outputs, workspace, s) and None)
            if replay is None:
                launch(inputs, outputs, workspace, stream)
            else:
                replay(stream)

        got = _run(subject, signature, candidate, launch=replayed)
        assert got == plain, f"{candidate.id} on {signature}: its graph computes something else"


def check_devices(subject: Subject) -> None:
    """Do the same on another device of the target, where there is one."""
    target = subject.plugins.target(subject.target)
    others = [index for index in range(target.count()) if index != subject.device_index]
    if not others:
        return
    other = target.device(others[0])
    for signature, candidate in _one_each(subject):
        if "nondeterministic" not in candidate.tactic.numerics(signature):
            here, there = (_run(subject, signature, candidate, None, on) for on in (subject.device, other))
            assert here == there, f"{candidate.id} on {signature}: device {others[0]} computes something else"


def check_engine(subject: Subject) -> None:
    """Build an engine that needs the plugin, run it in another process, and load it where the plugin is not."""
    found = _one_each(subject, static=False)
    if not found:
        return
    signature, candidate = found[0]
    engine = _engine(subject, signature, candidate)
    with tempfile.TemporaryDirectory() as folder:
        path, data = Path(folder, "m.tactician"), Path(folder, "inputs.npz")
        engine.save(path)
        inputs = sample_inputs(signature, np.random.default_rng(0))
        feeds = {f"x{i}": a for i, a in enumerate(inputs) if a is not None and not signature.is_constant(i)}
        np.savez(data, **feeds)  # type: ignore[arg-type]  # arrays by name
        script = (
            "import sys, numpy as np, tactician\n"
            "session = tactician.Session(sys.argv[1], plugins=[sys.argv[2], 'builtin'])\n"
            "feeds = dict(np.load(sys.argv[3]))\n"
            "first = session.run(feeds)\n"
            "same = sys.argv[5] == 'nondeterministic'\n"
            "for _ in range(int(sys.argv[4])):\n"
            "    again = session.run(feeds)\n"
            "    assert same or all(np.array_equal(first[k], again[k], equal_nan=True) for k in first), 'runs differ'\n"
        )
        marks = candidate.tactic.numerics(signature) & {"nondeterministic"}
        run_python(script, str(path), subject.plugin, str(data), str(REPEATS), *(marks or {"-"}))
        script = (
            "import sys, tactician\n"
            "from tactician.errors import EngineMismatchError\n"
            "try:\n"
            "    tactician.Session(sys.argv[1], plugins=['builtin'])\n"
            "except EngineMismatchError as error:\n"
            "    print(error)\n"
        )
        said = run_python(script, str(path))
        assert subject.name in said or subject.name == "builtin", (
            "an engine loads although its plugin is gone"
        )


def _examine(subject: Subject, signature: OpSignature, candidate: Candidate) -> None:
    rng = np.random.default_rng(0)
    try:
        sets = [sample_inputs(signature, rng), sample_inputs(signature, rng), hard_inputs(signature, rng)]
    except CannotSample:
        return
    exam = Examination(signature, subject.device, lambda s: reference_for(s, subject.plugins.ops), sets)
    try:
        verdict = exam.examine(candidate)
    except CannotSample:
        return
    assert verdict.ok, f"{candidate.id} on {signature}: {verdict.reason}"


def _one_each(subject: Subject, *, static: bool = True) -> list[tuple[OpSignature, Candidate]]:
    """Return, for every tactic class, the first call that it accepts and that can be sampled.

    With ``static``, none whose output shapes depend on values: their outputs are made by the launch.
    """
    found: dict[type, tuple[OpSignature, Candidate]] = {}
    for signature, candidate in subject.accepted():
        fit = signature.is_static or (not static and _has_static_inputs(signature))
        if type(candidate.tactic) not in found and fit and _can_be_sampled(signature):
            found[type(candidate.tactic)] = signature, candidate
    return list(found.values())


def _has_static_inputs(signature: OpSignature) -> bool:
    return all(t is None or t.is_static for t in signature.inputs)


def _can_be_sampled(signature: OpSignature) -> bool:
    try:
        sample_inputs(signature, np.random.default_rng(0))
    except CannotSample:
        return False
    return True


def _run(
    subject: Subject, signature: OpSignature, candidate: Candidate, launch: Any, on: Device | None = None
) -> bytes:
    """Run once on fixed inputs, on the subject's device or another, and return the bytes of all outputs."""
    device, rng = on or subject.device, np.random.default_rng(0)
    stream = device.create_stream()
    launch = launch or candidate.tactic.prepare(signature, device)
    inputs = CallInputs(device, signature, sample_inputs(signature, rng), rng)
    buffers = CallBuffers(device, signature, candidate.tactic.workspace(signature, device), rng)
    buffers.fill(POISON)
    device.synchronize()
    returned = launch(list(inputs.tensors), buffers.outputs, buffers.workspace, stream)
    device.synchronize(stream)
    results = (as_host_array(r, device, stream) for r in buffers.results(returned, stream))
    return b"".join(np.asarray(r).tobytes() for r in results if r is not None)


def _engine(subject: Subject, signature: OpSignature, candidate: Candidate) -> Engine:
    from tactician import BuilderConfig, Network, build

    own = signature.domain != "ai.onnx"
    net = Network() if own else Network(opset=signature.version)
    rng = np.random.default_rng(0)
    inputs: list[Any] = []
    for i, (tensor, value) in enumerate(zip(signature.inputs, sample_inputs(signature, rng), strict=True)):
        if tensor is None or value is None:
            inputs.append(None)
        elif signature.is_constant(i):
            inputs.append(net.constant(value))
        else:
            inputs.append(net.input(f"x{i}", tensor.dtype, tensor.dims))
    attributes = dict(signature.attributes)
    domain = "" if signature.domain == "ai.onnx" else signature.domain
    made = net.op(
        signature.op_type,
        *inputs,
        domain=domain,
        version=signature.version if domain else 1,
        outputs=len(signature.outputs),
        name="call",
        **attributes,
    )
    for i, output in enumerate(made if isinstance(made, tuple) else (made,)):
        net.output(output, f"y{i}")
    config = BuilderConfig(
        target=subject.target,
        plugins=(subject.plugin, "builtin"),
        use_timing_cache=False,
        without=("fold_constants",),
        tactic_rules=(("call", candidate.id.replace("[", "[[]")),),
    )
    engine: Engine = build(net, config)
    return engine
