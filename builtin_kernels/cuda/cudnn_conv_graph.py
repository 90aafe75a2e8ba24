"""A convolution described to cuDNN as a graph, of tensors with the channels second or innermost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from tactician.builtin_kernels.cuda.conv_problem import ConvProblem
from tactician.builtin_kernels.cuda.cudnn_plan import PlanGraph

X, W, BIAS, Y = 1, 2, 3, 4
"""Numbers of the tensors in every graph, by which a stored plan finds them again."""

_NEVER = (
    "NONDETERMINISTIC",
    "REDUCED_PRECISION_REDUCTION",
    "FFT",
    "WINOGRAD_TILE_6x6",
    "WINOGRAD_TILE_13x13",
)
_NEVER_IN_HALF = ("WINOGRAD", "WINOGRAD_TILE_4x4")
_TF32 = ("TENSOR_CORE", "DOWN_CONVERT_INPUTS")
"""Notes of plans that round float32 operands."""


class ConvGraph(PlanGraph):
    """A convolution with an optional bias.

    Parameters
    ----------
    problem
        Of one of ``DTYPES``.
    tf32
        Whether float32 operands are rounded; plans that round them and plans that don't are never mixed.
    context
        Where plans will run, as ``cudnn.pygraph`` takes it: a handle.
    channels_last
        Whether the channels of all tensors lie innermost.

    Raises
    ------
    LibraryError
        If the library has no plan.
    """

    what: ClassVar[str] = "convolution"

    def __init__(
        self, problem: ConvProblem, tf32: bool, context: Mapping[str, Any], channels_last: bool = False
    ) -> None:
        self._problem, self._tf32, self._channels_last = problem, tf32, channels_last
        super().__init__(problem.dtype, context)

    def _describe(self) -> None:
        problem, window, graph = self._problem, self._problem.window, self._graph
        # the library takes two or three spatial dimensions
        flat = (window.size[0], window.kernel[0], window.before[0], window.after[0]) == (1, 1, 0, 0)
        first = 1 if flat else 0
        channels, filters = problem.groups * problem.channels, problem.groups * problem.filters

        def tensor(uid: int, *dims: int) -> Any:
            return self._tensor(uid, dims, self._strides(dims))

        y = graph.conv_fprop(
            tensor(X, problem.batch, channels, *window.size[first:]),
            tensor(W, filters, problem.channels, *window.kernel[first:]),
            pre_padding=list(window.before[first:]),
            post_padding=list(window.after[first:]),
            stride=list(window.strides[first:]),
            dilation=list(window.dilations[first:]),
        )
        if problem.bias:
            y = graph.add(y, tensor(BIAS, 1, filters, *(1 for _ in window.size[first:])))
        dims = (problem.batch, filters, *window.out[first:])
        self._output(y, Y, dims, self._strides(dims))

    def _filter(self) -> None:
        self._graph.deselect_numeric_notes(self._notes(*_NEVER))
        if self._problem.dtype != "float32":
            self._graph.deselect_numeric_notes(self._notes(*_NEVER_IN_HALF))
        elif self._tf32:
            self._graph.select_numeric_notes(self._notes(_TF32[0]))
        else:
            self._graph.deselect_numeric_notes(self._notes(*_TF32))

    def _strides(self, dims: Sequence[int]) -> list[int]:
        """Return the elements from one of each dimension of [N, C, ...] to the next."""
        if not self._channels_last:
            return [math.prod(dims[i + 1 :]) for i in range(len(dims))]
        channels, spatial = dims[1], dims[2:]
        inner = [channels * math.prod(spatial[i + 1 :]) for i in range(len(spatial))]
        return [channels * math.prod(spatial), 1, *inner]
