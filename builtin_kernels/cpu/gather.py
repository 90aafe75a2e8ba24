"""Elements by index with NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from tactician.builtin_kernels.cpu.numpy_tactic import Kernel, NumpyTactic
from tactician.plugins.target import Device
from tactician.signature import OpSignature
from tactician.tactics.tactic import Tactic


@dataclass(frozen=True)
class NumpyGather(NumpyTactic):
    """Slices of an array by their index along an axis; a negative index counts from the end."""

    op: ClassVar[str | tuple[str, ...]] = "ai.onnx::Gather"

    def kernel(self, signature: OpSignature, device: Device) -> Kernel:
        """Return ``numpy.take``, which checks every index."""
        axis = int(signature.attribute("axis", 0))

        def kernel(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any) -> list[Any]:
            # with an output, "raise" would go through a buffer; the result is copied once either way
            return [np.take(inputs[0], inputs[1], axis=axis)]

        return kernel


@dataclass(frozen=True)
class NumpyGatherElements(NumpyTactic):
    """Single elements by their index along an axis."""

    op: ClassVar[str | tuple[str, ...]] = "ai.onnx::GatherElements"

    def kernel(self, signature: OpSignature, device: Device) -> Kernel:
        """Return ``numpy.take_along_axis`` on the part of the data that the indices span."""
        axis = int(signature.attribute("axis", 0))

        def kernel(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any) -> list[Any]:
            data, indices = inputs
            # other axes of the indices may be shorter than the data's
            part = tuple(slice(n) for n in indices.shape[: axis % data.ndim])
            rest = tuple(slice(n) for n in indices.shape[axis % data.ndim + 1 :])
            return [np.take_along_axis(data[(*part, slice(None), *rest)], indices, axis=axis)]

        return kernel


TACTICS: list[type[Tactic]] = [NumpyGather, NumpyGatherElements]
