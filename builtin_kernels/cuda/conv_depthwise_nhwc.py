"""Depthwise convolution of channels-last tensors: neighbouring threads have neighbouring channels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar, Self

import numpy as np
from tactician.builtin_kernels.cuda.conv_direct import conv_launch
from tactician.builtin_kernels.cuda.conv_problem import ConvProblem
from tactician.builtin_kernels.cuda.conv_stages import conv_source, nothing
from tactician.builtin_kernels.cuda.conv_wgmma import fused_nhwc_problem
from tactician.builtin_kernels.cuda.epilogue import epilogue_form
from tactician.builtin_kernels.cuda.indexing import MAX_INDEX_32, ceil_div
from tactician.builtin_kernels.nhwc import CONV
from tactician.signature import OpSignature, numpy_dtype
from tactician.tactics.fused_form import FusedForm
from tactician.tactics.tactic import Launch, Tactic

MAX_PRODUCTS = 1024
"""Products of one thread: they are written out one by one."""
MAX_HELD = 160
"""Registers of weights, sums and elements that a thread may hold."""
VECTOR_BYTES = 16
WORD_BYTES = 4
ROWS, COLUMNS = (1, 2, 4), (1, 2, 4, 8)
BUSY = 4
"""Blocks on a multiprocessor from which on larger tiles come first."""


@dataclass(frozen=True)
class ConvDepthwiseNhwc(Tactic):
    """A thread makes a few neighbouring outputs of a few channels and loads each element under their windows once."""

    op: ClassVar[str] = CONV
    target: ClassVar[str] = "cuda"
    fused_forms: ClassVar[tuple[FusedForm, ...]] = (epilogue_form(CONV),)

    vector: int = 8
    """Channels of a thread."""
    rows: int = 1
    """Output rows of a thread."""
    columns: int = 4
    """Output columns of a thread."""
    threads: int = 128
    """Threads of a block."""

    @classmethod
    def candidates(cls, signature: OpSignature, device: Any) -> Iterable[Self]:
        """Yield tiles of outputs, the largest first that leave no multiprocessor idle."""
        problem = fused_nhwc_problem(signature)
        found = list(cls.search_space(signature, device))
        if isinstance(problem, ConvProblem) and not problem.is_empty:
            blocks = BUSY * int(device.facts["multiprocessors"])

            def order(tactic: Self) -> tuple[bool, float]:
                return tactic._blocks(problem) < blocks, tactic._loads(problem)

            found = sorted(found, key=order)[:12]
        yield from found

    @classmethod
    def search_space(cls, signature: OpSignature, device: Any) -> Iterable[Self]:
        """Yield every vector and tile that fits into a thread's registers."""
        problem = fused_nhwc_problem(signature)
        if isinstance(problem, str) or problem.channels * problem.filters != 1:
            yield cls()
            return
        widest = VECTOR_BYTES // numpy_dtype(problem.dtype).itemsize
        _, height, width = problem.window.out
        made = [
            cls(vector, rows, columns)
            for vector, rows, columns in product((widest, widest // 2, 1), ROWS, COLUMNS)
            if vector and rows < 2 * height and columns < 2 * width
        ]
        fitting = [t for t in made if t.decline(signature, device) is None]
        yield from [t for t in fitting if t.vector > 1] or fitting or [cls(1, 1, 1)]

    def decline(self, signature: OpSignature, device: Any) -> str | None:
        """Decline what has groups of several channels or filters, other dimensions, and windows too large for registers."""
        problem = fused_nhwc_problem(signature)
        if isinstance(problem, str):
            return problem
        if problem.channels != 1 or problem.filters != 1:
            return f"groups have {problem.channels} channels and {problem.filters} filters, not one of each"
        window = problem.window
        if (window.size[0], window.kernel[0], window.out[0]) != (1, 1, 1) or window.leaves()[0]:
            return "windows reach over three dimensions"
        if problem.groups % self.vector:
            return f"{problem.groups} channels are no whole vectors of {self.vector}"
        if self.vector * numpy_dtype(problem.dtype).itemsize > VECTOR_BYTES:
            return f"vectors of {self.vector} are more than {VECTOR_BYTES} bytes"
        if self._blocks(problem) > MAX_INDEX_32:
            return "needs more blocks than a grid has"
        return self._too_large(problem)

    def prepare(self, signature: OpSignature, device: Any) -> Launch:
        """Compile the kernel for this shape."""
        problem = fused_nhwc_problem(signature)
        assert isinstance(problem, ConvProblem), problem
        if problem.is_empty:
            return nothing
        macros: dict[str, int | str] = {
            "VECTOR": f"{self.vector}u",
            "ROWS": f"{self.rows}u",
            "COLUMNS": f"{self.columns}u",
            "THREADS": f"{self.threads}u",
        }
        kernel = device.compile(conv_source("conv_depthwise_nhwc", problem, macros, "conv_depthwise_nhwc.cu"))
        return conv_launch(kernel, self._blocks(problem), self.threads, problem)

    def _blocks(self, problem: ConvProblem) -> int:
        _, height, width = problem.window.out
        tiles = ceil_div(height, self.rows) * ceil_div(width, self.columns)
        return ceil_div(problem.batch * tiles * (problem.groups // self.vector), self.threads)

    def _touched(self, problem: ConvProblem) -> tuple[int, int]:
        """Return the input rows and columns under a thread's windows."""
        window = problem.window
        rows, columns = (
            (n - 1) * s for n, s in zip((self.rows, self.columns), window.strides[1:], strict=True)
        )
        return rows + window.spans()[1], columns + window.spans()[2]

    def _loads(self, problem: ConvProblem) -> float:
        """Return instructions that load, for each output."""
        return float(np.prod(self._touched(problem))) / (self.rows * self.columns * self.vector)

    def _too_large(self, problem: ConvProblem) -> str | None:
        taps, outputs = problem.window.taps, self.rows * self.columns
        size = numpy_dtype(problem.dtype).itemsize
        row = self._touched(problem)[1]
        words = ceil_div(self.vector * size, WORD_BYTES)
        held = (taps + row) * words + outputs * self.vector * max(1, size // WORD_BYTES)
        if taps * outputs * self.vector > MAX_PRODUCTS or held > MAX_HELD:
            return (
                f"windows of {problem.window.kernel[1:]} for {outputs} outputs of {self.vector} channels are too "
                "large for a thread's registers"
            )
        return None


TACTICS: list[type[Tactic]] = [ConvDepthwiseNhwc]
