"""Epilogues: what they read, what the kernels that have them make of it, and code without spills."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from epilogue_cases import BY_ELEMENT, CONVS, OPS, PRODUCTS, EpilogueCase

pytest.importorskip("cuda.bindings.nvrtc", reason="the compiler's package is not installed")

from ptx_device import PtxDevice, run_tactic
from tactician.builtin_kernels.cuda.compiler import KernelSource, compile_cubin, read_source
from tactician.builtin_kernels.cuda.conv_depthwise import ConvDepthwise
from tactician.builtin_kernels.cuda.conv_depthwise_nhwc import ConvDepthwiseNhwc
from tactician.builtin_kernels.cuda.conv_implicit_gemm import ConvImplicitGemm
from tactician.builtin_kernels.cuda.conv_implicit_gemm_ffma import ConvImplicitGemmFfma
from tactician.builtin_kernels.cuda.conv_wgmma import ConvWgmma, fused_nhwc_problem
from tactician.builtin_kernels.cuda.epilogue import fused_call
from tactician.builtin_kernels.cuda.epilogue_source import Epilogue
from tactician.builtin_kernels.cuda.gemm_problem import fused_gemm_problem
from tactician.builtin_kernels.cuda.gemm_wgmma import GemmWgmma
from tactician.plugins.reference import reference_for
from tactician.signature import OpSignature

CASES = [*((c, GemmWgmma) for c in PRODUCTS), *((c, ConvWgmma) for c in CONVS)]

KERNEL = """
extern "C" __global__ void apply(const {T}* __restrict__ sums, {T}* __restrict__ y EPILOGUE_PARAMETERS) {{
    const Epilogue epilogue{{EPILOGUE_ARGUMENTS}};
    const u32 first = (blockIdx.x * 64 + threadIdx.x) * 4, row = first / {N}u, column = first % {N}u;
    if (first >= {COUNT}u) return;
    Operands<4> operands;
    epilogue.fetch(operands, row, column);
    for (u32 e = 0; e < 4; e++) {{
        float vectors[Epilogue::VECTORS + 1];
        for (int v = 0; v < (int)Epilogue::VECTORS; v++) vectors[v] = epilogue.vector(v, row / {ROWS}u, column + e);
        y[first + e] = Convert<{T}>::from(epilogue.finish(to_float(sums[first + e]), operands, e, vectors));
    }}
}}
"""


def problem_of(signature: OpSignature) -> Any:
    problem = fused_nhwc_problem(signature) if "Conv" in signature.op else fused_gemm_problem(signature)
    assert not isinstance(problem, str), problem
    return problem


def kernel(epilogue: Epilogue, dtype: str, count: int, columns: int) -> KernelSource:
    """Return a kernel that does the epilogue alone, four results a thread."""
    kind = {"float16": "f16", "bfloat16": "bf16"}[dtype]
    text = KERNEL.format(T=kind, N=columns, COUNT=count, ROWS=epilogue.rows)
    return KernelSource(
        "\n".join([read_source("common.cuh", *epilogue.headers), epilogue.text(), text]), "apply"
    )


@pytest.mark.parametrize(("case", "tactic"), CASES, ids=[str(case) for case, _ in CASES])
def test_what_it_makes_of_sums(case: EpilogueCase, tactic: Any) -> None:
    signature = case.signature(*tactic.fused_forms)
    problem = problem_of(signature)
    inputs, anchor = case.inputs(signature), signature.parts[0]
    operands = [None if i is None else inputs[i] for i in anchor.inputs]
    (sums,) = reference_for(anchor.signature, OPS)(operands)
    (wanted,) = reference_for(signature, OPS)(inputs)
    device = PtxDevice()
    y = device.empty(sums.shape, sums.dtype)
    read = [device.upload(np.asarray(inputs[i])) for i in problem.call.reads]
    source = kernel(problem.epilogue, problem.dtype, sums.size, sums.shape[-1])
    device.compile(source).launch(None, -(-sums.size // 256), 64, device.upload(sums), y, *read)
    got = device.download(y).astype(float)
    size = np.linalg.norm(wanted.astype(float))
    assert np.linalg.norm(got - wanted.astype(float)) <= 1e-2 * size


@pytest.mark.parametrize(("case", "tactic"), CASES, ids=[str(case) for case, _ in CASES])
def test_kernels_compile_without_spills(
    compile_device: Callable[[str], Any], case: EpilogueCase, tactic: Any
) -> None:
    signature, device = case.signature(*tactic.fused_forms), compile_device("sm_90a")
    candidates = list(tactic.candidates(signature, device))
    assert candidates
    for candidate in {candidates[0], candidates[-1]}:
        assert candidate.decline(signature, device) is None
        _, resources = compile_cubin(candidate.source(problem_of(signature)), "sm_90a", report=True)
        assert resources is not None
        assert (resources.spill_stores, resources.stack, resources.warnings) == (0, 0, ())


@pytest.mark.parametrize("case", BY_ELEMENT, ids=str)
def test_kernels_that_go_by_elements(case: EpilogueCase) -> None:
    ran = 0
    for tactic in (ConvDepthwise, ConvDepthwiseNhwc, ConvImplicitGemm, ConvImplicitGemmFfma):
        device = PtxDevice()
        try:
            signature = case.signature(*tactic.fused_forms)
        except ValueError:  # no node of this case is its anchor
            continue
        inputs = case.inputs(signature)
        (wanted,) = reference_for(signature, OPS)([np.asarray(x).astype(np.float64) for x in inputs])
        choices = [c for c in tactic.candidates(signature, device) if c.decline(signature, device) is None]
        for choice in {*choices[:1], *choices[-1:], *(c for c in choices if getattr(c, "split_k", 1) > 1)}:
            (y,) = run_tactic(device, choice, signature, inputs)
            assert np.linalg.norm(y.astype(np.float64) - wanted) <= 2e-3 * np.linalg.norm(wanted), choice
            ran += 1
    assert ran >= 2


def test_a_vector_of_columns_is_told_from_other_operands() -> None:
    vectors = {c.name: problem_of(c.signature(*t.fused_forms)).epilogue.vectors for c, t in CASES}
    assert vectors["bias"] == vectors["a bias for each matrix"] == vectors["float32 vectors"] == 1
    # all images are one matrix where the weights are the same: a row is not read alike in all of it
    assert vectors["a bias for each image"] == vectors["a scale for each image's channel"] == 0
    assert vectors["residual and relu"] == vectors["a scalar"] == 0


def test_results_of_another_type_are_declined() -> None:
    text = (
        "(float16[64, 64] x, float16[64, 64] w) => (float[64, 64] y) { a = MatMul(x, w) y = Cast<to = 1>(a) }"
    )
    signature = EpilogueCase("declined", text).signature(*GemmWgmma.fused_forms)
    assert "the output is float32, the sums are of float16" in str(fused_call(signature))
