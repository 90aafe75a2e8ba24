"""Convolution, pooling and normalisation kernels compile without spills, and are right when run from their PTX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from convolution_cases import CONVOLUTIONS, NORMALIZATION, POOLING, layer
from memory_bound_cases import Case, normal
from sass import HMMA, LDL, STL, opcodes
from signatures import make_signature
from tactician.signature import OpSignature, TensorType

pytest.importorskip("cuda.bindings.nvrtc", reason="the compiler's package is not installed")

from ptx_device import PtxDevice, run_tactic
from tactician.builtin_kernels.cuda.batch_norm import BatchNorm
from tactician.builtin_kernels.cuda.compiler import KernelSource, compile_cubin
from tactician.builtin_kernels.cuda.conv_depthwise import ConvDepthwise
from tactician.builtin_kernels.cuda.conv_direct import ConvDirect
from tactician.builtin_kernels.cuda.conv_implicit_gemm import ConvImplicitGemm
from tactician.builtin_kernels.cuda.conv_implicit_gemm_ffma import ConvImplicitGemmFfma
from tactician.builtin_kernels.cuda.pooling import PoolPlanes, PoolWindows
from tactician.plugins.reference import reference_for
from tactician.tactics.tactic import Tactic

Classes = Sequence[type[Tactic]]

CONV: Classes = (ConvDirect, ConvImplicitGemm, ConvImplicitGemmFfma, ConvDepthwise)
OTHERS: Classes = (PoolWindows, PoolPlanes, BatchNorm)

TOLERANCE = {"float16": 2e-3, "bfloat16": 1e-2, "float32": 3e-6, "float64": 1e-12}
TF32_TOLERANCE = 2e-3
"""Relative errors of results that are rounded once, and of float32 products of rounded operands."""

UNSEEN = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # means of nothing and of NaN, in the reference

LAYERS = {
    "sm_80": [
        layer(1, 3, 224, 64, 7, 2, dtype=np.float16),
        layer(8, 64, 56, 64, 3),
        layer(8, 96, 56, 96, 3, 1, 96, dtype=np.float16),
        layer(1, 256, 14, 1024, 1),
    ],
    "sm_90a": [
        layer(1, 3, 224, 64, 7, 2),
        layer(8, 64, 56, 64, 3, dtype=np.float16),
        layer(1, 512, 7, 512, 3, dtype=np.float16),
        layer(8, 96, 56, 96, 3, 2, 96),
    ],
}
"""Layers of real networks; shapes alone count here."""


def signature_of(case: Case) -> OpSignature:
    return make_signature(case.op, case.inputs, case.attributes)


def shape_of(case: Case) -> OpSignature:
    """Return the signature of a square layer without computing its reference."""
    x, w, b = (TensorType(a.dtype.name, a.shape) for a in case.inputs if a is not None)
    stride = case.attributes["strides"][0]
    side = (x.dims[2] - 1) // stride + 1
    y = TensorType(x.dtype, (x.dims[0], w.dims[0], side, side))
    values = tuple(sorted((k, tuple(v) if isinstance(v, list) else v) for k, v in case.attributes.items()))
    return OpSignature("ai.onnx::Conv", 22, values, (x, w, b), (y,), (None, None, None))


def sources_of(
    device: Any, classes: Classes, signature: OpSignature, monkeypatch: pytest.MonkeyPatch
) -> dict[KernelSource, Tactic]:
    """Return what the candidates would compile, each source once."""
    found: dict[KernelSource, Tactic] = {}
    for tactic in (t for cls in classes for t in cls.candidates(signature, device)):
        if tactic.decline(signature, device) is None:
            with monkeypatch.context() as patch:
                patch.setattr(
                    type(device),
                    "compile",
                    lambda self, s, t=tactic: found.setdefault(s, t) and _Uncompiled(),
                )
                tactic.prepare(signature, device)
    return found


class _Uncompiled:
    def launch(self, *args: Any, **options: Any) -> None:
        raise AssertionError("nothing may be launched while it is prepared")


@pytest.mark.parametrize(
    ("arch", "case"), [pytest.param(a, c, id=f"{a}-{c}") for a, group in LAYERS.items() for c in group]
)
def test_compiles_without_spills(
    compile_device: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, arch: str, case: Case
) -> None:
    signature = shape_of(case)
    sources = sources_of(compile_device(arch), CONV, signature, monkeypatch)
    assert {s.name for s in sources} >= {
        "conv_direct",
        "conv_implicit_gemm",
        "conv_implicit_gemm_ffma",
    }
    for source, tactic in sources.items():
        cubin, resources = compile_cubin(source, arch, report=True)
        assert resources is not None
        assert resources.spill_stores == resources.spill_loads == resources.stack == 0, (tactic, resources)
        counts = opcodes(cubin)
        assert counts[LDL] == counts[STL] == 0, tactic
        assert (counts[HMMA] > 0) == (source.name == "conv_implicit_gemm"), tactic


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_others_compile_without_spills(
    compile_device: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, arch: str
) -> None:
    device = compile_device(arch)
    pool = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
    x, row = normal(1, 16, 56, 56, dtype=np.float16), normal(16)
    cases = [Case(op, [x], pool) for op in ("MaxPool", "AveragePool")]
    cases += [Case("GlobalAveragePool", [x]), Case("BatchNormalization", [x, row, row, row, np.abs(row)])]
    for signature in map(signature_of, cases):
        classes = [cls for cls in OTHERS if cls.serves(signature.op)]
        for source, tactic in sources_of(device, classes, signature, monkeypatch).items():
            _, resources = compile_cubin(source, arch, report=True)
            assert resources is not None
            assert resources.spill_stores == resources.spill_loads == resources.stack == 0, (
                tactic,
                resources,
            )


@pytest.fixture(scope="module")
def device() -> PtxDevice:
    return PtxDevice()


def check(device: PtxDevice, tactic: Tactic, signature: OpSignature, case: Case, expected: Any) -> None:
    (output,) = run_tactic(device, tactic, signature, case.inputs)
    assert output is not None
    assert output.shape == expected.shape
    assert (np.isnan(output.astype(np.float64)) == np.isnan(expected)).all(), tactic
    first = case.inputs[0]
    assert first is not None
    tolerance = TF32_TOLERANCE if tactic.numerics(signature) else TOLERANCE[first.dtype.name]
    difference = np.nan_to_num(output.astype(np.float64) - expected)
    error = np.linalg.norm(difference) / (np.linalg.norm(np.nan_to_num(expected)) or 1.0)
    assert error <= tolerance, f"{tactic} on {case}: relative error {error:.2e}"


def accepted(device: Any, classes: Classes, signature: OpSignature) -> list[Tactic]:
    candidates = (t for cls in classes if cls.serves(signature.op) for t in cls.candidates(signature, device))
    return [t for t in candidates if t.decline(signature, device) is None]


def reference(case: Case, signature: OpSignature) -> Any:
    (expected,) = reference_for(signature)([None if a is None else a.astype(np.float64) for a in case.inputs])
    return expected


@UNSEEN
@pytest.mark.parametrize("case", [pytest.param(c, id=f"{i}-{c}") for i, c in enumerate(CONVOLUTIONS)])
def test_convolutions_run(device: PtxDevice, case: Case) -> None:
    signature = signature_of(case)
    expected = reference(case, signature)
    tactics = accepted(device, CONV, signature)
    assert any(isinstance(t, ConvDirect) for t in tactics)
    for cls in CONV:
        # the last guess, for which the others make way on large problems, and one that is split
        own = [t for t in tactics if isinstance(t, cls)]
        split = [t for t in own if getattr(t, "split_k", 1) > 1]
        for tactic in dict.fromkeys([*own[-1:], *split[:1]]):
            check(device, tactic, signature, case, expected)


@UNSEEN
@pytest.mark.parametrize(
    "case", [pytest.param(c, id=f"{i}-{c}") for i, c in enumerate(POOLING + NORMALIZATION)]
)
def test_others_run(device: PtxDevice, case: Case) -> None:
    signature = signature_of(case)
    expected = reference(case, signature)
    tactics = accepted(device, OTHERS, signature)
    assert tactics
    for tactic in tactics:
        check(device, tactic, signature, case, expected)


LARGE_TILES: list[tuple[Tactic, type[np.floating[Any]]]] = [
    *(
        (ConvImplicitGemm(128, 128, 32, 2, 4, 3, order, split), np.float16)
        for order in (True, False)
        for split in (1, 2)
    ),
    (ConvImplicitGemm(64, 128, 32, 2, 4, 3, True), np.float16),
    (ConvImplicitGemm(64, 64, 64, 2, 2, 3, True), np.float16),
    (ConvImplicitGemm(128, 64, 16, 4, 2, 3, True, 3), np.float32),
    (ConvImplicitGemm(32, 128, 16, 1, 4, 4, False), np.float32),
    (ConvImplicitGemmFfma(128, 128, 8, 8, 8, 2), np.float32),
    (ConvImplicitGemmFfma(128, 64, 16, 8, 4), np.float32),
    (ConvImplicitGemmFfma(64, 128, 16, 4, 8), np.float16),
]
"""Tiles that small convolutions don't get."""


@pytest.mark.parametrize(("tactic", "dtype"), LARGE_TILES, ids=[str(t) for t, _ in LARGE_TILES])
def test_large_tiles_run(device: PtxDevice, tactic: Tactic, dtype: Any) -> None:
    case = layer(2, 40, 9, 136, 3, dtype=dtype)
    signature = signature_of(case)
    check(device, tactic, signature, case, reference(case, signature))
