"""Attention on a GPU: every candidate against the reference, at awkward and at real shapes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from attention_cases import LARGE, SMALL
from memory_bound_cases import Case, filled
from signatures import make_signature

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("case", [pytest.param(c, id=f"{i}-{c}") for i, c in enumerate(SMALL + LARGE)])
def test_attention(check: Callable[..., list[str]], case: Case) -> None:
    case = filled(case)
    signature = make_signature(case.op, case.inputs, case.attributes, case.version)
    assert check(signature, case.inputs)
