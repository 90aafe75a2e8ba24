"""Products of 8-bit operands: MatMulInteger, and products of dequantised tensors with what goes before and after them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from tactician.builtin_kernels.cuda.gemm_problem import GEMM_OPS, Bias, GemmProblem, gemm_problem
from tactician.builtin_kernels.cuda.indexing import ceil_div
from tactician.builtin_kernels.cuda.wgmma import INTEGERS, KINDS_8BIT
from tactician.signature import OpSignature, Part, TensorType
from tactician.tactics.fused_form import FusedForm

INTEGER_PRODUCT = "ai.onnx::MatMulInteger"
PRODUCTS = (*GEMM_OPS, INTEGER_PRODUCT)
FORMS = (
    FusedForm(
        PRODUCTS,
        epilogue=("ai.onnx::Add", "ai.onnx::Relu"),
        prologue=("ai.onnx::DequantizeLinear", "ai.onnx::Cast", "ai.onnx::Transpose"),
        longest=8,
    ),
)
"""Dequantised, or merely converted, operands, perhaps transposed; a sum with a bias, and Relu, behind the product."""

Scaling = Literal["none", "tensor", "columns"]
"""What an operand's elements are multiplied by: nothing, one number, or one for each column of the product."""

RESULTS = ("float16", "bfloat16", "float32")
LINE_ELEMENTS = 128
"""Elements of 8 bits in a row of 128 bytes."""
LARGEST = {"int8": 128, "uint8": 255}
"""The largest magnitude of an operand's element."""


@dataclass(frozen=True)
class Operand:
    """A stored operand: which input of the call it is, and what is done to it before the product."""

    input: int
    dtype: str
    is_transposed: bool = False
    scaling: Scaling = "none"
    scale: int | None = None
    """The input that it is scaled by."""
    scale_dtype: str = "float32"


@dataclass(frozen=True)
class EightBitProduct:
    """``d[i] = relu(alpha * scale_a * scale_b * a[i] @ b[i] + beta * c)``, with operands as they are stored.

    Parameters
    ----------
    gemm
        Sizes, and how b is stored; its ``dtype`` is of a float type where the result is of int32.
    bias
        The input that c is, where there is one.
    """

    gemm: GemmProblem
    a: Operand
    b: Operand
    result: str
    bias: int | None = None
    relu: bool = False

    @property
    def is_integer(self) -> bool:
        """Whether operands are integers, whose products are summed in int32."""
        return self.a.dtype in INTEGERS

    @property
    def has_raw_sums(self) -> bool:
        """Whether the result is the sums of integers themselves."""
        return self.result == "int32"

    @property
    def result_bytes(self) -> int:
        """Bytes of an element of the result."""
        return TensorType(self.result, ()).itemsize

    @property
    def boxes(self) -> int:
        """Boxes of k of 128 bytes."""
        return ceil_div(self.gemm.k, LINE_ELEMENTS)


def product_8bit(signature: OpSignature) -> EightBitProduct | str:
    """Return the product of 8-bit operands that ``signature`` asks for, or why it is none, in words."""
    if not signature.is_static:
        return "needs static shapes"
    if signature.body is not None and not signature.parts:
        return f"{signature.op_type} is no product"
    anchor = signature.anchor
    if anchor.op not in PRODUCTS:
        return f"{anchor.op_type} is no product"
    gemm = _sizes(anchor)
    if isinstance(gemm, str):
        return gemm
    places = next((p.inputs for p in signature.parts if p.role == "anchor"), tuple(range(len(anchor.inputs))))
    a, b = (_operand(signature, places[i], gemm.trans_b and i == 1, i == 1) for i in (0, 1))
    for operand in (a, b):
        if isinstance(operand, str):
            return operand
    assert isinstance(a, Operand)
    assert isinstance(b, Operand)
    if reason := _decline_types(anchor, a, b, gemm) or _decline_zero_points(anchor):
        return reason
    result = "int32" if anchor.op == INTEGER_PRODUCT else gemm.dtype
    bias = places[2] if gemm.bias != "none" else None
    if bias is not None and bias < 0:
        return "C is computed by the prologue"
    found = EightBitProduct(replace(gemm, trans_b=b.is_transposed), a, b, result, bias)
    return _with_epilogue(found, signature)


def _sizes(anchor: OpSignature) -> GemmProblem | str:
    """Return the product of the anchor's operands, before anything is known of how they are made."""
    if anchor.op != INTEGER_PRODUCT:
        return gemm_problem(anchor)
    floats = tuple(None if t is None else TensorType("float32", t.shape) for t in anchor.inputs[:2])
    return gemm_problem(
        replace(anchor, op="ai.onnx::MatMul", attributes=(), inputs=floats, constants=(None, None))
    )


def _operand(signature: OpSignature, place: int | None, is_transposed: bool, is_right: bool) -> Operand | str:
    """Follow an operand of the anchor through the prologue to the input that it is made of."""
    made = Operand(0, "", is_transposed)
    while place is not None and place < 0:
        part = signature.parts[-1 - place]
        step = _before(made, part, is_right)
        if isinstance(step, str):
            return step
        made, place = step, part.inputs[0]
    tensor = None if place is None else signature.input(place)
    if place is None or tensor is None:
        return "an operand is absent"
    if tensor.dtype not in KINDS_8BIT:
        return f"an operand is of {tensor.dtype}, not of 8 bits"
    return replace(made, input=place, dtype=tensor.dtype)


def _before(made: Operand, part: Part, is_right: bool) -> Operand | str:
    """Return ``made`` as it is before the operator ``part`` of the prologue."""
    call = part.signature
    source = call.inputs[0]
    if source is None:
        return "an operand is absent"
    if call.op_type == "Transpose":
        rank = len(source.dims)
        swapped = (*range(rank - 2), rank - 1, rank - 2)
        if rank < 2 or tuple(call.attribute("perm", range(rank)[::-1])) != swapped:
            return f"{call} is no transposition of matrices"
        return replace(made, is_transposed=not made.is_transposed)
    if call.op_type == "Cast":
        return made if source.dtype.startswith("float8") else f"{call} converts no fp8"
    return _dequantised(made, part, is_right)


def _dequantised(made: Operand, part: Part, is_right: bool) -> Operand | str:
    call, place = part.signature, part.inputs[1]
    source, scale = call.inputs[0], call.inputs[1]
    if source is None or scale is None or place is None or place < 0:
        return "a scale is computed by the prologue"
    if made.scale is not None:
        return "an operand is scaled twice"
    if call.attribute("block_size", 0):
        return "scales are of blocks"
    if not _is_zero(call, 2):
        return f"the zero point of {source} is not known to be 0"
    made = replace(made, scale=place, scale_dtype=scale.dtype, scaling="tensor")
    if scale.size == 1:
        return made
    rank = len(source.dims)
    columns = rank - 2 if made.is_transposed else rank - 1
    axis = int(call.attribute("axis", 1))
    if not is_right or scale.rank != 1 or rank != 2 or axis % rank != columns:
        return f"{scale} scales axis {axis} of {source}; what can differ is the scale of each column of the product"
    return replace(made, scaling="columns")


def _decline_types(anchor: OpSignature, a: Operand, b: Operand, gemm: GemmProblem) -> str | None:
    if (a.dtype in INTEGERS) != (b.dtype in INTEGERS):
        return f"element types {a.dtype} and {b.dtype} are not supported"
    if a.is_transposed or gemm.trans_a:
        return "a is stored with m contiguous; 8-bit operands need k so"
    for operand in (a, b):
        if operand.scale is not None and operand.scale_dtype not in RESULTS:
            return f"scales of {operand.scale_dtype} are not supported"
    if anchor.op == INTEGER_PRODUCT:
        return None
    if gemm.dtype not in RESULTS:
        return f"results of {gemm.dtype} are not supported"
    if a.dtype in INTEGERS and gemm.k * LARGEST[a.dtype] * LARGEST[b.dtype] >= 2**31:
        return f"sums of {gemm.k} products of {a.dtype} and {b.dtype} may be more than int32 holds"
    return None


def _decline_zero_points(anchor: OpSignature) -> str | None:
    """Return which zero point of MatMulInteger may not be 0."""
    if anchor.op != INTEGER_PRODUCT:
        return None
    wrong = [name for i, name in ((2, "a"), (3, "b")) if not _is_zero(anchor, i)]
    return f"the zero point of {wrong[0]} is not known to be 0" if wrong else None


def _is_zero(call: OpSignature, index: int) -> bool:
    """Return whether input ``index`` is absent, or known to hold zeros only."""
    known = call.known(index)
    return call.input(index) is None or (known is not None and not np.any(known.astype(np.float32)))


def _with_epilogue(product: EightBitProduct, signature: OpSignature) -> EightBitProduct | str:
    """Return ``product`` with the bias and the Relu that follow it."""
    for part in (p for p in signature.parts if p.role == "epilogue"):
        if product.relu:
            return f"{part.signature.op_type} follows Relu"
        if part.signature.op_type == "Relu":
            product = replace(product, relu=True)
            continue
        others = [p for p in part.inputs if p is not None and p >= 0]
        if product.bias is not None or len(others) != 1:
            return "adds more than one tensor"
        kind = _added(signature.input(others[0]), part.signature.outputs[0], product)
        if kind is None:
            return f"{signature.input(others[0])} is no bias of the product"
        product = replace(product, bias=others[0], gemm=replace(product.gemm, bias=kind, beta=1.0))
    if product.has_raw_sums and (product.bias is not None or product.relu):
        return "sums of integers are results themselves"
    return product


def _added(tensor: TensorType | None, result: TensorType | None, product: EightBitProduct) -> Bias | None:
    if tensor is None or result is None or tensor.dtype != product.result:
        return None
    if tensor.size == 1:
        return "scalar"
    if _without_ones(tensor.dims) == (product.gemm.n,) and tensor.dims[-1] == product.gemm.n:
        return "row"
    return "full" if tensor.dims == result.dims and product.gemm.batch == 1 else None


def _without_ones(dims: Sequence[int]) -> tuple[int, ...]:
    return tuple(d for d in dims if d != 1)
