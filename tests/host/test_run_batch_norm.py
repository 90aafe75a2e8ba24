"""The BatchNormalization kernel run on the CPU, from the PTX that NVRTC makes."""

from __future__ import annotations

import numpy as np
import pytest
from ptx_device import PtxDevice, run_tactic
from signatures import make_signature
from tactician.builtin_kernels.cuda.batch_norm import TACTICS
from tactician.plugins.reference import reference_for


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (4, 6), (1, 2, 8)])
def test_matches_the_reference(shape):
    rng = np.random.default_rng(2)
    inputs = [
        rng.standard_normal(shape),
        *(rng.standard_normal(shape[1]) for _ in range(3)),
        rng.uniform(0.5, 2, shape[1]),
    ]
    inputs = [x.astype(np.float32) for x in inputs]
    signature = make_signature("BatchNormalization", inputs, {"epsilon": 1e-3})
    device = PtxDevice()
    choices = [t for kind in TACTICS for t in kind.candidates(signature, device)]
    accepted = [t for t in choices if t.decline(signature, device) is None]
    assert accepted
    (wanted,) = reference_for(signature)([x.astype(np.float64) for x in inputs])
    for tactic in accepted:
        (y,) = run_tactic(device, tactic, signature, inputs)
        assert np.linalg.norm(y - wanted) / np.linalg.norm(wanted) < 1e-6, tactic
