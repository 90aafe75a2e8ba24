"""The pooling kernel run on the CPU, from the PTX that NVRTC makes, and compiled for what it supports."""

from __future__ import annotations

import numpy as np
import pytest
from pooling_cases import CASES
from ptx_device import PtxDevice, run_tactic
from signatures import make_signature
from tactician.builtin_kernels.cuda.pooling import TACTICS, PoolWindows
from tactician.plugins.reference import reference_for


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
@pytest.mark.parametrize("name", CASES)
def test_matches_the_reference(name, dtype):
    op, shape, attributes = CASES[name]
    x = np.random.default_rng(3).standard_normal(shape).astype(dtype)
    signature = make_signature(op, [x], attributes)
    device = PtxDevice()
    choices = [t for kind in TACTICS if kind.serves(signature.op) for t in kind.candidates(signature, device)]
    accepted = [t for t in choices if t.decline(signature, device) is None]
    assert accepted
    (wanted,) = reference_for(signature)([x.astype(np.float64)])
    for tactic in accepted:
        (y,) = run_tactic(device, tactic, signature, [x])
        error = np.linalg.norm(y.astype(np.float64) - wanted) / np.linalg.norm(wanted)
        assert error < {np.float32: 1e-6, np.float16: 1e-3, np.float64: 1e-14}[dtype], tactic


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("name", ["resnet stem", "mean counts padding", "global mean"])
def test_compiles(name, arch, compile_device):
    op, shape, attributes = CASES[name]
    x = np.ones(shape, np.float32)
    signature = make_signature(op, [x], attributes)
    device = compile_device(arch)
    for kind in TACTICS:
        if kind.serves(signature.op):
            for tactic in kind.candidates(signature, device):
                tactic.prepare(signature, device)


def test_declines_indices():
    x = np.random.default_rng(0).standard_normal((1, 1, 4, 4)).astype(np.float32)
    signature = make_signature("MaxPool", [x], {"kernel_shape": [2, 2]}, outputs=2)
    assert "indices" in (PoolWindows().decline(signature, PtxDevice()) or "")
