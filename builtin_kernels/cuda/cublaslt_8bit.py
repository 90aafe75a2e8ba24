"""Products of 8-bit integers and of fp8 by cuBLASLt: every algorithm that its heuristic proposes."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from tactician.builtin_kernels.cuda.cublaslt import PROPOSALS, Algorithm, unknown_form
from tactician.builtin_kernels.cuda.cublaslt_plan import EightBit, LibraryError, MatmulPlan
from tactician.builtin_kernels.cuda.product_8bit import FORMS, PRODUCTS, EightBitProduct, product_8bit
from tactician.signature import OpSignature
from tactician.tactics.tactic import Launch, Tactic


@dataclass(frozen=True)
class CublasLt8bit(Algorithm, Tactic):
    """One algorithm of cuBLASLt: sums of int8 as int32, or products of fp8 with a scale for each operand."""

    op: ClassVar[tuple[str, ...]] = PRODUCTS
    target: ClassVar[str] = "cuda"
    library: ClassVar[str] = "cublaslt"
    fused_forms = FORMS

    fast: bool = False
    """Whether tensor cores add products of fp8 up alone, in less than float32."""

    @classmethod
    def candidates(cls, signature: OpSignature, device: Any) -> Iterable[Self]:
        """Yield what the heuristic proposes, best first; for fp8 with fast sums too."""
        product = _product(signature, device)
        if isinstance(product, str):
            yield cls()
            return
        for fast in (False,) if product.is_integer else (True, False):
            plan = _plan(product, fast, device)
            yield from {cls(**settings, fast=fast): None for settings in plan.proposals(PROPOSALS)}

    def decline(self, signature: OpSignature, device: Any) -> str | None:
        """Decline without the library, what it has no form for, and algorithms that don't fit the shape."""
        product = _product(signature, device)
        if isinstance(product, str):
            return product
        if self.fast and product.is_integer:
            return f"fast sums are for fp8, not for {product.a.dtype}"
        try:
            _plan(product, self.fast, device).configure(self.settings())
        except LibraryError as error:
            return str(error)
        return None

    def workspace(self, signature: OpSignature, device: Any) -> int:
        """Return the scratch memory that the algorithm asks for, in bytes."""
        return self._configured(signature, device).workspace_bytes

    def numerics(self, signature: OpSignature) -> frozenset[str]:
        """Return whether sums are kept in less than float32."""
        return frozenset({"reduced-accumulator"} if self.fast else ())

    def prepare(self, signature: OpSignature, device: Any) -> Launch:
        """Rebuild the algorithm from the fields; nothing is compiled."""
        product = product_8bit(signature)
        assert isinstance(product, EightBitProduct), product
        plan = self._configured(signature, device)
        lock = threading.Lock()  # the plan keeps bias and scales between two calls of the library
        a, b = product.a.input, product.b.input
        others = product.bias, product.a.scale, product.b.scale

        def run(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any) -> None:
            bias, *scales = (0 if i is None else inputs[i].pointer for i in others)
            scratch = 0 if workspace is None else workspace.pointer
            result = outputs[0].pointer
            with lock:
                left, right = inputs[a].pointer, inputs[b].pointer
                plan.run(left, right, bias, result, scratch, int(stream.handle), (scales[0], scales[1]))

        return run

    def _configured(self, signature: OpSignature, device: Any) -> MatmulPlan:
        product = product_8bit(signature)
        assert isinstance(product, EightBitProduct), product
        plan = _plan(product, self.fast, device)
        plan.configure(self.settings())
        return plan


TACTICS: list[type[Tactic]] = [CublasLt8bit]


def _plan(product: EightBitProduct, fast: bool, device: Any) -> MatmulPlan:
    scaled = product.a.scale is not None, product.b.scale is not None
    types = EightBit(product.a.dtype, product.b.dtype, product.result, scaled, product.relu, fast)
    return MatmulPlan(product.gemm, False, device, types)


def _product(signature: OpSignature, device: Any) -> EightBitProduct | str:
    """Return the product in a form that the library has, or why there is none here."""
    product = product_8bit(signature)
    if isinstance(product, str):
        return product
    if product.is_integer:
        if product.a.dtype != "int8" or product.b.dtype != "int8" or not product.has_raw_sums:
            return f"the library multiplies int8 to int32, not {product.a.dtype} and {product.b.dtype} to {product.result}"
    elif reason := _decline_fp8(product):
        return reason
    return unknown_form(product.gemm, device) or product


def _decline_fp8(product: EightBitProduct) -> str | None:
    for operand in (product.a, product.b):
        if operand.scaling == "columns":
            return "each column has a scale; the library takes one for each operand"
        if operand.scale is not None and operand.scale_dtype != "float32":
            return f"a scale is of {operand.scale_dtype}; the library takes float32"
    if product.bias is not None and product.result == "float32":
        return "adds no bias to results of float32"
    return None
