"""Tactics for two-dimensional Conv: by patches and dot products, and directly."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from tactician import Device, Launch, OpSignature, Tactic

from tactician_numba.device import scratch
from tactician_numba.products import MULTIPLY_ADDS_PER_ELEMENT
from tactician_numba.tactic import (
    FLOAT_BYTES,
    NumbaTactic,
    dims_of,
    int64,
    own_device,
    parallel_choices,
)
from tactician_numba.window import AXES, Window


@dataclass(frozen=True)
class Problem:
    """One call; ``channels`` and ``filters`` are those of one group."""

    images: int
    groups: int
    channels: int
    filters: int
    window: Window

    @classmethod
    def of(cls, signature: OpSignature) -> Problem:
        """Return the problem of a Conv of images."""
        filters, channels, *kernel = dims_of(signature, 1)
        groups = int(signature.attribute("group", 1))
        images = dims_of(signature, 0)[0]
        return cls(images, groups, channels, filters // groups, Window.of(signature, kernel))

    @property
    def depth(self) -> int:
        """Length of each sum."""
        return self.channels * self.window.taps

    @property
    def multiply_adds(self) -> int:
        """Products of two numbers, padding included."""
        return self.images * self.groups * self.filters * self.window.pixels * self.depth


@dataclass(frozen=True)
class Convolution(NumbaTactic):
    """What both ways to convolve have in common."""

    op: ClassVar[str] = "ai.onnx::Conv"
    float_inputs: ClassVar[tuple[int, ...]] = (0, 1, 2)

    def decline_call(self, signature: OpSignature) -> str | None:
        axes = len(dims_of(signature, 0)) - 2
        return None if axes == AXES else f"images only, not {axes} spatial axes"

    @staticmethod
    def bias(inputs: Sequence[Any], none: np.ndarray) -> np.ndarray:
        """Return the bias out of a launch's inputs; where it is absent, ``none``: a zero for each filter."""
        return none if len(inputs) < 3 or inputs[2] is None else inputs[2].flat


@dataclass(frozen=True)
class PatchConv(Convolution):
    """Windows of some pixels are copied side by side, then multiplied with all filters.

    Parameters
    ----------
    tile
        Pixels of the output whose windows are copied at a time, for each thread.
    """

    tiles: ClassVar[tuple[int, ...]] = (64, 16)

    tile: int = 64

    @classmethod
    def candidates(cls, signature: OpSignature, device: Device) -> Iterable[Self]:
        return [cls(p, tile) for p in conv_choices(signature, device) for tile in cls.tiles]

    def decline_call(self, signature: OpSignature) -> str | None:
        return super().decline_call(signature) or (f"a tile of {self.tile} pixels" if self.tile < 1 else None)

    def workspace(self, signature: OpSignature, device: Device) -> int:
        parts = own_device(device).threads if self.parallel else 1
        return FLOAT_BYTES * parts * self.tile * Problem.of(signature).depth

    def prepare(self, signature: OpSignature, device: Device) -> Launch:
        from tactician_numba.products_kernels import patch_conv

        problem, compiled, own = Problem.of(signature), patch_conv.compile(), own_device(device)
        arrays = int64([problem.groups, problem.channels, problem.filters, self.tile])
        sizes, window = problem.window.sizes_array(), problem.window.window_array()
        tiles = problem.images * problem.groups * math.ceil(problem.window.pixels / self.tile)
        no_bias = np.zeros(problem.groups * problem.filters, np.float32)
        parts = own.threads if self.parallel else 1

        def launch(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any) -> None:
            x, w, y, bias = inputs[0].flat, inputs[1].flat, outputs[0].flat, self.bias(inputs, no_bias)
            rooms = scratch(workspace, parts)

            def piece(begin: int, end: int, part: int) -> None:
                compiled(x, w, bias, y, rooms[part], arrays, sizes, window, begin, end)

            own.split(piece, tiles, parallel=self.parallel)

        return launch


@dataclass(frozen=True)
class DirectConv(Convolution):
    """Rows of the image, scaled and shifted, are added up in the output: for few channels, as in depthwise ones."""

    @classmethod
    def candidates(cls, signature: OpSignature, device: Device) -> Iterable[Self]:
        return [cls(p) for p in conv_choices(signature, device)]

    def prepare(self, signature: OpSignature, device: Device) -> Launch:
        from tactician_numba.products_kernels import direct_conv

        problem, compiled, split = Problem.of(signature), direct_conv.compile(), own_device(device).split
        arrays = int64([problem.groups, problem.channels, problem.filters])
        sizes, window = problem.window.sizes_array(), problem.window.window_array()
        filters = problem.groups * problem.filters
        no_bias = np.zeros(filters, np.float32)

        def launch(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any) -> None:
            x, w, y, bias = inputs[0].flat, inputs[1].flat, outputs[0].flat, self.bias(inputs, no_bias)

            def piece(begin: int, end: int, part: int) -> None:
                compiled(x, w, bias, y, arrays, sizes, window, begin, end)

            split(piece, problem.images * filters, parallel=self.parallel)

        return launch


def conv_choices(signature: OpSignature, device: Device) -> Sequence[bool]:
    """Return the values of ``parallel`` worth timing."""
    if not signature.is_static or len(dims_of(signature, 0)) != 2 + AXES:
        return (False,)
    work = Problem.of(signature).multiply_adds // MULTIPLY_ADDS_PER_ELEMENT
    return parallel_choices(signature, device, work)


TACTICS: list[type[Tactic]] = [PatchConv, DirectConv]
