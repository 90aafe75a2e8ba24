"""Products of 8-bit operands for the operator benchmark: in the shapes of ``gemm``, weights with k contiguous."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import onnx.parser
import torch
from operator_cases import OperatorCase, gemm_cases
from tactician.signature import OpSignature
from tactician.tactics.fused_form import FusedForm
from tactician.testing import fused_signatures

FORM = FusedForm(
    ("ai.onnx::MatMul", "ai.onnx::MatMulInteger"),
    prologue=("ai.onnx::DequantizeLinear", "ai.onnx::Transpose"),
    longest=4,
)
SCALE = 0.02
MARKS = frozenset({"reduced-accumulator"})


@dataclass(frozen=True)
class QuantisedCase(OperatorCase):
    """A product fused with what is before it; ``dtype`` is of the result alone.

    Parameters
    ----------
    model
        The network that the call comes from, in ONNX's text format.
    types
        Element types of the inputs, in the call's order.
    """

    model: str = ""
    types: tuple[torch.dtype, ...] = ()

    def signature(self) -> OpSignature:
        """Return the fused call."""
        return _fused(self.model)

    def inputs(self) -> list[torch.Tensor]:
        """Return random operands, and scales."""
        return [_random(shape, dtype) for shape, dtype in zip(self.shapes, self.types, strict=True)]

    @property
    def bytes(self) -> int:
        """The fewest bytes that the call moves."""
        inputs = sum(_size(s) * _bytes(t) for s, t in zip(self.shapes, self.types, strict=True))
        return inputs + _size(self.output) * _bytes(self.dtype)


def int8_cases() -> Iterable[QuantisedCase]:
    """Yield MatMulInteger of int8, whose weights are stored transposed."""
    for m, n, k, batch in _shapes():
        a, b, d = _dims(batch, m, k), _dims(batch, n, k), _dims(batch, m, n)
        body = f"t = Transpose<perm = {_perm(batch)}>(b)  y = MatMulInteger(a, t)"
        text = _text([f"int8{list(a)} a", f"int8{list(b)} b"], f"int32{list(d)} y", body)
        yield _case(
            "int8", (m, n, k, batch), (b, a), (torch.int8, torch.int8), torch.int32, _integer, text, 0, 1e-5
        )


def fp8_cases(numerics: frozenset[str] = MARKS) -> Iterable[QuantisedCase]:
    """Yield products of e4m3 with a scale for each operand to float16; ``numerics`` may mark a candidate."""
    for m, n, k, batch in _shapes():
        a, b, d = _dims(batch, m, k), _dims(batch, n, k), _dims(batch, m, n)
        inputs = [f"float8e4m3fn{list(a)} a", "float sa", f"float8e4m3fn{list(b)} b", "float sb"]
        text = _text(inputs, f"float16{list(d)} y", _dequantised(batch))
        kinds = (torch.float8_e4m3fn, torch.float32) * 2
        yield _case(
            "fp8", (m, n, k, batch), (a, (), b, ()), kinds, torch.float16, _scaled, text, 2, 1e-2, numerics
        )


def dequantised_cases() -> Iterable[QuantisedCase]:
    """Yield products of int8 with a scale for each column to float16, which the library has not."""
    for m, n, k, batch in _shapes():
        if batch == 1:
            inputs = [f"int8[{m}, {k}] a", "float sa", f"int8[{n}, {k}] b", f"float[{n}] sb"]
            text = _text(inputs, f"float16[{m}, {n}] y", _dequantised(1, ", axis = 0"))
            shapes = ((m, k), (), (n, k), (n,))
            kinds = (torch.int8, torch.float32) * 2
            yield _case(
                "int8 dequantised", (m, n, k, 1), shapes, kinds, torch.float16, _scaled, text, 2, 5e-3
            )


QUANTISED_GROUPS: dict[str, Callable[[], Iterable[OperatorCase]]] = {
    "int8": int8_cases,
    "fp8": fp8_cases,
    "fp8_promoted": lambda: fp8_cases(frozenset()),
    "int8_dequantised": dequantised_cases,
}
"""Groups of cases by name; in ``fp8_promoted`` tensor cores never add all products up alone."""


def _case(
    name: str,
    sizes: tuple[int, int, int, int],
    shapes: tuple[tuple[int, ...], ...],
    types: tuple[torch.dtype, ...],
    result: torch.dtype,
    reference: Callable[..., torch.Tensor],
    model: str,
    weight: int,
    tolerance: float,
    numerics: frozenset[str] = frozenset(),
) -> QuantisedCase:
    m, n, k, batch = sizes
    return QuantisedCase(
        f"{name} {f'{batch} x ' if batch > 1 else ''}{m}x{n}x{k}",
        "",
        shapes,
        result,
        _dims(batch, m, n),
        reference,
        operations=2.0 * batch * m * n * k,
        weight=weight if batch == 1 else None,
        tolerance=tolerance,
        numerics=numerics,
        model=model,
        types=types,
    )


def _shapes() -> list[tuple[int, int, int, int]]:
    """Return rows, columns, terms and batch of the products of 16-bit floats, each once."""
    found = {}
    for case in gemm_cases():
        *outer, m, n = case.output
        found[m, n, case.shapes[0][-1], outer[0] if outer else 1] = None
    return list(found)


def _integer(b: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
    return a.float() @ b.float().mT


def _scaled(a: torch.Tensor, sa: torch.Tensor, b: torch.Tensor, sb: torch.Tensor) -> torch.Tensor:
    return (a.float() @ b.float().mT) * (sa * sb)


def _dequantised(batch: int, axis: str = "") -> str:
    return (
        "x = DequantizeLinear<output_dtype = 10>(a, sa)"
        f"  w = DequantizeLinear<output_dtype = 10{axis}>(b, sb)"
        f"  t = Transpose<perm = {_perm(batch)}>(w)  y = MatMul(x, t)"
    )


def _text(inputs: Sequence[str], result: str, body: str) -> str:
    return f'<ir_version: 11, opset_import: ["": 23]> g ({", ".join(inputs)}) => ({result}) {{ {body} }}'


@cache
def _fused(model: str) -> OpSignature:
    found = fused_signatures(onnx.parser.parse_model(model), FORM, ops={})
    return max(found, key=lambda signature: len(signature.parts))


def _random(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    if dtype == torch.int8:
        return torch.randint(-128, 128, shape, device="cuda", dtype=dtype)
    if dtype == torch.float32:
        return torch.full(shape, SCALE, device="cuda")
    return torch.randn(shape, device="cuda").to(dtype)


def _dims(batch: int, *dims: int) -> tuple[int, ...]:
    return (batch, *dims) if batch > 1 else dims


def _perm(batch: int) -> list[int]:
    return [0, 2, 1] if batch > 1 else [1, 0]


def _bytes(dtype: torch.dtype) -> int:
    return torch.empty((), dtype=dtype).element_size()


def _size(shape: Sequence[int]) -> int:
    size = 1
    for extent in shape:
        size *= extent
    return size
