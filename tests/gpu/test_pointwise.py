"""The pointwise kernels on a GPU: every candidate against the reference, at awkward and at real shapes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from memory_bound_cases import FAMILIES, LARGE, Case, filled
from signatures import make_signature

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore::RuntimeWarning")]

CASES = FAMILIES["pointwise"] + LARGE["pointwise"]


@pytest.mark.parametrize("case", [pytest.param(c, id=f"{i}-{c.op}") for i, c in enumerate(CASES)])
def test_pointwise(check: Callable[..., list[str]], case: Case) -> None:
    case = filled(case)
    signature = make_signature(
        case.op, case.inputs, case.attributes, case.version, constants=case.constants, outputs=case.outputs
    )
    assert check(signature, case.inputs)
