"""Convolutions of channels-last tensors on a GPU: every candidate against the reference."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from conv_nhwc_cases import DEPTHWISE, LARGE, MOBILENET, SMALL, ConvCase
from signatures import make_signature
from tactician.builtin_kernels.nhwc import CONV

pytestmark = pytest.mark.gpu


CASES = SMALL + LARGE + DEPTHWISE + MOBILENET


@pytest.mark.parametrize("case", [pytest.param(c, id=f"{i}-{c}") for i, c in enumerate(CASES)])
def test_conv(check: Callable[..., list[str]], case: ConvCase) -> None:
    inputs = case.inputs()
    assert check(make_signature(CONV, inputs, case.attributes, version=1), inputs)
