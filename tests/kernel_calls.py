"""Representative calls of every family of CUDA kernels, with the instructions that their machine code must hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx.parser
from conv_nhwc_cases import MOBILENET, resnet50, signature_of
from epilogue_cases import BY_ELEMENT, CONVS, PRODUCTS, EpilogueCase
from memory_bound_cases import i64
from quantised_cases import E4M3, Quantised
from tactician.builtin_kernels.cuda import tactics
from tactician.signature import OpSignature, TensorType, make_constant
from tactician.testing import fused_signatures

Operand = TensorType | np.ndarray[Any, Any] | None
"""The type of an input, an input that is a constant, or one that is absent."""

TACTICS = {tactic.name(): tactic for tactic in tactics() if not tactic.library}
"""Every tactic whose kernels are compiled here, by its name."""


@dataclass(frozen=True)
class Call:
    """One call of an operator, and the tactic whose first candidate for it is compiled.

    Parameters
    ----------
    tactic
        A name in ``TACTICS``.
    instructions
        Kinds of ``sass.KINDS`` that the tactic's kernels hold, on every architecture.
    only
        The one architecture that the tactic is for; empty where it is for all.
    """

    tactic: str
    signature: OpSignature
    instructions: tuple[str, ...] = ()
    only: str = ""

    def __str__(self) -> str:
        signature = self.signature
        inputs = ",".join("-" if t is None else str(t) for t in signature.inputs)
        attributes = "".join(f",{k}={v}" for k, v in signature.attributes)
        op = "+".join(part.signature.op_type for part in signature.parts) or signature.op_type
        return f"{self.tactic}: " + f"{op}({inputs}{attributes})".replace(" ", "")


def half(*dims: int) -> TensorType:
    """Return the type of a float16 tensor."""
    return TensorType("float16", dims)


def single(*dims: int) -> TensorType:
    """Return the type of a float32 tensor."""
    return TensorType("float32", dims)


def called(op: str, inputs: list[Operand], *outputs: TensorType, **attributes: Any) -> OpSignature:
    """Return the signature of a standard operator; where no outputs are given, there is one of the first input's type."""
    types = tuple(TensorType(a.dtype.name, a.shape) if isinstance(a, np.ndarray) else a for a in inputs)
    known = tuple(make_constant(a) if isinstance(a, np.ndarray) else None for a in inputs)
    values = tuple(sorted(attributes.items()))
    return OpSignature(f"ai.onnx::{op}", 24, values, types, outputs or types[:1], known)


def product(dtype: str, m: int, n: int, k: int, trans_b: int = 0) -> OpSignature:
    """Return the signature of a Gemm with a row of biases."""
    shapes = (m, k), (n, k) if trans_b else (k, n), (n,), (m, n)
    a, b, c, d = (TensorType(dtype, shape) for shape in shapes)
    return called("Gemm", [a, b, c], d, transB=trans_b)


def attention(q: TensorType, k: TensorType, mask: TensorType | None = None, **attributes: Any) -> OpSignature:
    """Return the signature of an attention whose values are of the keys' type."""
    return called("Attention", [q, k, k, mask], q, **attributes)


def conv(x: TensorType, w: TensorType, groups: int = 1) -> OpSignature:
    """Return the signature of a convolution that keeps the size, with a bias."""
    bias, y = (TensorType(x.dtype, dims) for dims in (w.dims[:1], (x.dims[0], w.dims[0], *x.dims[2:])))
    return called("Conv", [x, w, bias], y, group=groups, pads=(w.dims[2] // 2,) * 4, strides=(1, 1))


def chain() -> OpSignature:
    """Return the fused call of a sum and a gate."""
    text = """<ir_version: 9, opset_import: ["": 21]> g (float16[4096, 1024] x, float16[1024] b)
        => (float16[4096, 1024] y) { a = Add (x, b) c = Sigmoid (a) y = Mul (a, c) }"""
    forms = TACTICS["pointwise_chain"].fused_forms
    found = fused_signatures(onnx.parser.parse_model(text), *forms, ops={})
    return max(found, key=lambda signature: len(signature.parts))


def fused(case: EpilogueCase, tactic: str) -> OpSignature:
    """Return the call of a node that an anchor and its epilogue are."""
    return case.signature(*TACTICS[tactic].fused_forms)


def products() -> Iterator[Call]:
    """Yield matrix products, each kernel in the types that it treats differently."""
    tiles, tensor_map = ("HMMA", "LDGSTS", "LDSM"), ("HGMMA", "UTMALDG", "UTMASTG")
    yield Call("gemm_ffma", product("float32", 1024, 1024, 1024), ("FFMA",))
    yield Call("gemm_ffma", product("float64", 256, 256, 256), ("DFMA",))
    yield Call("gemm_mma", product("float16", 1024, 1024, 1024, 1), tiles)
    yield Call("gemm_mma", product("float32", 1024, 1024, 1024), ("HMMA", "LDGSTS"))
    yield Call("gemm_mma", product("bfloat16", 511, 501, 299), ("HMMA",))
    yield Call("gemm_wgmma", fused(PRODUCTS[2], "gemm_wgmma"), tensor_map, "sm_90a")
    yield Call("gemm_small_m", product("float16", 4, 4096, 4096, 1), ("HMMA",))
    yield Call("gemm_small_m", product("float16", 16, 512, 8192, 1), ("HMMA",))
    yield Call("gemm_small_m", product("float32", 1, 4096, 4096), ("FFMA",))
    yield Call("gemm_wgmma", product("float16", 4096, 4096, 4096), tensor_map, "sm_90a")
    yield Call("gemm_wgmma", product("bfloat16", 128, 768, 3072, 1), tensor_map[:2], "sm_90a")


def quantised_products() -> Iterator[Call]:
    """Yield products of 8-bit operands: sums of integers, what is scaled, with b stored either way, and fp8."""
    moves, single = ("UTMALDG", "UTMASTG"), ("int8", "int8", "float")
    calls = (
        (Quantised(4096, 4096, 4096, ("int8", "int8", "int32")), "IGMMA", moves),
        (Quantised(4096, 4096, 4096, bias=True, relu=True), "IGMMA", moves),
        (Quantised(512, 768, 3072, single, stored="kn", columns=False), "IGMMA", moves[:1]),
        (Quantised(8192, 8192, 8192, E4M3, columns=False), "QGMMA", moves),
        (
            Quantised(128, 768, 3072, ("float8e5m2", "float8e4m3fn", "bfloat16"), bias=True),
            "QGMMA",
            moves[:1],
        ),
    )
    for case, multiply, copies in calls:
        yield Call("gemm_wgmma8bit", case.signature(), (multiply, *copies), "sm_90a")


def convolutions() -> Iterator[Call]:
    """Yield convolutions in both layouts."""
    layers = resnet50(8)
    tiles, tensor_map = ("HMMA", "LDGSTS", "LDSM"), ("HGMMA", "UTMALDG", "UTMASTG")
    yield Call("conv_direct", conv(single(8, 64, 56, 56), single(64, 64, 3, 3)), ("FFMA",))
    yield Call("conv_implicit_gemm", conv(half(8, 64, 56, 56), half(64, 64, 3, 3)), tiles)
    yield Call("conv_implicit_gemm", conv(single(1, 512, 7, 7), single(512, 512, 3, 3)), tiles)
    yield Call("conv_implicit_gemm_ffma", conv(single(8, 64, 56, 56), single(64, 64, 3, 3)), ("FFMA",))
    yield Call("conv_depthwise", conv(single(8, 96, 56, 56), single(96, 1, 3, 3), 96), ("FFMA",))
    yield Call("conv_depthwise_nhwc", signature_of(MOBILENET[0], (1, 112, 112, 32)), ("FFMA",))
    yield Call("conv_depthwise_nhwc", signature_of(MOBILENET[3], (8, 7, 7, 960)), ("FFMA",))
    yield Call("conv_wgmma", signature_of(layers["1 3x3"], (8, 56, 56, 64)), tensor_map, "sm_90a")
    yield Call("conv_wgmma", signature_of(layers["3 expand"], (8, 14, 14, 1024)), tensor_map, "sm_90a")
    yield Call("conv_wgmma", fused(CONVS[2], "conv_wgmma"), tensor_map, "sm_90a")
    yield Call("conv_implicit_gemm", fused(BY_ELEMENT[1], "conv_implicit_gemm"), tiles[:1])
    yield Call("conv_depthwise_nhwc", fused(BY_ELEMENT[4], "conv_depthwise_nhwc"), ("FFMA",))


def attentions() -> Iterator[Call]:
    """Yield attentions of long and short sequences, causal, and with a mask."""
    long, encoder = half(4, 32, 2048, 128), half(8, 12, 384, 64)
    yield Call("attention_mma", attention(long, long, is_causal=1), ("HMMA", "LDGSTS", "LDSM", "MUFU"))
    yield Call("attention_mma", attention(encoder, encoder, half(8, 1, 1, 384)), ("HMMA", "LDGSTS", "LDSM"))
    step = attention(half(1, 32, 1, 128), half(1, 8, 4096, 128))
    yield Call("attention_mma", step, ("HMMA", "LDGSTS", "LDSM"))
    tensor_map = ("HGMMA", "UTMALDG", "UTMASTG", "MUFU")
    yield Call("attention_wgmma", attention(long, long), tensor_map, "sm_90a")
    narrow = half(2, 16, 8192, 64)
    yield Call("attention_wgmma", attention(narrow, narrow, is_causal=1), tensor_map, "sm_90a")


def elementwise() -> Iterator[Call]:
    """Yield elementwise operators, alone and fused."""
    yield Call("pointwise", called("Gelu", [half(3, 1000, 1024)]), ("FFMA",))
    yield Call("pointwise", called("Add", [half(16, 512, 1024), half(1024)]))
    yield Call("pointwise_chain", chain(), ("MUFU",))


def rows() -> Iterator[Call]:
    """Yield reductions and normalisations, of short lines and of long ones."""
    image, matrix, brain = half(8, 64, 112, 112), single(4096, 4100), TensorType("bfloat16", (2048, 4096))
    window = {"kernel_shape": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1)}
    scale = TensorType("bfloat16", (4096,))
    yield Call("reduce_rows", called("ReduceSum", [matrix, i64(1)], single(4096, 1)))
    yield Call("reduce_rows", called("ReduceMax", [single(16_000_001), i64(0)], single(1)))
    yield Call("reduce_rows", called("ArgMax", [matrix], TensorType("int64", (4096, 1)), axis=1))
    yield Call("reduce_columns", called("ReduceMean", [matrix, i64(0)], single(1, 4100)))
    yield Call("softmax_rows", called("Softmax", [half(8, 12, 384, 384)], axis=-1), ("MUFU",))
    yield Call("softmax_rows", called("Softmax", [single(128, 50257)], axis=-1), ("MUFU",))
    yield Call("softmax_columns", called("Softmax", [single(16, 21, 129, 130)], axis=1), ("MUFU",))
    layer = [single(32, 384, 768), single(768), single(768)]
    yield Call("layer_norm", called("LayerNormalization", layer, axis=-1), ("FFMA", "MUFU"))
    yield Call("layer_norm", called("RMSNormalization", [brain, scale], axis=-1), ("FFMA", "MUFU"))
    groups = [single(4, 64, 65, 65), single(64), single(64)]
    yield Call("layer_norm", called("GroupNormalization", groups, num_groups=32), ("FFMA", "MUFU"))
    yield Call("batch_norm", called("BatchNormalization", [image, *[half(64)] * 4]), ("FFMA",))
    yield Call("pool_windows", called("MaxPool", [image], half(8, 64, 56, 56), **window))
    yield Call("pool_windows", called("AveragePool", [image], half(8, 64, 56, 56), **window))
    yield Call("pool_planes", called("GlobalAveragePool", [image], half(8, 64, 1, 1)))


def movements() -> Iterator[Call]:
    """Yield what moves elements, or looks for some."""
    image, heads, table = half(8, 64, 112, 112), half(8, 384, 12, 64), single(30522, 768)
    indices, tuples = TensorType("int64", (32, 384)), TensorType("int64", (32, 1))
    yield Call("transpose_tiled", called("Transpose", [half(2049, 4099)], half(4099, 2049), perm=(1, 0)))
    yield Call("transpose_tiled", called("Transpose", [image], half(8, 112, 112, 64), perm=(0, 2, 3, 1)))
    yield Call("strided_copy", called("Transpose", [heads], half(8, 12, 384, 64), perm=(0, 2, 1, 3)))
    yield Call("copy", called("Expand", [half(8, 1, 64, 384), i64(8, 12, 64, 384)], half(8, 12, 64, 384)))
    yield Call("gather", called("Gather", [table, indices], single(32, 384, 768)))
    yield Call("scatter", called("ScatterND", [table, tuples, single(32, 768)]))
    yield Call("pad", called("Pad", [half(8, 64, 56, 56), i64(0, 0, 1, 1, 0, 0, 1, 1)], half(8, 64, 58, 58)))
    yield Call("fill", called("Trilu", [single(384, 384)]))
    yield Call("cumulative_sum", called("CumSum", [single(384, 1024), i64(1)]))
    found = single(64, 10), TensorType("int64", (64, 10))
    yield Call("top_k", called("TopK", [single(64, 1000), i64(10)], *found))
    given = [half(8, 64, 56, 56), None, None, i64(8, 64, 112, 112)]
    yield Call("resize", called("Resize", given, half(8, 64, 112, 112), mode="linear"))


CALLS = (
    *products(),
    *quantised_products(),
    *convolutions(),
    *attentions(),
    *elementwise(),
    *rows(),
    *movements(),
)
