"""Every memory-bound kernel compiles without spills for old and new GPUs, at the shapes of real networks."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from memory_bound_cases import FAMILIES, LARGE, Case
from signatures import make_signature
from tactician.signature import OpSignature, TensorType, dtype_name, make_constant

pytest.importorskip("cuda.core", reason="the compiler's package is not installed")

from tactician.builtin_kernels.cuda.compiler import KernelSource, compile_cubin

MODULES = {
    "pointwise": ("pointwise",),
    "reduce": ("reduce",),
    "softmax": ("softmax",),
    "layer_norm": ("layer_norm",),
    "movement": ("transpose", "strided_copy", "copy", "gather", "pad"),
}
OUTPUTS = {
    "Cast": lambda c: TensorType("float16", c.inputs[0].shape),
    "ReduceSum": lambda c: _reduced(c),
    "ReduceMean": lambda c: _reduced(c),
    "ReduceMax": lambda c: _reduced(c),
    "Transpose": lambda c: TensorType(
        dtype_name(c.inputs[0].dtype),
        c.inputs[0].transpose(c.attributes.get("perm")).shape,
    ),
    "Concat": lambda c: TensorType("float32", (8, 96, 56, 56)),
    "Gather": lambda c: TensorType("float32", c.inputs[1].shape + c.inputs[0].shape[1:]),
    "Slice": lambda c: TensorType("float32", c.inputs[0][:, 1:1023].shape),
    "Pad": lambda c: TensorType("float32", (8, 64, 58, 58)),
    "Expand": lambda c: TensorType("float32", tuple(map(int, c.inputs[1]))),
}
"""Output types, without computing the outputs of such large calls."""


def _reduced(case: Case) -> TensorType:
    x = case.inputs[0]
    assert x is not None
    axes = tuple(map(int, case.inputs[1])) if len(case.inputs) > 1 and case.inputs[1] is not None else None
    shape = np.sum(np.broadcast_to(np.float32(0), x.shape), axis=axes, keepdims=True).shape
    return TensorType("float32", shape)


def signature_of(case: Case) -> OpSignature:
    """Return the signature of a large case."""
    types = tuple(None if a is None else TensorType(dtype_name(a.dtype), a.shape) for a in case.inputs)
    known = tuple(
        make_constant(a) if i in case.constants and a is not None else None for i, a in enumerate(case.inputs)
    )
    first = types[0]
    assert first is not None
    output = OUTPUTS[case.op](case) if case.op in OUTPUTS else first
    attributes = tuple(
        sorted((k, tuple(v) if isinstance(v, list) else v) for k, v in case.attributes.items())
    )
    return OpSignature(f"ai.onnx::{case.op}", 23, attributes, types, (output,), known)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("family", LARGE)
def test_compiles_without_spills(
    compile_device: Callable[[str], Any], arch: str, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = compile_device(arch)
    sources: list[KernelSource] = []

    def compile(self: Any, source: KernelSource) -> Any:
        if source not in sources:
            sources.append(source)
        return _Uncompiled()

    monkeypatch.setattr(type(device), "compile", compile)
    for case in LARGE[family]:
        signature = signature_of(case)
        tactics = [t for name in MODULES[family] for t in _module(name).TACTICS if t.serves(signature.op)]
        accepted = [
            c
            for t in tactics
            for c in t.candidates(signature, device)
            if c.decline(signature, device) is None
        ]
        assert accepted, f"no tactic accepts {case}"
        for candidate in accepted:
            candidate.prepare(signature, device)
    assert sources
    for source in sources:
        cubin, resources = compile_cubin(source, arch, report=True)
        assert cubin
        assert resources is not None
        said = f"{source.name} on {arch}: {resources}"
        assert resources.spill_stores == resources.spill_loads == 0, said
        assert resources.stack == 0, said


class _Uncompiled:
    def launch(self, *args: Any, **options: Any) -> None:
        raise AssertionError("nothing may be launched while it is prepared")


def _module(name: str) -> Any:
    return importlib.import_module(f"tactician.builtin_kernels.cuda.{name}")


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_the_other_kernels_compile_without_spills(
    compile_device: Callable[[str], Any], arch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels without a large case, at the shapes of the tests on the GPU."""
    device = compile_device(arch)
    sources: list[KernelSource] = []
    monkeypatch.setattr(type(device), "compile", lambda self, source: sources.append(source) or _Uncompiled())
    for name, op in (("fill", "Trilu"), ("scan", "CumSum"), ("topk", "TopK"), ("resize", "Resize")):
        for case in (c for c in FAMILIES["movement"] if c.op == op):
            signature = make_signature(
                op, case.inputs, case.attributes, constants=case.constants, outputs=case.outputs
            )
            for tactic in _module(name).TACTICS:
                for candidate in tactic.candidates(signature, device):
                    assert candidate.decline(signature, device) is None
                    candidate.prepare(signature, device)
    assert {s.name for s in sources} >= {"scan", "topk", "resize"}
    for source in dict.fromkeys(sources):
        _, resources = compile_cubin(source, arch, report=True)
        assert resources is not None
        assert resources.spill_stores == resources.spill_loads == resources.stack == 0, (
            f"{source.name}: {resources}"
        )
