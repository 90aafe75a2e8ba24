"""Products of 8-bit operands by wgmma: which calls are such, the code without spills, where results lie, what is declined."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx.parser
import pytest
from quantised_cases import E4M3, SMALL, Quantised

pytest.importorskip("cuda.bindings.nvrtc", reason="the compiler's package is not installed")

from ptx_device import PtxDevice
from sass import LDL, STL, opcodes
from tactician.builtin_kernels.cuda.compiler import KernelSource, compile_cubin, read_source
from tactician.builtin_kernels.cuda.gemm_wgmma_8bit import GemmWgmma8bit, product_shape
from tactician.builtin_kernels.cuda.product_8bit import FORMS, EightBitProduct, product_8bit
from tactician.builtin_kernels.cuda.wgmma_tile import SHARED_OF_MULTIPROCESSOR
from tactician.signature import OpSignature
from tactician.testing import fused_signatures

IGMMA, QGMMA = 0x9F1, 0x9F3
INTEGERS = ("int8", "int8", "int32")


def product_of(signature: OpSignature) -> EightBitProduct:
    product = product_8bit(signature)
    assert isinstance(product, EightBitProduct), product
    return product


def fused(inputs: str, body: str, result: str = "float[32, 48] y") -> OpSignature:
    """Return the call that all operators of a network become."""
    text = f'<ir_version: 11, opset_import: ["": 23]> g ({inputs}) => ({result}) {{ {body} }}'
    return max(fused_signatures(onnx.parser.parse_model(text), *FORMS, ops={}), key=lambda s: len(s.parts))


COMPILED = [
    Quantised(4096, 4096, 4096, INTEGERS),
    Quantised(197, 768, 3072, ("uint8", "int8", "int32")),
    Quantised(512, 768, 3072, bias=True, relu=True),
    Quantised(1000, 264, 80, ("int8", "int8", "float"), stored="kn", columns=False),
    Quantised(2048, 4096, 4096, E4M3, columns=False),
    Quantised(128, 1000, 2048, ("float8e5m2", "float8e4m3fn", "float"), bias=True),
    Quantised(128, 128, 64, E4M3, columns=False, batch=384),
]


@pytest.mark.parametrize("case", COMPILED, ids=str)
def test_compiles_without_spills(compile_device: Callable[[str], Any], case: Quantised) -> None:
    device, signature = compile_device("sm_90a"), case.signature()
    product = product_of(signature)
    tactics = list(GemmWgmma8bit.candidates(signature, device))
    assert len(tactics) >= 2
    for tactic in tactics:
        assert tactic.decline(signature, device) is None
        cubin, resources = compile_cubin(tactic.source(product), "sm_90a", report=True)
        assert resources is not None
        found = opcodes(cubin)
        assert resources.spill_stores == resources.spill_loads == resources.stack == 0, (tactic, resources)
        assert not resources.warnings, (tactic, resources)
        assert found[LDL] == found[STL] == 0
        # one instruction for each 64 rows of a consumer and each 32 of k of a step, or of several that are unrolled
        rows = tactic.block_m // (64 * tactic.consumers if tactic.cooperative else 64)
        steps = tactic.depth * -(-min(case.k, 128) // 32)
        multiplies = found[IGMMA if product.is_integer else QGMMA]
        assert multiplies > 0, tactic
        assert multiplies % (rows * steps) == 0, tactic


def test_the_search_space_fits_and_holds_the_candidates(compile_device: Callable[[str], Any]) -> None:
    device = compile_device("sm_90a")
    for case in COMPILED:
        signature = case.signature()
        product, space = product_of(signature), list(GemmWgmma8bit.search_space(signature, device))
        assert len(space) == len(set(space))
        assert set(GemmWgmma8bit.candidates(signature, device)) <= set(space)
        for tactic in space:
            shared = tactic.shared_bytes(product_shape(product).vectors)
            assert (shared + 1024) * tactic.blocks <= SHARED_OF_MULTIPROCESSOR
            assert not (product.is_integer and tactic.promote)


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_what_a_call_is_taken_for(compile_device: Callable[[str], Any], case: Quantised) -> None:
    signature, device = case.signature(), compile_device("sm_90a")
    product = product_of(signature)
    gemm = product.gemm
    assert (gemm.m, gemm.n, gemm.k, gemm.batch) == (case.m, case.n, case.k, case.batch)
    assert gemm.trans_b == (case.stored == "nk")
    assert (gemm.bias == "row", product.relu) == (case.bias, case.relu)
    result = "float32" if case.types[2] == "float" else case.types[2]
    assert (product.a.dtype, product.b.dtype, product.result) == (*case.types[:2], result)
    scaling = ("none", "none") if case.is_integer else ("tensor", "columns" if case.columns else "tensor")
    assert (product.a.scaling, product.b.scaling) == scaling
    tactic = next(iter(GemmWgmma8bit.candidates(signature, device)))
    assert tactic.workspace(signature, device) == (0 if gemm.trans_b else case.batch * case.n * case.k)


def test_numerics(compile_device: Callable[[str], Any]) -> None:
    device = compile_device("sm_90a")
    for types, k, marks in (
        (INTEGERS, 512, {False: set()}),
        (E4M3, 512, {False: {"reduced-accumulator"}, True: set()}),
        (E4M3, 128, {False: set()}),
    ):
        signature = Quantised(1024, 1024, k, types).signature()
        found: dict[bool, set[str]] = {}
        for tactic in GemmWgmma8bit.candidates(signature, device):
            found.setdefault(bool(tactic.promote), set()).update(tactic.numerics(signature))
        assert found == marks


OPERANDS = "int8[32, 64] a, float s, int8[48, 64] b"
PRODUCT = "x = DequantizeLinear(a, s)  w = DequantizeLinear(b, s)  "


@pytest.mark.parametrize(
    ("signature", "reason"),
    [
        (Quantised(64, 64, 72).signature(), "rows of operands are of 72 bytes"),
        (Quantised(64, 66, 64).signature(), "rows of d are of 66 float16"),
        (Quantised(64, 66, 64, INTEGERS).signature(), "rows of d are of 66 int32"),
        (Quantised(64, 64, 2**18).signature(), "may be more than int32 holds"),
        (fused(f"{OPERANDS}, int8 z", PRODUCT.replace("(b, s)", "(b, s, z)") + "y = Gemm<transB = 1>(x, w)"), "zero point"),
        (fused(f"{OPERANDS}, float[32] r", PRODUCT.replace("Linear(a, s)", "Linear<axis = 0>(a, r)")
               + "y = Gemm<transB = 1>(x, w)"), "scale of each column"),
        (fused(f"{OPERANDS}, float[64] r", PRODUCT.replace("Linear(b, s)", "Linear<axis = 1>(b, r)")
               + "y = Gemm<transB = 1>(x, w)"), "scale of each column"),
        (fused("int8[64, 32] a, float s, int8[48, 64] b", PRODUCT + "y = Gemm<transA = 1, transB = 1>(x, w)"), "m contiguous"),
        (fused("int8[32, 64] a, float s, float[48, 64] w",
               "x = DequantizeLinear(a, s)  y = Gemm<transB = 1>(x, w)"), "float32, not of 8 bits"),
        (fused("int8[32, 64] a, float s, float8e4m3fn[48, 64] b", PRODUCT + "y = Gemm<transB = 1>(x, w)"), "element types"),
        (fused(f"{OPERANDS}, float[48] c", PRODUCT + "p = Gemm<transB = 1>(x, w)  q = Relu(p)  y = Add(q, c)"), "follows Relu"),
        (fused(f"{OPERANDS}, float[48] c", PRODUCT + "p = Gemm<transB = 1>(x, w)  q = Add(p, c)  y = Add(q, c)"), "more than one"),
    ],
)  # fmt: skip
def test_declines(compile_device: Callable[[str], Any], signature: OpSignature, reason: str) -> None:
    (tactic,) = GemmWgmma8bit.candidates(signature, compile_device("sm_90a"))
    assert reason in (tactic.decline(signature, compile_device("sm_90a")) or "")


def test_declines_what_does_not_fit(compile_device: Callable[[str], Any]) -> None:
    signature, device = Quantised(256, 256, 1024, E4M3).signature(), compile_device("sm_90a")
    good = GemmWgmma8bit(128, 128, 4, 2)
    assert good.decline(signature, device) is None
    assert "compute capability 9.0" in (good.decline(signature, compile_device("sm_80")) or "")
    assert replace(good, promote=1).decline(signature, device) is None
    assert "fit twice" in (replace(good, block_n=256, promote=1).decline(signature, device) or "")
    integers = Quantised(256, 256, 1024, INTEGERS).signature()
    assert "exact" in (replace(good, promote=1).decline(integers, device) or "")
    assert "stages take" in (replace(good, stages=7).decline(signature, device) or "")


def test_results_of_32_bits_lie_where_the_copy_engine_wants_them() -> None:
    """A box is 64 rows of 32 columns; chunks of 16 bytes are swizzled by the row, and a thread has pairs of two rows."""
    macros: dict[str, int | str] = {
        "RAW_SUMS": 1, "RELU": 0, "PROMOTE": "0u", "ALPHA": "1.0f", "HAS_SCALE_A": 0, "HAS_SCALE_B": 0, "SCALE_COLUMNS": 0,
    }  # fmt: skip
    types = {"T": "i32", "Sum": "i32", "Value": "i32", "Operand": "u8", "ScaleA": "float", "ScaleB": "float"}
    kernel = """
extern "C" __global__ void boxes(u32* to) {
    __shared__ __align__(1024) u32 box[64 * 32];
    const u32 t = threadIdx.x;
    for (u32 j = 0; j < 4; j += 2) {
        u64 pairs[4];
        for (u32 w = 0; w < 4; w++) {
            const i32 value = (t / 32 * 16 + t % 32 / 4 + w % 2 * 8) * 32 + 8 * (j + w / 2) + t % 4 * 2;
            pairs[w] = pack_pair(value, value + 1, T{});
        }
        store_pairs(shared_address(box), pairs, j, t);
    }
    __syncthreads();
    for (u32 i = t; i < 64 * 32; i += 128) to[i] = box[i];
}
"""
    lines = [f"#define {name} {value}" for name, value in macros.items()]
    aliases = [f"typedef {c} {name};" for name, c in types.items()]
    head, body = (read_source(*names) for names in (("common.cuh", "hopper.cuh"), ("wgmma_8bit.cuh",)))
    text = "\n".join([head, *aliases, *lines, body, kernel])
    device = PtxDevice()
    to = device.empty((64, 8, 4), np.dtype(np.uint32))
    device.compile(KernelSource(text, "boxes")).launch(None, 1, 128, to)
    found = device.memory.bytes_at(to.pointer, to.nbytes).view(np.uint32).reshape(64, 8, 4)
    rows, chunks = np.arange(64)[:, None], np.arange(8)[None, :]
    plain = found[rows, chunks ^ rows % 8]
    np.testing.assert_array_equal(plain.reshape(64, 32), np.arange(64 * 32).reshape(64, 32))
