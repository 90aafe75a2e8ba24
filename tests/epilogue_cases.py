"""Fused nodes of a product or a convolution with elementwise operators behind it, and inputs for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx.parser
from tactician.builtin_kernels import nhwc
from tactician.signature import OpSignature
from tactician.tactics.fused_form import FusedForm
from tactician.testing import fused_signatures

OPS = {op.name: op for op in nhwc.ops()}


@dataclass(frozen=True)
class EpilogueCase:
    """The text of a graph whose first node is the anchor, all others its epilogue."""

    name: str
    text: str

    def __str__(self) -> str:
        return self.name

    def signature(self, *forms: FusedForm) -> OpSignature:
        """Return the call of the whole graph as one node."""
        imports = '"": 21, "tactician.nhwc": 1'
        model = onnx.parser.parse_model(f"<ir_version: 9, opset_import: [{imports}]> g {self.text}")
        return max(fused_signatures(model, *forms, ops=OPS), key=lambda s: len(s.parts))

    def inputs(self, signature: OpSignature, seed: int = 3) -> list[np.ndarray[Any, Any] | None]:
        """Return random inputs, weights scaled down so that sums stay small."""
        rng = np.random.default_rng(seed)
        made: list[np.ndarray[Any, Any] | None] = []
        for i, kind in enumerate(signature.inputs):
            known = signature.known(i)
            if kind is None or known is not None:
                made.append(None if kind is None else known)
                continue
            scale = 0.1 if i == 1 else 1.0
            dtype = ml_dtypes.bfloat16 if kind.dtype == "bfloat16" else kind.numpy_dtype
            made.append((rng.standard_normal(kind.dims) * scale).astype(dtype))
        return made


def _product(name: str, d: str, operands: str, nodes: str, dtype: str = "float16") -> EpilogueCase:
    return EpilogueCase(name, f"({operands}) => ({d} y) {{ {nodes} }}".replace("half", dtype))


PRODUCTS = [
    _product("bias", "half[1, 128, 192]", "half[1, 128, 96] x, half[96, 192] w, half[192] b", "a = MatMul(x, w) y = Add(a, b)"),
    _product("bias and gelu", "half[2, 64, 256]", "half[2, 64, 96] x, half[96, 256] w, half[256] b",
             "a = MatMul(x, w) c = Add(b, a) y = Gelu(c)"),
    _product("bias and residual", "half[1, 130, 200]", "half[1, 130, 96] x, half[96, 200] w, half[200] b, half[1, 130, 200] r",
             "a = MatMul(x, w) c = Add(a, b) y = Add(r, c)"),
    _product("a bias for each matrix", "half[3, 70, 64]", "half[1, 70, 128] x, half[3, 128, 64] w, half[3, 1, 64] b",
             "a = MatMul(x, w) y = Add(a, b)", "bfloat16"),
    _product("a bias for each image", "half[2, 40, 64]", "half[2, 40, 128] x, half[128, 64] w, half[2, 1, 64] b",
             "a = MatMul(x, w) y = Add(a, b)"),
    _product("rows scaled, then gated", "half[192, 72]", "half[192, 64] x, half[64, 72] w, half[72] b, half[192, 1] s",
             "a = Gemm(x, w, b) c = Mul(a, s) d = Sigmoid(c) y = Mul(c, d)"),
    _product("long sums, few tiles", "half[64, 64]", "half[64, 2048] x, half[64, 2048] w, half[64] b, half[64, 64] r",
             "a = Gemm<transB = 1>(x, w, b) c = Add(a, r) y = Relu(c)"),
    _product("a scalar", "half[96, 128]", "half[96, 64] x, half[64, 128] w, half[1] s", "a = MatMul(x, w) y = Mul(a, s)"),
    _product("its own input", "half[128, 128]", "half[128, 128] x, half[128, 128] w", "a = MatMul(x, w) y = Add(a, x)"),
    _product("float32 vectors", "half[64, 64]", "half[64, 64] x, half[64, 64] w, float[64] b",
             "a = MatMul(x, w) c = Cast<to = 1>(a) d = Add(c, b) y = Cast<to = 10>(d)"),
]  # fmt: skip
"""Each stands for a way in which an operand is read: per column, per element, per row, per matrix, once."""

CONVS = [
    _product("relu", "half[1, 14, 14, 64]", "half[1, 14, 14, 64] x, half[64, 3, 3, 64] w, half[64] b",
             "a = tactician.nhwc.Conv<pads = [1, 1, 1, 1]>(x, w, b) y = Relu(a)"),
    _product("residual and relu", "half[2, 9, 9, 72]", "half[2, 9, 9, 64] x, half[72, 1, 1, 64] w, half[72] b, half[2, 9, 9, 72] r",
             "a = tactician.nhwc.Conv(x, w, b) c = Add(a, r) y = Relu(c)"),
    _product("many pixels", "half[1, 56, 56, 256]",
             "half[1, 56, 56, 64] x, half[256, 1, 1, 64] w, half[256] b, half[1, 56, 56, 256] r",
             "a = tactician.nhwc.Conv(x, w, b) c = Add(a, r) y = Relu(c)"),
    _product("a scale for each image's channel", "half[2, 7, 7, 128]",
             "half[2, 7, 7, 64] x, half[128, 1, 1, 64] w, half[2, 1, 1, 128] s",
             "a = tactician.nhwc.Conv(x, w) y = Mul(a, s)", "bfloat16"),
    _product("swish", "half[1, 28, 28, 64]", "half[1, 56, 56, 32] x, half[64, 3, 3, 32] w, half[64] b",
             "a = tactician.nhwc.Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, w, b) c = Sigmoid(a) y = Mul(a, c)"),
]  # fmt: skip

BY_ELEMENT = [
    _product("channels second, relu", "half[2, 10, 9, 9]", "half[2, 16, 9, 9] x, half[10, 16, 3, 3] w, half[10] b",
             "a = Conv<pads = [1, 1, 1, 1]>(x, w, b) y = Relu(a)"),
    _product("channels second, residual", "half[2, 24, 7, 7]",
             "half[2, 256, 7, 7] x, half[24, 256, 1, 1] w, half[24] b, half[2, 24, 7, 7] r",
             "a = Conv(x, w, b) c = Add(r, a) y = Relu(c)"),
    _product("channels second, a scale for each channel", "half[1, 16, 6, 6]",
             "half[1, 16, 6, 6] x, half[16, 1, 3, 3] w, half[16, 1, 1] s",
             "a = Conv<group = 16, pads = [1, 1, 1, 1]>(x, w) y = Mul(a, s)"),
    _product("depthwise, a gate", "half[1, 16, 6, 5]", "half[1, 16, 6, 5] x, half[16, 1, 3, 3] w, half[16] b, half[1, 16, 6, 5] g",
             "a = Conv<group = 16, pads = [1, 1, 1, 1]>(x, w, b) c = Sigmoid(g) y = Mul(c, a)"),
    _product("depthwise, channels innermost", "half[2, 6, 5, 16]",
             "half[2, 6, 5, 16] x, half[16, 3, 3, 1] w, half[16] b, half[2, 6, 5, 16] g",
             "a = tactician.nhwc.Conv<group = 16, pads = [1, 1, 1, 1]>(x, w, b) c = Relu(a) y = Mul(c, g)"),
]  # fmt: skip
"""Convolutions whose kernels go by elements."""
