"""Depthwise convolutions with the channels innermost: run on the CPU from their PTX, compiled, and what is declined."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conv_nhwc_cases import DEPTHWISE, MOBILENET, ConvCase, conv, depthwise
from signatures import make_signature
from tactician import BuilderConfig
from tactician.builtin_kernels.nhwc import CONV
from tactician.plugins.manager import load_plugins
from tactician.plugins.reference import reference_for
from tactician.signature import OpSignature

pytest.importorskip("cuda.bindings.nvrtc", reason="the compiler's package is not installed")

from ptx_device import PtxDevice, run_tactic
from sass import LDL, STL, opcodes
from tactician.builtin_kernels.cuda.compiler import compile_cubin
from tactician.builtin_kernels.cuda.conv_depthwise_nhwc import ConvDepthwiseNhwc

TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "float16": 2e-3, "bfloat16": 1e-2}


@pytest.fixture(scope="module", autouse=True)
def _operators() -> None:
    load_plugins(BuilderConfig(plugins=("builtin",)))


def call(case: ConvCase) -> OpSignature:
    return make_signature(CONV, case.inputs(), case.attributes, version=1)


@pytest.mark.parametrize("case", [pytest.param(c, id=str(c)) for c in DEPTHWISE])
def test_matches_the_reference(case: ConvCase) -> None:
    inputs, signature, device = case.inputs(), call(case), PtxDevice()
    tactics = list(ConvDepthwiseNhwc.candidates(signature, device))
    assert tactics
    (wanted,) = reference_for(signature)([a.astype(np.float64) for a in inputs])
    for tactic in {tactics[0], tactics[-1]}:
        assert tactic.decline(signature, device) is None
        (y,) = run_tactic(device, tactic, signature, inputs)
        error = np.linalg.norm(y.astype(np.float64) - wanted)
        assert error <= TOLERANCE[np.dtype(case.dtype).name] * np.linalg.norm(wanted), tactic


@pytest.mark.parametrize("case", [pytest.param(c, id=str(c)) for c in MOBILENET])
def test_compiles_without_spills(
    compile_device: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, case: ConvCase
) -> None:
    device, signature = compile_device("sm_90a"), call(case)
    sources: list[Any] = []
    for tactic in ConvDepthwiseNhwc.search_space(signature, device):
        monkeypatch.setattr(device, "compile", sources.append)
        tactic.prepare(signature, device)
        cubin, resources = compile_cubin(sources[-1], "sm_90a", report=True)
        assert resources is not None
        assert resources.spill_stores == resources.spill_loads == resources.stack == 0, (tactic, resources)
        assert not resources.warnings
        found = opcodes(cubin)
        assert found[LDL] == found[STL] == 0


@pytest.mark.parametrize(
    ("tactic", "case", "words"),
    [
        (ConvDepthwiseNhwc(), conv(1, 8, 8, 16, 16, 3, 3), "16 channels and 16 filters"),
        (ConvDepthwiseNhwc(8), depthwise(1, 8, 8, 12, 3, 3), "no whole vectors of 8"),
        (ConvDepthwiseNhwc(16), depthwise(1, 8, 8, 16, 3, 3), "more than 16 bytes"),
        (ConvDepthwiseNhwc(8, 4, 8), depthwise(1, 30, 30, 16, 5, 5), "too large for a thread"),
    ],
)
def test_declines(
    compile_device: Callable[[str], Any], tactic: ConvDepthwiseNhwc, case: ConvCase, words: str
) -> None:
    assert words in str(tactic.decline(call(case), compile_device("sm_90a")))
