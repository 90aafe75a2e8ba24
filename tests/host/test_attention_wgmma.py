"""Attention by wgmma: the code without spills, and what is declined."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tactician.signature import OpSignature, TensorType

pytest.importorskip("cuda.bindings.nvrtc", reason="the compiler's package is not installed")

from sass import LDL, STL, opcodes
from tactician.builtin_kernels.cuda.attention_problem import AttentionProblem, attention_problem
from tactician.builtin_kernels.cuda.attention_wgmma import AttentionWgmma
from tactician.builtin_kernels.cuda.compiler import compile_cubin

HGMMA, UTMALDG = 0x9F0, 0x5B4
Shape = tuple[int, ...]


def call(
    q: Shape,
    k: Shape,
    v: Shape | None = None,
    dtype: str = "float16",
    mask: TensorType | None = None,
    **attributes: Any,
) -> OpSignature:
    """Return the signature of an attention."""
    v = v or k
    inputs = (TensorType(dtype, q), TensorType(dtype, k), TensorType(dtype, v), mask)
    width = v[-1] if len(q) == 4 else v[-1] // attributes["kv_num_heads"] * attributes["q_num_heads"]
    values = tuple(sorted(attributes.items()))
    return OpSignature(
        "ai.onnx::Attention", 24, values, inputs, (TensorType(dtype, (*q[:-1], width)),), (None,) * 4
    )


def problem_of(signature: OpSignature) -> AttentionProblem:
    problem = attention_problem(signature)
    assert isinstance(problem, AttentionProblem), problem
    return problem


SIGNATURES = [
    call((2, 16, 8192, 128), (2, 16, 8192, 128)),
    call((2, 16, 8192, 128), (2, 16, 8192, 128), is_causal=1, dtype="bfloat16"),
    call((2, 16, 8192, 64), (2, 16, 8192, 64)),
    call((2, 16, 8192, 64), (2, 16, 8192, 64), is_causal=1),
    call((1, 16, 1000, 128), (1, 4, 333, 128), is_causal=1),
    call((1, 16, 333, 64), (1, 4, 1000, 64), dtype="bfloat16"),
    call((1, 4, 300, 80), (1, 4, 1111, 80), (1, 4, 1111, 40)),
    call((1, 4, 300, 192), (1, 4, 1111, 192), (1, 4, 1111, 128)),
    call((1, 4, 1024, 256), (1, 4, 1024, 256), is_causal=1),
    call((2, 500, 2048), (2, 500, 512), is_causal=1, q_num_heads=16, kv_num_heads=4),
    call((1, 8, 1, 64), (1, 2, 300, 64)),
]


@pytest.mark.parametrize("signature", [pytest.param(s, id=str(i)) for i, s in enumerate(SIGNATURES)])
def test_compiles_without_spills(compile_device: Callable[[str], Any], signature: OpSignature) -> None:
    device, problem = compile_device("sm_90a"), problem_of(signature)
    tactics = list(AttentionWgmma.candidates(signature, device))
    assert tactics
    for tactic in tactics:
        assert tactic.decline(signature, device) is None
        source = tactic.source(problem, int(device.facts["l2_bytes"]))
        cubin, resources = compile_cubin(source, "sm_90a", report=True)
        assert resources is not None
        found = opcodes(cubin)
        assert resources.spill_stores == resources.spill_loads == resources.stack == 0, (tactic, resources)
        assert not resources.warnings, (tactic, resources)
        assert found[LDL] == found[STL] == 0
        assert found[HGMMA] > 0, tactic
        assert found[UTMALDG] > 0, tactic


PLAIN = (2, 4, 200, 64)


@pytest.mark.parametrize(
    ("signature", "reason"),
    [
        (call(PLAIN, PLAIN, dtype="float32"), "element types"),
        (call(PLAIN, PLAIN, mask=TensorType("bool", (200, 200))), "not implemented"),
        (call(PLAIN, PLAIN, softcap=3.0), "not implemented"),
        (call((2, 200, 96), (2, 200, 96), q_num_heads=3, kv_num_heads=3), "beside one another"),
        (call((1, 1, 20, 8), (1, 1, 21, 8), (1, 1, 21, 72)), "does not hold the results"),
    ],
)
def test_declines(compile_device: Callable[[str], Any], signature: OpSignature, reason: str) -> None:
    assert reason in (AttentionWgmma().decline(signature, compile_device("sm_90a")) or "")


def test_declines_what_does_not_fit(compile_device: Callable[[str], Any]) -> None:
    signature, device = call((2, 4, 200, 128), (2, 4, 200, 128)), compile_device("sm_90a")
    good = AttentionWgmma()
    assert good.decline(signature, device) is None
    assert "compute capability 9.0" in (good.decline(signature, compile_device("sm_80")) or "")
    for fields, reason in (
        ({"consumers": 4}, "1 to 3 consumers"),
        ({"block_k": 40}, "whole 16 keys"),
        ({"consumers": 1}, "take turns"),
        ({"block_k": 256}, "registers"),
        ({"stages": 4}, "shared memory"),
    ):
        assert reason in (replace(good, **fields).decline(signature, device) or ""), fields  # type: ignore[arg-type]  # of several types
