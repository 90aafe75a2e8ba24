"""The checks by name: each raises AssertionError with what is wrong, and says what to do about it."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packaging.requirements import Requirement
from tactician.engine import Engine
from tactician.plugins.discovery import installed
from tactician.plugins.reference import reference_for
from tactician.runtime.executor import as_host_array
from tactician.signature import OpSignature
from tactician.tactics.admission import Examination
from tactician.tactics.call_buffers import CallBuffers, CallInputs
from tactician.tactics.registry import Candidate
from tactician.tactics.sampling import CannotSample, hard_inputs, sample_inputs
from tactician.testing.calls import resized
from tactician.testing.subject import Subject

IMPORT_SECONDS = 1.0
"""Most that importing a plugin's module may take beyond importing tactician itself."""
HEAVY = (
    "onnx",
    "onnx_ir",
    "onnxscript",
    "onnxruntime",
    "torch",
    "triton",
    "jax",
    "cupy",
    "numba",
    "cuda",
    "cudnn",
)
"""Packages that a plugin's module may import only where they are needed: in ``prepare``."""
REPEATS = 100
DRAWN_SHAPES = 15


@dataclass(frozen=True)
class Check:
    """A check with a name; ``advice`` is what to do where it fails."""

    name: str
    advice: str
    run: Callable[[Subject], None]


def check_import(subject: Subject) -> None:
    """Import the plugin in a new process, as a build does."""
    script = (
        "import json, sys, time, tactician.plugins.discovery as d, tactician, numpy\n"
        "from tactician import Tactic, Op, Target, hookimpl, KernelSource\n"
        "before = set(sys.modules)\n"
        "name = sys.argv[1]\n"
        "source = d.from_file(name) if name.endswith('.py') else next(s for s in d.installed() if s.name == name)\n"
        "start = time.perf_counter()\n"
        "source.load()\n"
        "print(json.dumps([time.perf_counter() - start, sorted({m.partition('.')[0] for m in set(sys.modules) - before})]))\n"
    )
    seconds, modules = json.loads(_python(script, subject.plugin).splitlines()[-1])
    heavy = sorted(set(HEAVY) & set(modules))
    assert not heavy, f"importing it imports {', '.join(heavy)}"
    assert seconds < IMPORT_SECONDS, f"importing it takes {seconds:.2f} s, more than {IMPORT_SECONDS:g} s"


def check_metadata(subject: Subject) -> None:
    """Look at the distribution."""
    if subject.is_file:
        return
    (source,) = [s for s in installed() if s.name == subject.name]
    assert source.distribution is not None
    needs = [r for r in map(Requirement, source.requirements) if r.name == "tactician" and r.specifier]
    own = source.distribution_name == "tactician"
    assert own or needs, f"{source.distribution_name} does not say which versions of tactician it needs"
    fields = ("License-Expression", "License")
    assert any(source.distribution.metadata.get_all(field) for field in fields), (
        f"{source.distribution_name} has no licence"
    )


def check_fields(subject: Subject) -> None:
    """Look at tactic classes and their ids."""
    for signature, candidate in subject.accepted():
        again = subject.registry.parse(candidate.id)
        assert again.tactic == candidate.tactic, f"{candidate.id} reads back as {again.tactic}"
        values = dataclasses.asdict(candidate.tactic)  # type: ignore[call-overload]  # every tactic is a dataclass
        assert json.loads(json.dumps(values)) == values, f"{candidate.id}: its fields are no plain values"
        assert hash(candidate.tactic) == hash(again.tactic), f"{candidate.id} on {signature}: hashes differ"


def check_purity(subject: Subject) -> None:
    """Ask everything twice."""
    for signature in subject.calls:
        for tactic in (t for t in subject.tactics if t.serves(signature.op)):
            first, second = (list(tactic.candidates(signature, subject.device)) for _ in range(2))
            assert first == second, f"{tactic.__name__}.candidates answers {first} and then {second}"
            assert len(set(first)) == len(first), f"{tactic.__name__}.candidates yields one twice: {first}"
            for one in first:
                answers = [_answers(one, signature, subject) for _ in range(2)]
                assert answers[0] == answers[1], (
                    f"{one} on {signature}: decline, workspace and numerics answer {answers[0]} and then {answers[1]}"
                )
                reason = answers[0][0]
                assert reason is None or (isinstance(reason, str) and len(reason.split()) > 1), (
                    f"{one} on {signature}: {reason!r} is no reason in words"
                )


def check_served(subject: Subject) -> None:
    """Make sure that there is something to check."""
    served = {type(candidate.tactic) for _, candidate in subject.accepted()}
    missing = [t.__name__ for t in subject.tactics if t not in served]
    assert subject.tactics, f"it has no tactic for target '{subject.target}'"
    assert not missing, f"{', '.join(missing)} accepts none of {len(subject.calls)} calls"


def check_numerics(subject: Subject) -> None:
    """Hold every candidate to the reference: poisoned outputs, guard bytes, inputs unchanged, two runs alike."""
    for signature, candidate in subject.accepted():
        _examine(subject, signature, candidate)


def check_shapes(subject: Subject) -> None:
    """Do the same on shapes that hypothesis draws."""
    calls = [s for s in subject.calls if s.is_static]
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
    for signature, candidate in _one_each(subject):
        if "nondeterministic" in candidate.tactic.numerics(signature):
            continue
        runs = {_run(subject, signature, candidate, launch=None) for _ in range(2)}
        launch = candidate.tactic.prepare(signature, subject.device)
        runs |= {_run(subject, signature, candidate, launch=launch) for _ in range(REPEATS)}
        assert len(runs) == 1, (
            f"{candidate.id} on {signature}: {REPEATS} runs gave {len(runs)} different results"
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


def check_engine(subject: Subject) -> None:
    """Build an engine that needs the plugin, run it in another process, and load it where the plugin is not."""
    found = _one_each(subject)
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
            "again = session.run(feeds)\n"
            "assert all(np.array_equal(first[k], again[k], equal_nan=True) for k in first)\n"
        )
        _python(script, str(path), subject.plugin, str(data))
        script = (
            "import sys, tactician\n"
            "from tactician.errors import EngineMismatchError\n"
            "try:\n"
            "    tactician.Session(sys.argv[1], plugins=['builtin'])\n"
            "except EngineMismatchError as error:\n"
            "    print(error)\n"
        )
        said = _python(script, str(path))
        assert subject.name in said or subject.name == "builtin", (
            "an engine loads although its plugin is gone"
        )


CHECKS = (
    Check("import", "Import heavy packages where they are needed: within prepare or a launch.", check_import),
    Check(
        "metadata",
        'Give the distribution a licence and `dependencies = ["tactician>=…"]`.',
        check_metadata,
    ),
    Check(
        "served",
        "Give calls that the tactic accepts, in a test: conformance_tests(…, signatures=lambda: [make_signature(…)]).",
        check_served,
    ),
    Check("fields", "Use a frozen dataclass whose fields are int, bool or str.", check_fields),
    Check(
        "purity",
        "candidates, decline, workspace and numerics depend on their arguments alone; reasons are words.",
        check_purity,
    ),
    Check(
        "numerics",
        "Decline what the kernel can't do; write every element of the outputs and nothing else; use the given stream.",
        check_numerics,
    ),
    Check("shapes", "As for numerics; the message has the smallest shape that failed.", check_shapes),
    Check("repeats", "Keep no state between launches, or declare 'nondeterministic'.", check_repeats),
    Check(
        "capture",
        "A launch only enqueues on its stream: no allocation, no synchronisation, no copy to the host.",
        check_capture,
    ),
    Check(
        "engine",
        "What prepare needs must be in the signature, the device or the tactic's fields.",
        check_engine,
    ),
)
"""All checks, cheap ones first."""


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


def _one_each(subject: Subject) -> list[tuple[OpSignature, Candidate]]:
    """Return, for every tactic class, the first static call that it accepts and that can be sampled."""
    found: dict[type, tuple[OpSignature, Candidate]] = {}
    for signature, candidate in subject.accepted():
        if type(candidate.tactic) not in found and signature.is_static and _can_be_sampled(signature):
            found[type(candidate.tactic)] = signature, candidate
    return list(found.values())


def _can_be_sampled(signature: OpSignature) -> bool:
    try:
        sample_inputs(signature, np.random.default_rng(0))
    except CannotSample:
        return False
    return True


def _run(subject: Subject, signature: OpSignature, candidate: Candidate, launch: Any) -> bytes:
    """Run once on fixed inputs and return the bytes of all outputs."""
    device, rng = subject.device, np.random.default_rng(0)
    stream = device.create_stream()
    launch = launch or candidate.tactic.prepare(signature, device)
    inputs = CallInputs(device, signature, sample_inputs(signature, rng), rng)
    buffers = CallBuffers(device, signature, candidate.tactic.workspace(signature, device), rng)
    buffers.fill(0xFF)
    device.synchronize()
    returned = launch(list(inputs.tensors), buffers.outputs, buffers.workspace, stream)
    device.synchronize(stream)
    results = (as_host_array(r, device, stream) for r in buffers.results(returned, stream))
    return b"".join(np.asarray(r).tobytes() for r in results if r is not None)


def _answers(tactic: Any, signature: OpSignature, subject: Subject) -> tuple[Any, ...]:
    reason = tactic.decline(signature, subject.device)
    if reason is not None:
        return (reason,)
    return reason, tactic.workspace(signature, subject.device), tactic.numerics(signature)


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


def _python(script: str, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, *arguments],
        capture_output=True,
        text=True,
        env=environment,
    )
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 0, f"in another process: {lines[-1] if lines else done.returncode}"
    return done.stdout
