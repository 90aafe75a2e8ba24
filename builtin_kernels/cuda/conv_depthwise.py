"""Depthwise convolution: each channel has filters of its own, windows slide through registers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from tactician.builtin_kernels.cuda.conv_direct import conv_launch
from tactician.builtin_kernels.cuda.conv_problem import ConvProblem, fused_conv_problem
from tactician.builtin_kernels.cuda.conv_stages import conv_source, nothing
from tactician.builtin_kernels.cuda.epilogue import epilogue_form
from tactician.builtin_kernels.cuda.indexing import MAX_INDEX_32, ceil_div
from tactician.signature import OpSignature
from tactician.tactics.fused_form import FusedForm
from tactician.tactics.tactic import Launch, Tactic

MAX_PRODUCTS = 512
"""Products of one thread: they are written out one by one."""

MAX_HELD = 96
"""Weights, sums and elements that a thread may hold in registers."""


@dataclass(frozen=True)
class ConvDepthwise(Tactic):
    """A thread makes a few neighbouring outputs of one channel and loads each element under their windows once."""

    op: ClassVar[str] = "ai.onnx::Conv"
    target: ClassVar[str] = "cuda"
    fused_forms: ClassVar[tuple[FusedForm, ...]] = (epilogue_form("ai.onnx::Conv"),)

    rows: int = 4
    """Output rows of a thread."""
    columns: int = 1
    """Output columns of a thread."""
    threads: int = 128
    """Threads of a block."""

    @classmethod
    def candidates(cls, signature: OpSignature, device: Any) -> Iterable[Self]:
        """Yield columns of outputs, which neighbouring threads load side by side, and small squares."""
        problem = fused_conv_problem(signature)
        if isinstance(problem, str) or problem.channels != 1:
            yield cls()
            return
        _, height, width = problem.window.out
        for rows, columns in ((4, 1), (8, 1), (2, 2), (4, 2), (2, 1), (1, 4), (1, 2), (1, 1)):
            tactic = cls(rows, columns)
            wasted = rows >= 2 * height or columns >= 2 * width
            if (not wasted and tactic._too_large(problem) is None) or (rows, columns) == (1, 1):
                yield tactic

    def decline(self, signature: OpSignature, device: Any) -> str | None:
        """Decline what has groups of several channels, three dimensions, or windows too large for registers."""
        problem = fused_conv_problem(signature)
        if isinstance(problem, str):
            return problem
        if problem.channels != 1:
            return f"groups have {problem.channels} channels, not one"
        window = problem.window
        if (window.size[0], window.kernel[0], window.out[0]) != (1, 1, 1) or window.leaves()[0]:
            return "windows reach over three dimensions"
        if self._blocks(problem) > MAX_INDEX_32:
            return "needs more blocks than a grid has"
        return self._too_large(problem)

    def prepare(self, signature: OpSignature, device: Any) -> Launch:
        """Compile the kernel for this shape."""
        problem = fused_conv_problem(signature)
        assert isinstance(problem, ConvProblem), problem
        if problem.is_empty:
            return nothing
        macros: dict[str, int | str] = {
            "ROWS": f"{self.rows}u",
            "COLUMNS": f"{self.columns}u",
            "THREADS": f"{self.threads}u",
        }
        kernel = device.compile(conv_source("conv_depthwise", problem, macros, "conv_depthwise.cu"))
        return conv_launch(kernel, self._blocks(problem), self.threads, problem)

    def _blocks(self, problem: ConvProblem) -> int:
        _, height, width = problem.window.out
        tiles = ceil_div(height, self.rows) * ceil_div(width, self.columns)
        return ceil_div(problem.batch * problem.groups * problem.filters * tiles, self.threads)

    def _too_large(self, problem: ConvProblem) -> str | None:
        window, outputs = problem.window, self.rows * self.columns
        row = (self.columns - 1) * window.strides[2] + window.spans()[2]
        held = (window.taps + outputs + min(row, window.kernel[2] * self.columns)) * (
            2 if problem.dtype == "float64" else 1
        )
        if window.taps * outputs > MAX_PRODUCTS or held > MAX_HELD or row > MAX_PRODUCTS:
            return (
                f"windows of {window.kernel[1:]} for {outputs} outputs are too large for a thread's registers"
            )
        return None


TACTICS: list[type[Tactic]] = [ConvDepthwise]
