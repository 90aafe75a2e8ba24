"""Batch normalisation with given statistics: one pass over the tensor."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from tactician.builtin_kernels.cuda.compiler import KernelSource, read_source
from tactician.builtin_kernels.cuda.conv_problem import FLOATS
from tactician.builtin_kernels.cuda.conv_stages import nothing
from tactician.builtin_kernels.cuda.indexing import ceil_div
from tactician.builtin_kernels.cuda.kernel_text import specialise
from tactician.builtin_kernels.cuda.row_geometry import row_vector
from tactician.signature import OpSignature
from tactician.tactics.tactic import Launch, Tactic

_INPUTS = ("x", "scale", "bias", "mean", "variance")


@dataclass(frozen=True)
class BatchNorm(Tactic):
    """Threads take vectors of neighbouring elements."""

    op: ClassVar[str] = "ai.onnx::BatchNormalization"
    target: ClassVar[str] = "cuda"

    threads: int = 256
    """Threads of a block."""
    steps: int = 1
    """Vectors of a thread."""

    @classmethod
    def candidates(cls, signature: OpSignature, device: Any) -> Iterable[Self]:
        """Yield one and several vectors for each thread."""
        return [cls(256, 1), cls(256, 4)]

    def decline(self, signature: OpSignature, device: Any) -> str | None:
        """Decline training, statistics of each element, and element types that are no floats."""
        if not signature.is_static:
            return "needs static shapes"
        if signature.body is not None or len(signature.inputs) < 5:
            return "is for single operators with five inputs"
        if any(t is not None for t in signature.outputs[1:]) or signature.attribute("training_mode", 0):
            return "statistics are not computed"
        if not signature.attribute("spatial", 1):
            return "statistics of each element are not supported"
        x = signature.input(0)
        if x is None or len(x.dims) < 2:
            return f"{x} has no channels"
        for name, tensor in zip(_INPUTS, signature.inputs, strict=False):
            if tensor is None or tensor.dtype not in FLOATS:
                return f"{name} is {tensor}"
            if name != "x" and tensor.dims != (x.dims[1],):
                return f"{name} is {tensor}, not one number for each of {x.dims[1]} channels"
        kinds = [t.dtype for t in signature.inputs if t is not None]
        if kinds[1] != kinds[2] or kinds[3] != kinds[4]:
            return f"element types {', '.join(kinds)} don't belong together"
        return None

    def prepare(self, signature: OpSignature, device: Any) -> Launch:
        """Compile the kernel for this shape."""
        x = signature.inputs[0]
        assert x is not None
        if x.size == 0:
            return nothing
        kernel = device.compile(self._source(signature))
        vectors = x.size // row_vector(math.prod(x.dims[2:]), x.itemsize)
        grid = ceil_div(vectors, self.threads * self.steps)

        def run(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any) -> None:
            kernel.launch(stream, grid, self.threads, *inputs[:5], outputs[0])

        return run

    def _source(self, signature: OpSignature) -> KernelSource:
        kinds = [t.dtype for t in signature.inputs if t is not None]
        dims, itemsize = next((t.dims, t.itemsize) for t in signature.inputs if t is not None)
        size = math.prod(dims[2:])
        macros: dict[str, int | str] = {
            "IMAGES": f"{dims[0]}u",
            "CHANNELS": f"{dims[1]}u",
            "SIZE": f"{size}u",
            "VECTOR": f"{row_vector(size, itemsize)}u",
            "THREADS": f"{self.threads}u",
            "STEPS": f"{self.steps}u",
            # an attribute is of float32; hexadecimal: every bit arrives
            "EPSILON": float(np.float32(signature.attribute("epsilon", 1e-5))).hex(),
        }
        if kinds[0] == "float64":
            macros["DOUBLE"] = 1
        types = {"T": FLOATS[kinds[0]], "P": FLOATS[kinds[1]], "S": FLOATS[kinds[3]]}
        head = specialise("batch_norm", "wide.cuh", types, macros)
        return KernelSource("\n".join([head.text, read_source("batch_norm.cu")]), "batch_norm")


TACTICS: list[type[Tactic]] = [BatchNorm]
