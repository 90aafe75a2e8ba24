"""Matrix products by NumPy's BLAS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from tactician.builtin_kernels.cpu.numpy_tactic import (
    NARROW,
    STEPWISE,
    BlasTactic,
    Kernel,
    decline_types,
    dtype_of,
    rank_of,
    wide,
)
from tactician.plugins.target import Device
from tactician.signature import OpSignature
from tactician.tactics.tactic import Tactic


@dataclass(frozen=True)
class NumpyMatMul(BlasTactic):
    """``MatMul`` by ``numpy.matmul``: BLAS for each matrix of a batch."""

    op: ClassVar[str | tuple[str, ...]] = "ai.onnx::MatMul"

    def decline(self, signature: OpSignature, device: Device) -> str | None:
        """Decline integers, which NumPy multiplies without BLAS."""
        return decline_types(signature, STEPWISE, (0, 1))

    def kernel(self, signature: OpSignature, device: Device) -> Kernel:
        """Return the product, in place for fp32 and fp64; a batch times one matrix is one product."""
        narrow = dtype_of(signature) in NARROW
        joined = rank_of(signature, 1) == 2 and (rank_of(signature) or 0) > 2

        def kernel(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any) -> list[Any]:
            a, b = wide(inputs[0]), wide(inputs[1])
            out = None if narrow else outputs[0]
            if not joined:
                return [np.matmul(a, b, out=out) if out is None or out.ndim else np.matmul(a, b)]
            shape = (*a.shape[:-1], b.shape[-1])
            rows = np.matmul(
                a.reshape(-1, a.shape[-1]), b, out=None if out is None else out.reshape(-1, shape[-1])
            )
            return [rows.reshape(shape) if out is None else out]

        return kernel


@dataclass(frozen=True)
class NumpyGemm(BlasTactic):
    """``Gemm`` by ``numpy.matmul``, scaling and adding in place."""

    op: ClassVar[str | tuple[str, ...]] = "ai.onnx::Gemm"

    def decline(self, signature: OpSignature, device: Device) -> str | None:
        """Decline integers, which NumPy multiplies without BLAS."""
        return decline_types(signature, STEPWISE)

    def kernel(self, signature: OpSignature, device: Device) -> Kernel:
        """Return alpha A B + beta C, with A and B transposed as asked."""
        alpha, beta = float(signature.attribute("alpha", 1.0)), float(signature.attribute("beta", 1.0))
        transpose_a, transpose_b = (
            bool(signature.attribute("transA", 0)),
            bool(signature.attribute("transB", 0)),
        )
        narrow = dtype_of(signature) in NARROW

        def kernel(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any) -> list[Any]:
            a, b = wide(inputs[0]), wide(inputs[1])
            c = wide(inputs[2]) if len(inputs) > 2 and inputs[2] is not None else None
            result = np.matmul(
                a.T if transpose_a else a, b.T if transpose_b else b, out=None if narrow else outputs[0]
            )
            if alpha != 1:
                np.multiply(result, result.dtype.type(alpha), out=result)
            if c is not None and beta:
                np.add(result, c if beta == 1 else c * c.dtype.type(beta), out=result)
            return [result]

        return kernel


TACTICS: list[type[Tactic]] = [NumpyMatMul, NumpyGemm]
