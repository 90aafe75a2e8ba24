"""Products of 8-bit operands as quantised models have them: MatMulInteger, and dequantised operands, fused into one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx
import onnx.parser
from tactician.builtin_kernels.cuda.product_8bit import FORMS
from tactician.importer import import_model
from tactician.network import signatures as network_signatures
from tactician.signature import OpSignature, numpy_dtype
from tactician.testing import fused_signatures

OPSET = 23
"""The first in which DequantizeLinear's result may be of another type than the scale."""


@dataclass(frozen=True)
class Quantised:
    """A product of [m, k] and [k, n] of 8 bits.

    Parameters
    ----------
    types
        Element types of a and b, as ONNX's text format spells them, and of the result; ``int32`` for MatMulInteger.
    stored
        How b lies in memory: ``"nk"``, as Gemm takes it with transB, or before a Transpose, else ``"kn"``.
    columns
        Whether each column of the product has a scale of its own.
    gemm
        Whether the product is a Gemm, whose third input is the bias; else a MatMul, with an Add behind it.
    batch
        Products with both operands of their own, where it is more than one.
    """

    m: int
    n: int
    k: int
    types: tuple[str, str, str] = ("int8", "int8", "float16")
    stored: str = "nk"
    columns: bool = True
    bias: bool = False
    relu: bool = False
    gemm: bool = False
    batch: int = 1

    def __str__(self) -> str:
        words = [
            f"{'Gemm' if self.gemm else 'MatMul'} {self.m}x{self.n}x{self.k}",
            "/".join(self.types),
            self.stored,
        ]
        words += [f"{self.batch} times"] if self.batch > 1 else []
        marks = ("bias", "relu") if self.is_integer else ("columns", "bias", "relu")
        return " ".join(words + [mark for mark in marks if getattr(self, mark)])

    @property
    def is_integer(self) -> bool:
        """Whether it is a MatMulInteger."""
        return self.types[2] == "int32"

    def text(self) -> str:
        """Return the model in ONNX's text format."""
        (a, b, d), is_turned = self.types, self.stored == "nk" and not self.gemm
        of_b = (self.n, self.k) if self.stored == "nk" else (self.k, self.n)
        inputs = [f"{a}{self._dims(self.m, self.k)} a", f"{b}{self._dims(*of_b)} b"]
        lines = []
        if self.is_integer:
            x, w = "a", "b"
        else:
            x, w = "x", "w"
            inputs += ["float sa", f"float[{self.n}] sb" if self.columns else "float sb"]
            dtype = numpy_dtype({"float": "float32"}.get(d, d))
            kind = f"output_dtype = {onnx.helper.np_dtype_to_tensor_dtype(dtype)}"
            axis = f", axis = {0 if self.stored == 'nk' else 1}" if self.columns else ""
            lines += [f"x = DequantizeLinear<{kind}>(a, sa)", f"w = DequantizeLinear<{kind}{axis}>(b, sb)"]
        if is_turned:
            lines.append(f"t = Transpose<perm = {[0, 2, 1] if self.batch > 1 else [1, 0]}>({w})")
            w = "t"
        inputs += [f"{d}[{self.n}] c"] if self.bias else []
        return self._model(inputs, [*lines, *self._product(x, w)])

    def _product(self, x: str, w: str) -> list[str]:
        names = iter(("p", "q", "r"))
        trans_b = int(self.stored == "nk")
        last = next(names)
        if self.gemm:
            lines = [f"{last} = Gemm<transB = {trans_b}>({x}, {w}{', c' if self.bias else ''})"]
        else:
            lines = [f"{last} = {'MatMulInteger' if self.is_integer else 'MatMul'}({x}, {w})"]
            if self.bias:
                before, last = last, next(names)
                lines.append(f"{last} = Add({before}, c)")
        if self.relu:
            before, last = last, next(names)
            lines.append(f"{last} = Relu({before})")
        return [*lines[:-1], "y" + lines[-1].removeprefix(last)]

    def _model(self, inputs: Sequence[str], lines: Sequence[str]) -> str:
        result = f"{self.types[2]}{self._dims(self.m, self.n)} y"
        body = "\n  ".join(lines)
        head = f'<ir_version: 11, opset_import: ["": {OPSET}]>'
        return f"{head} g ({', '.join(inputs)}) => ({result}) {{\n  {body}\n}}"

    def _dims(self, *dims: int) -> str:
        return str([self.batch, *dims] if self.batch > 1 else list(dims))

    def model(self) -> onnx.ModelProto:
        """Return the model."""
        return onnx.parser.parse_model(self.text())

    def signature(self) -> OpSignature:
        """Return the call that all of its operators become."""
        found = fused_signatures(self.model(), *FORMS, ops={})
        alone = network_signatures(import_model(self.model(), {}, {}))
        return max([*alone.values(), *found], key=lambda signature: len(signature.parts))


E4M3 = ("float8e4m3fn", "float8e4m3fn", "float16")

SMALL = [
    Quantised(64, 64, 128),
    Quantised(37, 24, 48),
    Quantised(128, 256, 96, columns=False, bias=True),
    Quantised(130, 72, 272, ("int8", "int8", "float"), bias=True, relu=True),
    Quantised(200, 136, 400, ("uint8", "int8", "float16"), gemm=True, bias=True, relu=True),
    Quantised(65, 200, 1040, ("int8", "uint8", "bfloat16"), relu=True),
    Quantised(70, 128, 160, stored="kn", bias=True),
    Quantised(70, 40, 176, stored="kn", gemm=True, columns=False),
    Quantised(96, 64, 64, batch=5, columns=False),
    Quantised(96, 72, 80, stored="kn", batch=3, columns=False),
    *(Quantised(33, 44, 208, (a, b, "int32")) for a in ("int8", "uint8") for b in ("int8", "uint8")),
    Quantised(96, 68, 80, ("int8", "int8", "int32"), batch=3),
    Quantised(70, 44, 96, ("int8", "uint8", "int32"), stored="kn"),
    Quantised(64, 64, 128, E4M3, columns=False),
    Quantised(197, 72, 336, E4M3, bias=True),
    Quantised(130, 256, 640, ("float8e5m2", "float8e4m3fn", "float"), bias=True, relu=True),
    Quantised(66, 136, 1520, ("float8e4m3fn", "float8e5m2", "bfloat16"), gemm=True, bias=True),
    Quantised(70, 64, 256, E4M3, stored="kn", columns=False),
]
"""Every pair of types, each way that b is stored, biases, and sides with a rest."""

LARGE = [
    *(
        Quantised(1024, 1024, 1024, types)
        for types in (("int8", "int8", "float16"), ("int8", "int8", "float"), E4M3)
    ),
    Quantised(1024, 1024, 1024, ("int8", "int8", "int32")),
    Quantised(2048, 2304, 768, bias=True),
    Quantised(197, 768, 3072, bias=True, relu=True),
    Quantised(197, 768, 3072, ("uint8", "int8", "int32")),
    Quantised(128, 1000, 2048, E4M3, gemm=True, bias=True),
    Quantised(512, 4096, 4096, E4M3, columns=False),
    Quantised(512, 4096, 11008, ("float8e4m3fn", "float8e4m3fn", "float"), columns=False),
    Quantised(32, 1000, 2048, ("int8", "int8", "int32")),
]
"""Whole tiles, the shapes of transformers and classifiers, and few tiles with long sums."""
