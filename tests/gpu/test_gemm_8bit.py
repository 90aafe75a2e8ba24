"""Products of 8-bit operands on a GPU: every candidate against the reference, at awkward and at real shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from quantised_cases import E4M3, LARGE, SMALL, Quantised
from tactician.plugins.reference import reference_for
from tactician.tactics.admission import admit
from tactician.tactics.registry import Registry
from tactician.tactics.sampling import sample_inputs

pytestmark = pytest.mark.gpu

FP8_ERROR = {False: 3e-3, True: 2e-2}
"""Relative errors of fp8 products whose sums are promoted, and of those that tensor cores add up alone: what a fused call
with fp8 operands may be off by is far more, since each of its operators might round to fp8."""


@pytest.mark.parametrize("case", [pytest.param(c, id=f"{i}-{c}") for i, c in enumerate(SMALL + LARGE)])
def test_gemm(check: Callable[..., list[str]], case: Quantised) -> None:
    signature = case.signature()
    assert check(signature, sample_inputs(signature, np.random.default_rng(case.k)))


@pytest.mark.parametrize(
    "case",
    [
        Quantised(512, 512, k, (*E4M3[:2], "float"), columns=columns)
        for k, columns in ((128, True), (4096, False))
    ],
    ids=str,
)
def test_sums_of_fp8(device: Any, registry: Registry, case: Quantised) -> None:
    signature = case.signature()
    inputs = sample_inputs(signature, np.random.default_rng(1))
    reference = reference_for(signature)(inputs)
    accepted, _ = registry.candidates(signature, device)
    assert accepted
    for candidate in accepted:
        verdict = admit(candidate, signature, device, lambda _: lambda _: reference, [inputs])
        assert verdict.ok, verdict.reason
        is_reduced = "reduced-accumulator" in candidate.tactic.numerics(signature)
        assert verdict.error is not None
        assert verdict.error <= FP8_ERROR[is_reduced], candidate.id
