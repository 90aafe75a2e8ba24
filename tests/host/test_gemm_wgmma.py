"""Products by wgmma: the code without spills, the order of the tiles, the search space, and what is declined."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tactician.signature import OpSignature, TensorType

pytest.importorskip("cuda.bindings.nvrtc", reason="the compiler's package is not installed")

from ptx_device import PtxDevice
from sass import LDL, STL, opcodes
from tactician.builtin_kernels.cuda.compiler import KernelSource, compile_cubin
from tactician.builtin_kernels.cuda.gemm_problem import GemmProblem, gemm_problem
from tactician.builtin_kernels.cuda.gemm_wgmma import GemmWgmma
from tactician.builtin_kernels.cuda.kernel_text import specialise
from tactician.builtin_kernels.cuda.wgmma_tile import MOST_CANDIDATES

HGMMA, UTMALDG, UTMALDG_MULTICAST = 0x9F0, 0x5B4, 0x3B4


def product(
    m: int, n: int, k: int, dtype: str = "float16", trans_a: int = 0, trans_b: int = 0, bias: bool = True
) -> OpSignature:
    """Return the signature of a Gemm, with or without a row of biases."""
    a = TensorType(dtype, (k, m) if trans_a else (m, k))
    b = TensorType(dtype, (n, k) if trans_b else (k, n))
    types = (a, b, TensorType(dtype, (n,))) if bias else (a, b)
    attributes = (("transA", trans_a), ("transB", trans_b))
    return OpSignature(
        "ai.onnx::Gemm", 13, attributes, types, (TensorType(dtype, (m, n)),), (None,) * len(types)
    )


def problem_of(signature: OpSignature) -> GemmProblem:
    problem = gemm_problem(signature)
    assert isinstance(problem, GemmProblem), problem
    return problem


SIGNATURES = [
    product(4096, 4096, 4096),
    product(128, 768, 3072, trans_b=1),
    product(520, 1000, 1000, "bfloat16", trans_a=1),
    product(1000, 264, 72, trans_a=1, trans_b=1, bias=False),
]


@pytest.mark.parametrize("signature", [pytest.param(s, id=str(i)) for i, s in enumerate(SIGNATURES)])
def test_compiles_without_spills(compile_device: Callable[[str], Any], signature: OpSignature) -> None:
    device, problem = compile_device("sm_90a"), problem_of(signature)
    tactics = list(GemmWgmma.candidates(signature, device))
    assert 2 <= len(tactics) <= MOST_CANDIDATES
    for tactic in tactics:
        cubin, resources = compile_cubin(tactic.source(problem), "sm_90a", report=True)
        assert resources is not None
        found = opcodes(cubin)
        assert resources.spill_stores == resources.spill_loads == resources.stack == 0, (tactic, resources)
        assert not resources.warnings, (tactic, resources)
        assert found[LDL] == found[STL] == 0
        assert found[HGMMA] > 0, tactic
        assert found[UTMALDG] + found[UTMALDG_MULTICAST] > 0, tactic


def test_one_lane_starts_the_copies_without_a_loop_around_each(
    compile_device: Callable[[str], Any],
) -> None:
    """Behind another condition than the hardware's choice of a lane each copy stands in a loop of its own."""
    signature = product(512, 768, 3072, bias=False)
    source = GemmWgmma(64, 64, 8, 1).source(problem_of(signature))
    assert opcodes(compile_cubin(source, "sm_90a")[0])[UTMALDG] == 2
    assert "elect.sync" in source.text


@pytest.mark.parametrize(
    ("m", "n", "batch", "cluster_m", "cluster_n", "band"),
    [(1000, 700, 1, 1, 1, 8), (130, 1, 3, 2, 1, 8), (1300, 513, 2, 2, 2, 3), (64, 2000, 1, 1, 4, 1)],
)
def test_every_tile_is_made_once(
    m: int, n: int, batch: int, cluster_m: int, cluster_n: int, band: int
) -> None:
    block_m, block_n, macros = 64, 128, {"M": f"{m}u", "N": f"{n}u", "BATCH": f"{batch}u"}
    macros |= {"BLOCK_M": f"{block_m}u", "BLOCK_N": f"{block_n}u", "BAND": f"{band}u"}
    macros |= {"CLUSTER_M": f"{cluster_m}u", "CLUSTER_N": f"{cluster_n}u"}
    kernel = """
extern "C" __global__ void places(u32* to) {
    const u32 ranks = CLUSTER_M * CLUSTER_N, i = blockIdx.x, rank = i % ranks;
    const TilePlace place = tile_place(i / ranks, rank % CLUSTER_M, rank / CLUSTER_M);
    to[3 * i] = place.matrix; to[3 * i + 1] = place.row; to[3 * i + 2] = place.column;
}
"""
    text = specialise("places", "tile_order.cuh", {}, macros).text + kernel
    rows, columns = -(-m // (block_m * cluster_m)) * cluster_m, -(-n // (block_n * cluster_n)) * cluster_n
    count = rows * columns * batch
    device = PtxDevice()
    to = device.empty((count, 3), np.dtype(np.uint32))
    device.compile(KernelSource(text, "places")).launch(None, count, 1, to)
    found = device.memory.bytes_at(to.pointer, to.nbytes).view(np.uint32).reshape(-1, 3)
    expected = {
        (i, r * block_m, c * block_n) for i in range(batch) for r in range(rows) for c in range(columns)
    }
    assert {tuple(map(int, place)) for place in found} == expected
    assert len(found) == len(expected)


def test_the_candidates_are_part_of_the_search_space(compile_device: Callable[[str], Any]) -> None:
    device = compile_device("sm_90a")
    for signature in SIGNATURES:
        space = list(GemmWgmma.search_space(signature, device))
        assert len(space) == len(set(space))
        assert set(GemmWgmma.candidates(signature, device)) <= set(space)


@pytest.mark.parametrize(
    ("signature", "reason"),
    [
        (product(64, 64, 64, "float32"), "multiplies no float32"),
        (product(64, 64, 60), "rows of a are of 60 elements"),
        (product(64, 60, 64), "rows of b are of 60 elements"),
        (product(60, 64, 64, trans_a=1), "rows of a are of 60 elements"),
        (product(64, 64, 0), "nothing to add up"),
    ],
)
def test_declines(compile_device: Callable[[str], Any], signature: OpSignature, reason: str) -> None:
    assert reason in (GemmWgmma().decline(signature, compile_device("sm_90a")) or "")


def test_declines_what_does_not_fit(compile_device: Callable[[str], Any]) -> None:
    signature, device = product(256, 256, 256), compile_device("sm_90a")
    good = GemmWgmma(128, 128, 4, 2)
    assert good.decline(signature, device) is None
    assert "compute capability 9.0" in (good.decline(signature, compile_device("sm_80")) or "")
    for fields, reason in (
        ({"block_m": 96}, "whole 64 rows"),
        ({"block_m": 64}, "can't share"),
        ({"cooperative": False, "split_k": 2}, "don't split k"),
        ({"cluster_m": 4, "cluster_n": 4}, "8 blocks at most"),
        ({"cluster_m": 3}, "equal parts"),
        ({"split_k": 8}, "can't be split"),
        ({"stages": 1}, "stages take"),
        ({"stages": 9}, "stages take"),
    ):
        assert reason in (replace(good, **fields).decline(signature, device) or ""), fields  # type: ignore[arg-type]  # of several types
