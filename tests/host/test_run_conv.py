"""The convolution kernels run on the CPU, from the PTX that NVRTC makes."""

from __future__ import annotations

import numpy as np
import pytest
from conv_cases import SMALL
from ptx_device import PtxDevice, run_tactic
from signatures import make_signature
from tactician.builtin_kernels.cuda.conv_depthwise import ConvDepthwise
from tactician.builtin_kernels.cuda.conv_direct import ConvDirect
from tactician.builtin_kernels.cuda.conv_implicit_gemm import ConvImplicitGemm
from tactician.builtin_kernels.cuda.conv_implicit_gemm_ffma import ConvImplicitGemmFfma
from tactician.plugins.reference import reference_for


@pytest.mark.parametrize("tactic", [ConvDirect, ConvImplicitGemmFfma, ConvImplicitGemm, ConvDepthwise])
@pytest.mark.parametrize("name", SMALL)
def test_matches_the_reference(name, tactic):
    shape, filters, attributes, bias = SMALL[name]
    rng = np.random.default_rng(5)
    inputs = [rng.standard_normal(s) for s in (shape, filters, *([filters[:1]] if bias else []))]
    inputs = [x.astype(np.float16) for x in inputs]
    signature = make_signature("Conv", inputs, attributes)
    device = PtxDevice()
    choices = [t for t in tactic.candidates(signature, device) if t.decline(signature, device) is None]
    (wanted,) = reference_for(signature)([x.astype(np.float64) for x in inputs])
    for choice in choices[-1:]:
        (y,) = run_tactic(device, choice, signature, inputs)
        assert np.linalg.norm(y.astype(np.float64) - wanted) / np.linalg.norm(wanted) < 2e-3, choice
