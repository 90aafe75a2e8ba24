"""MatMul and Gemm become strided matrix products that mean the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gemm_cases import SMALL, gemm
from memory_bound_cases import Case
from signatures import make_signature
from tactician.builtin_kernels.cuda.gemm_problem import GemmProblem, gemm_problem
from tactician.signature import OpSignature, TensorType

Array = np.ndarray[Any, Any]


def matmul_signature(a: tuple[Any, ...], b: tuple[Any, ...], dtype: str = "float32") -> OpSignature:
    """Return a MatMul's signature; its output type says no more than that it is static."""
    types = (TensorType(dtype, a), TensorType(dtype, b))
    return OpSignature("ai.onnx::MatMul", 13, (), types, (TensorType(dtype, (1,)),), (None, None))


def evaluate(problem: GemmProblem, a: Array, b: Array, c: Array | None) -> Array:
    """Do in float64 what a kernel does: address flat memory by the problem's strides alone."""
    flat_a, flat_b = (x.astype(np.float64).reshape(-1) for x in (a, b))
    result = np.zeros((problem.batch, problem.m, problem.n))
    size_a, size_b = problem.m * problem.k, problem.k * problem.n
    for i in range(problem.batch):
        left = flat_a[i * problem.stride_a :][:size_a].reshape(-1, problem.row_a)
        right = flat_b[i * problem.stride_b :][:size_b].reshape(-1, problem.row_b)
        left, right = left.T if problem.trans_a else left, right.T if problem.trans_b else right
        result[i] = problem.alpha * (left @ right)
    if c is not None:
        row, column = np.indices((problem.m, problem.n))
        index = {"scalar": 0 * row, "row": column, "column": row, "full": row * problem.n + column}[
            problem.bias
        ]
        result += problem.beta * c.astype(np.float64).reshape(-1)[index]
    return result.reshape(-1)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(c, id=f"{i}-{c}")
        for i, c in enumerate(SMALL)
        if c.inputs[0] is not None and c.inputs[0].size
    ],
)
def test_means_the_same(case: Case) -> None:
    problem = gemm_problem(make_signature(case.op, case.inputs, case.attributes))
    assert isinstance(problem, GemmProblem), problem
    a, b, c = (*case.inputs, None)[:3]
    assert a is not None
    assert b is not None
    if case.op == "MatMul":
        expected = np.matmul(a.astype(np.float64), b.astype(np.float64))
    else:
        left = a.astype(np.float64).T if case.attributes["transA"] else a.astype(np.float64)
        right = b.astype(np.float64).T if case.attributes["transB"] else b.astype(np.float64)
        expected = case.attributes.get("alpha", 1.0) * (left @ right)
        expected = expected + (0 if c is None else case.attributes.get("beta", 1.0) * c.astype(np.float64))
    # alpha and beta are float32 in ONNX
    np.testing.assert_allclose(evaluate(problem, a, b, c), expected.reshape(-1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("a", "b", "wanted"),
    [
        ((8, 3, 5, 7), (7, 9), GemmProblem(120, 9, 7)),
        ((8, 3, 5, 7), (1, 1, 7, 9), GemmProblem(120, 9, 7)),
        ((5, 7), (8, 7, 9), GemmProblem(5, 9, 7, 8, 0, 63)),
        ((8, 3, 5, 7), (8, 3, 7, 9), GemmProblem(5, 9, 7, 24, 35, 63)),
        ((1, 3, 5, 7), (3, 7, 9), GemmProblem(5, 9, 7, 3, 35, 63)),
        ((7,), (7,), GemmProblem(1, 1, 7)),
        ((7,), (2, 7, 9), GemmProblem(1, 9, 7, 2, 0, 63)),
    ],
)
def test_matmul(a: tuple[int, ...], b: tuple[int, ...], wanted: GemmProblem) -> None:
    assert gemm_problem(matmul_signature(a, b)) == wanted


@pytest.mark.parametrize(
    ("signature", "words"),
    [
        (matmul_signature((2, 3, 5, 7), (3, 7, 9)), "broadcast in part"),
        (matmul_signature((2, 5, 7), (3, 7, 9)), "don't broadcast"),
        (matmul_signature((5, 7), (8, 9)), "can't be multiplied"),
        (matmul_signature((), (8, 9)), "can't be multiplied"),
        (matmul_signature(("N", 7), (7, 9)), "static"),
        (matmul_signature((5, 7), (7, 9), "int32"), "int32"),
        (matmul_signature((2**31, 1), (1, 1)), "31 bits"),
    ],
)
def test_reasons(signature: OpSignature, words: str) -> None:
    reason = gemm_problem(signature)
    assert isinstance(reason, str)
    assert words in reason


def test_gemm_that_cannot_be_baked_in() -> None:
    case = gemm(3, 4, 5, c=(3, 4))
    old = make_signature("Gemm", case.inputs, {}, 6)
    assert gemm_problem(old) == "before opset 7 C broadcasts in another way"
    signature = make_signature("Gemm", case.inputs, {"alpha": 2.0})
    infinite = OpSignature(
        signature.op,
        signature.version,
        (("alpha", float("inf")),),
        signature.inputs,
        signature.outputs,
        (None,) * 3,
    )
    assert "not finite" in str(gemm_problem(infinite))


def test_scale_reaches_the_kernel_bit_by_bit() -> None:
    macros = GemmProblem(1, 1, 1, alpha=float(np.float32(0.1))).macros()
    assert float.fromhex(str(macros["ALPHA"])) == float(np.float32(0.1))
