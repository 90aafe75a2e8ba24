"""Checks of what a plugin says: its module, its distribution, its tactics as values, its answers."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from packaging.requirements import Requirement
from tactician.plugins.discovery import installed
from tactician.signature import OpSignature
from tactician.testing.other_process import run_python
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
    seconds, modules = json.loads(run_python(script, subject.plugin).splitlines()[-1])
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


def _answers(tactic: Any, signature: OpSignature, subject: Subject) -> tuple[Any, ...]:
    reason = tactic.decline(signature, subject.device)
    if reason is not None:
        return (reason,)
    return reason, tactic.workspace(signature, subject.device), tactic.numerics(signature)
