"""Products and convolutions with fused epilogues on a GPU: every candidate against the reference."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from epilogue_cases import BY_ELEMENT, CONVS, PRODUCTS, EpilogueCase
from tactician.builtin_kernels.cuda.conv_implicit_gemm import ConvImplicitGemm
from tactician.builtin_kernels.cuda.conv_wgmma import ConvWgmma
from tactician.builtin_kernels.cuda.gemm_wgmma import GemmWgmma

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("case", PRODUCTS, ids=str)
def test_product(check: Callable[..., list[str]], case: EpilogueCase) -> None:
    signature = case.signature(*GemmWgmma.fused_forms)
    assert check(signature, case.inputs(signature))


@pytest.mark.parametrize("case", CONVS + BY_ELEMENT, ids=str)
def test_conv(check: Callable[..., list[str]], case: EpilogueCase) -> None:
    signature = case.signature(*ConvWgmma.fused_forms, *ConvImplicitGemm.fused_forms)
    assert check(signature, case.inputs(signature))
