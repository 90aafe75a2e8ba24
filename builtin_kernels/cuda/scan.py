"""CumSum: one warp for each line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from tactician.builtin_kernels.cuda.indexing import ceil_div
from tactician.builtin_kernels.cuda.kernel_text import specialise
from tactician.builtin_kernels.cuda.pointwise_ops import C_TYPES, FLOAT_TYPES
from tactician.signature import OpSignature
from tactician.tactics.tactic import Launch, Tactic


@dataclass(frozen=True)
class CumulativeSum(Tactic):
    """A running sum along one axis."""

    op: ClassVar[str] = "ai.onnx::CumSum"
    target: ClassVar[str] = "cuda"

    threads: int = 256

    def decline(self, signature: OpSignature, device: Any) -> str | None:
        """Decline dynamic shapes, an unknown axis and unusual element types."""
        if not signature.is_static:
            return "needs static shapes"
        if signature.body is not None:
            return "is for single operators"
        tensor = signature.input(0)
        if tensor is None or tensor.dtype not in C_TYPES or tensor.dtype == "bool":
            return f"element type {tensor and tensor.dtype} is not supported"
        return "the axis is not a known constant" if signature.known(1) is None else None

    def prepare(self, signature: OpSignature, device: Any) -> Launch:
        """Compile the kernel for this shape."""
        tensor, axis = signature.inputs[0], signature.known(1)
        assert tensor is not None
        assert axis is not None
        d = int(axis.reshape(-1)[0]) % len(tensor.dims)
        inner = math.prod(tensor.dims[d + 1 :])
        lines = math.prod(tensor.dims[:d]) * inner
        if lines * tensor.dims[d] == 0:
            return lambda inputs, outputs, workspace, stream: None
        single = "double" if tensor.dtype == "float64" else "float"
        types = {"T": C_TYPES[tensor.dtype], "A": single if tensor.dtype in FLOAT_TYPES else "i64"}
        macros: dict[str, int | str] = {
            "LINES": f"{lines}ull",
            "LENGTH": f"{tensor.dims[d]}ull",
            "INNER": f"{inner}ull",
            "EXCLUSIVE": int(signature.attribute("exclusive", 0)),
            "REVERSE": int(signature.attribute("reverse", 0)),
            "THREADS": self.threads,
        }
        launch = device.compile(specialise("scan", "scan.cu", types, macros, "rows.cuh")).launch
        grid, threads = ceil_div(lines, self.threads // 32), self.threads

        def run(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any) -> None:
            launch(stream, grid, threads, inputs[0], outputs[0])

        return run


TACTICS: list[type[Tactic]] = [CumulativeSum]
