"""Products of few rows: right when run from their PTX, in clusters too, and compiled without spills."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gemm_cases import BF16, HALF, SINGLE, SMALL, gemm, matmul
from memory_bound_cases import Case
from signatures import make_signature
from tactician.signature import OpSignature, TensorType

pytest.importorskip("cuda.bindings.nvrtc", reason="the compiler's package is not installed")

from ptx_device import PtxDevice, run_tactic
from tactician.builtin_kernels.cuda.compiler import compile_cubin
from tactician.builtin_kernels.cuda.gemm_problem import GemmProblem, gemm_problem
from tactician.builtin_kernels.cuda.gemm_small_m import MOST_ROWS, GemmSmallM
from tactician.plugins.reference import reference_for

TOLERANCE = {"float16": 2e-3, "bfloat16": 1e-2, "float32": 2e-6}
"""Relative errors of results that are rounded once."""

MIXED = [
    *(
        gemm(m, 40, 72, 0, y, (40,), t)
        for m in (1, 2, 4, 5, 8, 16)
        for y in (0, 1)
        for t in (SINGLE, HALF, BF16)
    ),
    *(gemm(3, 37, 45, x, y, (3, 37), t) for x in (0, 1) for y in (0, 1) for t in (SINGLE, HALF)),
    *(gemm(9, 38, 46, 1, y, dtype=HALF) for y in (0, 1)),
    *(gemm(5, 44, 52, 0, y, dtype=HALF) for y in (0, 1)),
    *(
        gemm(6, 24, 64, 0, 1, c, HALF, alpha=0.3, beta=-1.7)
        for c in ((), (1,), (24,), (1, 24), (6, 1), (6, 24))
    ),
    gemm(4, 24, 0, 0, 1, (24,), HALF),
    gemm(12, 24, 0, c=(12, 1), dtype=BF16),
    matmul((3, 5, 40), (3, 40, 24), HALF),
    matmul((2, 1, 33), (2, 33, 17)),
]
"""Each count of rows, type and layout; rows of b that are 16, 8, 4 and 2 bytes aligned; each bias; batches; no k."""

DEEP = [
    *(gemm(m, 72, 1100, 0, y, (72,), t) for m in (1, 4, 16) for y in (0, 1) for t in (SINGLE, HALF)),
    gemm(2, 70, 1099, 1, 1, (2, 1), HALF),
    gemm(16, 71, 1030, 1, 0, dtype=BF16),
    matmul((2, 7, 1032), (2, 1032, 64), HALF),
]
"""Enough of k that warps, stages and the blocks of a cluster all have some, and some have less than others."""


def few_rows(case: Case) -> bool:
    """Return whether ``case`` is for these tactics."""
    problem = gemm_problem(make_signature(case.op, case.inputs, case.attributes))
    return isinstance(problem, GemmProblem) and problem.m <= MOST_ROWS and problem.dtype != "float64"


def check(device: PtxDevice, case: Case, tactics: list[GemmSmallM] | None = None) -> None:
    """Run ``tactics``, or those that are accepted of all candidates, and compare with the reference."""
    signature = make_signature(case.op, case.inputs, case.attributes)
    wide = [None if a is None else a.astype(np.float64) for a in case.inputs]
    (expected,) = reference_for(signature)(wide)
    if tactics is None:
        candidates = GemmSmallM.candidates(signature, device)  # type: ignore[arg-type]  # has what tactics use of a device
        tactics = [t for t in candidates if t.decline(signature, device) is None]  # type: ignore[arg-type]  # as above
    assert tactics
    tolerance = TOLERANCE[case.inputs[0].dtype.name]  # type: ignore[union-attr]  # operands are there
    for tactic in tactics:
        (output,) = run_tactic(device, tactic, signature, case.inputs)
        assert output is not None
        assert output.shape == expected.shape
        error = np.linalg.norm(output.astype(np.float64) - expected) / (np.linalg.norm(expected) or 1.0)
        assert error <= tolerance, f"{tactic} on {case}: relative error {error:.2e}"


OWN = [*filter(few_rows, SMALL), *MIXED]


@pytest.mark.parametrize("case", [pytest.param(c, id=f"{i}-{c}") for i, c in enumerate(OWN)])
def test_run(case: Case) -> None:
    check(PtxDevice(80), case)


LAYOUTS = {
    # tensor cores, and lanes along k
    (0, True): [(True, 4, 8), (False, 4, 8), (False, 8, 8)],
    (1, True): [(True, 4, 2), (True, 4, 4), (False, 32, 4)],
    (0, False): [(False, 4, 4), (False, 8, 4)],
    (1, False): [(False, 32, 2), (False, 32, 4)],
}
"""``matrix``, ``lanes_k`` and ``lane_columns`` for (b transposed, halves)."""

SHARES = [(1, 2, 2, 1), (2, 1, 1, 2), (1, 4, 4, 1), (2, 2, 1, 3), (4, 2, 2, 2), (1, 1, 2, 8)]
"""``warps_n``, ``warps_k``, ``stages`` and ``split_k``: of each at least two values."""


@pytest.mark.parametrize("case", [pytest.param(c, id=f"{i}-{c}") for i, c in enumerate(DEEP)])
def test_run_with_shared_k(case: Case) -> None:
    device = PtxDevice(90)
    signature = make_signature(case.op, case.inputs, case.attributes)
    problem = gemm_problem(signature)
    assert isinstance(problem, GemmProblem)
    layouts = LAYOUTS[int(problem.trans_b), problem.dtype != "float32"]
    tactics = [GemmSmallM(*lanes, *share) for lanes in layouts for share in SHARES]
    accepted = [t for t in tactics if t.decline(signature, device) is None]  # type: ignore[arg-type]  # has what tactics use of a device
    assert any(t.split_k > 1 for t in accepted)
    check(device, case, accepted)


def product(dtype: str, m: int, n: int, k: int, trans_b: int) -> OpSignature:
    """Return the signature of a Gemm with a row of biases."""
    a, b = TensorType(dtype, (m, k)), TensorType(dtype, (n, k) if trans_b else (k, n))
    types = (a, b, TensorType(dtype, (n,)))
    return OpSignature(
        "ai.onnx::Gemm", 13, (("transB", trans_b),), types, (TensorType(dtype, (m, n)),), (None,) * 3
    )


REAL = [
    *(product("float16", m, 4096, 4096, y) for m in (1, 4, 16) for y in (0, 1)),
    *(product("bfloat16", m, 11008, 4096, y) for m in (1, 16) for y in (0, 1)),
    *(product("float16", m, 4096, 11008, y) for m in (1, 16) for y in (0, 1)),
    *(product("float32", m, 4096, 4096, y) for m in (1, 16) for y in (0, 1)),
    *(product("float16", 4, 4095, 4095, y) for y in (0, 1)),
]
"""Weights of transformers, and ones whose rows are aligned to 2 bytes."""


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("signature", [pytest.param(s, id=str(s)) for s in REAL])
def test_compiles_without_spills(
    compile_device: Callable[[str], Any], arch: str, signature: OpSignature
) -> None:
    device, problem = compile_device(arch), gemm_problem(signature)
    assert isinstance(problem, GemmProblem)
    candidates = list(GemmSmallM.candidates(signature, device))
    assert 1 <= len(candidates) <= 14
    for tactic in candidates:
        assert tactic.decline(signature, device) is None
        _, resources = compile_cubin(tactic._source(problem), arch, report=True)
        assert resources is not None
        spilt = resources.spill_stores + resources.spill_loads + resources.stack
        assert spilt == 0, f"{tactic}: {resources}"


def test_declines(compile_device: Callable[[str], Any]) -> None:
    old, new = compile_device("sm_80"), compile_device("sm_90a")
    few = product("float16", 4, 512, 512, 1)
    assert GemmSmallM().decline(few, new) is None
    assert "has 17 rows; is for 16" in str(GemmSmallM().decline(product("float16", 17, 8, 8, 0), new))
    assert "multiplies no float64" in str(GemmSmallM().decline(product("float64", 1, 8, 8, 0), new))
    assert "tf32" in str(GemmSmallM().decline(product("float32", 1, 8, 8, 1), new))
    assert "clusters from 9.0" in str(GemmSmallM(split_k=2).decline(few, old))
    assert "can't be split" in str(GemmSmallM(split_k=8, warps_k=4).decline(few, new))
    assert "has 8 columns" in str(GemmSmallM().decline(product("float16", 4, 512, 512, 0), new))
    assert "registers" in str(GemmSmallM(stages=8).decline(few, new))
