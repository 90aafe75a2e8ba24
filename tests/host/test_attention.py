"""Attention compiles without spills for old and new GPUs, and is right when run from its PTX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from attention_cases import SMALL, attention
from memory_bound_cases import Case
from signatures import make_signature
from tactician.signature import OpSignature, TensorType

pytest.importorskip("cuda.bindings.nvrtc", reason="the compiler's package is not installed")

from ptx_device import PtxDevice, run_tactic
from tactician.builtin_kernels.cuda.attention_mma import AttentionMma
from tactician.builtin_kernels.cuda.compiler import KernelSource, compile_cubin
from tactician.plugins.reference import reference_for

TOLERANCE = {"float16": 2e-3, "bfloat16": 1.5e-2}
"""Relative errors of results that are rounded once, and so are the weights before them."""


def call(
    q: tuple[int, ...],
    k: tuple[int, ...],
    *,
    v: tuple[int, ...] | None = None,
    dtype: str = "float16",
    mask: TensorType | None = None,
    extra: tuple[TensorType | None, ...] = (),
    outputs: int = 1,
    **attributes: Any,
) -> OpSignature:
    """Return the signature of an attention in four dimensions."""
    v = v or k
    inputs = (TensorType(dtype, q), TensorType(dtype, k), TensorType(dtype, v), mask, *extra)
    result = TensorType(dtype, (*q[:-1], v[-1]))
    values = tuple(sorted(attributes.items()))
    return OpSignature("ai.onnx::Attention", 24, values, inputs, (result,) * outputs, (None,) * len(inputs))


LONG = (4, 32, 2048, 128)
ENCODER = (8, 12, 384, 64)
SIGNATURES = [
    call(LONG, LONG),
    call(LONG, LONG, is_causal=1, dtype="bfloat16"),
    call(ENCODER, ENCODER, mask=TensorType("bool", (8, 1, 1, 384))),
    call(ENCODER, ENCODER, mask=TensorType("float16", (8, 1, 1, 384))),
    call((2, 16, 1024, 32), (2, 16, 1024, 32)),
    call((2, 16, 1024, 256), (2, 16, 1024, 256), is_causal=1),
    call((1, 32, 1, 128), (1, 8, 4096, 128)),
    call(LONG, LONG, mask=TensorType("float16", (2048, 2048)), softcap=30.0),
]


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("signature", [pytest.param(s, id=f"{i}") for i, s in enumerate(SIGNATURES)])
def test_compiles_without_spills(
    compile_device: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, arch: str, signature: OpSignature
) -> None:
    device = compile_device(arch)
    sources: list[KernelSource] = []
    monkeypatch.setattr(type(device), "compile", lambda self, source: sources.append(source) or _Uncompiled())
    for tactic in AttentionMma.candidates(signature, device):
        assert tactic.decline(signature, device) is None
        tactic.prepare(signature, device)
    assert len(sources) >= 2
    for source in sources:
        _, resources = compile_cubin(source, arch, report=True)
        assert resources is not None
        said = f"{source.name} on {arch}: {resources}\n{source.text[source.text.index('#define') :][:1600]}"
        assert resources.spill_stores == resources.spill_loads == resources.stack == 0, said


class _Uncompiled:
    def launch(self, *args: Any, **options: Any) -> None:
        raise AssertionError("nothing may be launched while it is prepared")


@pytest.fixture(scope="module")
def device() -> PtxDevice:
    return PtxDevice()


@pytest.mark.parametrize("case", [pytest.param(c, id=f"{i}-{c}") for i, c in enumerate(SMALL)])
def test_run(device: PtxDevice, case: Case) -> None:
    signature = make_signature(case.op, case.inputs, case.attributes, case.version)
    tactics = list(AttentionMma.candidates(signature, device))
    assert tactics
    # the first case tries them all, the others the best and the smallest
    _check(device, case, tactics if case is SMALL[0] else dict.fromkeys((tactics[0], tactics[-1])))


@pytest.mark.parametrize("shape", [(1, 1, 150, 64), (1, 1, 150, 128)])
def test_large_tiles_run(device: PtxDevice, shape: tuple[int, ...]) -> None:
    """Tiles that short rows don't get, with a rest on every side."""
    case = attention(shape, shape, is_causal=1)
    tiles = [
        (128, 64, 4, 1),
        (128, 64, 4, 2),
        (128, 128, 8, 1),
        (128, 32, 4, 2),
        (32, 128, 8, 1),
        (64, 64, 4, 2),
    ]
    _check(device, case, [AttentionMma(*tile) for tile in tiles])


def _check(device: PtxDevice, case: Case, tactics: Any) -> None:
    signature = make_signature(case.op, case.inputs, case.attributes, case.version)
    wide = [a if a is None or a.dtype.kind in "bi" else a.astype(np.float64) for a in case.inputs]
    (expected,) = reference_for(signature)(wide)
    for tactic in tactics:
        (output,) = run_tactic(device, tactic, signature, case.inputs)
        assert output is not None
        assert output.shape == expected.shape
        error = np.linalg.norm(output.astype(np.float64) - expected) / (np.linalg.norm(expected) or 1.0)
        assert error <= TOLERANCE[str(output.dtype)], f"{tactic} on {case}: relative error {error:.2e}"


PLAIN = (2, 4, 20, 16)
PAST = TensorType("float16", (2, 4, 5, 16))


@pytest.mark.parametrize(
    ("signature", "reason"),
    [
        (call(PLAIN, PLAIN, dtype="float32"), "element types"),
        (call(PLAIN, PLAIN, extra=(PAST, PAST)), "past keys"),
        (call(PLAIN, PLAIN, outputs=3), "the scores are not computed"),
        (call((2, 4, 20, 12), (2, 4, 20, 12)), "multiples of 8"),
        (call((2, 4, 20, 264), (2, 4, 20, 264)), "up to 256"),
        (call(PLAIN, (2, 3, 20, 16)), "evenly"),
        (call(PLAIN, (2, 4, 20, 24)), "do not fit together"),
        (call(PLAIN, (2, 4, 0, 16)), "no keys"),
        (call(PLAIN, PLAIN, mask=TensorType("int32", (20, 20))), "mask of int32"),
        (call(PLAIN, PLAIN, mask=TensorType("bool", (20, 1))), "mask of shape"),
        (call(PLAIN, PLAIN, mask=TensorType("bool", (3, 20, 20))), "broadcast"),
        (call(PLAIN, PLAIN, mask=TensorType("bool", (2, 1, 1, 20)), is_causal=1), "another way"),
        (call(PLAIN, PLAIN, scale=0.0), "scale"),
        (call(PLAIN, PLAIN, softmax_precision=11), "float64"),
        (call(PLAIN, PLAIN, left_window_size=4), "left_window_size=4"),
        (call(("n", 4, 20, 16), PLAIN), "static"),  # type: ignore[arg-type]  # a symbolic batch
    ],
)
def test_declines(device: PtxDevice, signature: OpSignature, reason: str) -> None:
    assert reason in (AttentionMma().decline(signature, device) or "")  # type: ignore[arg-type]  # has what tactics use of a device


def test_declines_what_does_not_fit(device: PtxDevice) -> None:
    signature = call(LONG, LONG)
    old = PtxDevice()
    old.facts = dict(old.facts) | {"sm": 75, "compute_capability": "7.5"}
    for tactic, where, reason in (
        (AttentionMma(), old, "needs compute capability 8.0"),
        (AttentionMma(128, 256, 4, 2), device, "shared memory"),
        (AttentionMma(40, 64, 4, 1), device, "can't share"),
        (AttentionMma(16, 32, 4, 1), device, "can't share"),
    ):
        assert reason in (tactic.decline(signature, where) or "")  # type: ignore[arg-type]  # as above


def test_tells_both_masks_of_a_causal_call_apart() -> None:
    """Why a causal mask with one that repeats over queries is declined: the reference masks as for query 0."""
    mask = np.ones((1, 1, 1, 20), bool)
    case = attention((1, 1, 20, 16), (1, 1, 20, 16), mask=mask, is_causal=1)
    signature = make_signature(case.op, case.inputs, case.attributes, case.version)
    (result,) = reference_for(signature)(case.inputs)
    value = case.inputs[2]
    assert value is not None
    np.testing.assert_array_equal(result, np.broadcast_to(value[:, :, :1], result.shape))
