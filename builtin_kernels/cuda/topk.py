"""TopK for small k: as many rounds of a search for the next best."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from tactician.builtin_kernels.cuda.kernel_text import specialise
from tactician.builtin_kernels.cuda.pointwise_ops import C_TYPES, FLOAT_TYPES
from tactician.signature import OpSignature
from tactician.tactics.tactic import Launch, Tactic

LARGEST_K = 128


@dataclass(frozen=True)
class TopK(Tactic):
    """One block for each line."""

    op: ClassVar[str] = "ai.onnx::TopK"
    target: ClassVar[str] = "cuda"

    threads: int = 256

    @classmethod
    def candidates(cls, signature: OpSignature, device: Any) -> Iterable[Self]:
        """Yield blocks for short and for long lines."""
        yield cls(256)
        yield cls(64)
        yield cls(1024)

    def decline(self, signature: OpSignature, device: Any) -> str | None:
        """Decline dynamic shapes, large k and unusual element types."""
        if not signature.is_static:
            return "needs static shapes"
        tensor = signature.input(0)
        if tensor is None or tensor.dtype not in C_TYPES or tensor.dtype == "bool":
            return f"element type {tensor and tensor.dtype} is not supported"
        if len(signature.outputs) != 2 or None in signature.outputs:
            return "needs both outputs"
        k = self._k(signature)
        return (
            f"k = {k} is more than {LARGEST_K}; the search would read each line that often"
            if k > LARGEST_K
            else None
        )

    def prepare(self, signature: OpSignature, device: Any) -> Launch:
        """Compile the kernel for this shape."""
        tensor = signature.inputs[0]
        assert tensor is not None
        d = int(signature.attribute("axis", -1)) % len(tensor.dims)
        inner, k = math.prod(tensor.dims[d + 1 :]), self._k(signature)
        lines = math.prod(tensor.dims[:d]) * inner
        if lines * k == 0:
            return lambda inputs, outputs, workspace, stream: None
        double = tensor.dtype == "float64"
        accumulator = ("double" if double else "float") if tensor.dtype in FLOAT_TYPES else "i64"
        if tensor.dtype == "uint64":
            accumulator = "u64"
        types = {"T": C_TYPES[tensor.dtype], "A": accumulator}
        macros: dict[str, int | str] = {
            "LENGTH": f"{tensor.dims[d]}ull",
            "INNER": f"{inner}ull",
            "K": f"{k}u",
            "LARGEST": int(signature.attribute("largest", 1)),
            "THREADS": self.threads,
        }
        launch = device.compile(specialise("topk", "topk.cu", types, macros, "rows.cuh")).launch
        threads = self.threads

        def run(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any) -> None:
            launch(stream, lines, threads, inputs[0], outputs[0], outputs[1])

        return run

    @staticmethod
    def _k(signature: OpSignature) -> int:
        output = signature.outputs[0]
        assert output is not None
        return output.dims[int(signature.attribute("axis", -1)) % len(output.dims)]


TACTICS: list[type[Tactic]] = [TopK]
