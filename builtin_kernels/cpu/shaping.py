"""Operators that change no element: new shapes, new types, and shapes as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from tactician.builtin_kernels.cpu.numpy_tactic import (
    FLOATS,
    INTEGERS,
    Kernel,
    NumpyTactic,
    decline_types,
    integers,
)
from tactician.plugins.target import Device
from tactician.signature import OpSignature
from tactician.tactics.tactic import Tactic


@dataclass(frozen=True)
class NumpyReshape(NumpyTactic):
    """A copy under another shape."""

    op: ClassVar[str | tuple[str, ...]] = tuple(
        f"ai.onnx::{name}" for name in ("Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")
    )

    def decline(self, signature: OpSignature, device: Device) -> str | None:
        """Decline sequences and optionals."""
        tensor = signature.input(0)
        return None if tensor is not None and tensor.is_tensor else "not a tensor"

    def kernel(self, signature: OpSignature, device: Device) -> Kernel:
        """Return a plain copy into the output; without one, the new shape is worked out at the call."""

        def kernel(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any) -> list[Any]:
            out = outputs[0]
            if out is not None:
                np.copyto(out, inputs[0].reshape(out.shape))
                return [out]
            return [inputs[0].reshape(_new_shape(signature, inputs)).copy()]

        return kernel


@dataclass(frozen=True)
class NumpyCast(NumpyTactic):
    """Elements in another type."""

    op: ClassVar[str | tuple[str, ...]] = ("ai.onnx::Cast", "ai.onnx::CastLike")

    def decline(self, signature: OpSignature, device: Device) -> str | None:
        """Decline text and the small types whose rounding and saturation NumPy does not know."""
        result = signature.outputs[0]
        plain = (*FLOATS, *INTEGERS, "bool")
        if result is None or result.dtype not in plain:
            return f"type {result.dtype if result else '?'} of the output is not among {', '.join(plain)}"
        return decline_types(signature, plain)

    def kernel(self, signature: OpSignature, device: Device) -> Kernel:
        """Return ``astype``, in place."""
        result = signature.outputs[0]
        assert result is not None  # decline() asked
        dtype = result.numpy_dtype

        def kernel(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any) -> list[Any]:
            if outputs[0] is None:
                return [inputs[0].astype(dtype)]
            np.copyto(outputs[0], inputs[0], casting="unsafe")
            return [outputs[0]]

        return kernel


@dataclass(frozen=True)
class NumpyShape(NumpyTactic):
    """The dimensions of an array, or the number of its elements, as data."""

    op: ClassVar[str | tuple[str, ...]] = ("ai.onnx::Shape", "ai.onnx::Size")

    def decline(self, signature: OpSignature, device: Device) -> str | None:
        """Decline sequences and optionals."""
        tensor = signature.input(0)
        return None if tensor is not None and tensor.is_tensor else "not a tensor"

    def kernel(self, signature: OpSignature, device: Device) -> Kernel:
        """Return the dimensions from ``start`` to ``end``."""
        if signature.op_type == "Size":
            return lambda inputs, outputs, _: [np.array(inputs[0].size, np.int64)]
        part = slice(signature.attribute("start"), signature.attribute("end"))
        return lambda inputs, outputs, _: [np.array(inputs[0].shape[part], np.int64)]


def _new_shape(signature: OpSignature, inputs: Sequence[Any]) -> list[int]:
    shape = list(inputs[0].shape)
    match signature.op_type:
        case "Flatten":
            axis = int(signature.attribute("axis", 1))
            axis += len(shape) if axis < 0 else 0
            rows = int(np.prod(shape[:axis], dtype=np.int64))
            return [rows, int(np.prod(shape[axis:], dtype=np.int64))]
        case "Squeeze":
            axes = integers(signature, inputs, "axes", 1)
            gone = {a % len(shape) for a in axes} if axes else {i for i, n in enumerate(shape) if n == 1}
            return [n for i, n in enumerate(shape) if i not in gone]
        case "Unsqueeze":
            axes = integers(signature, inputs, "axes", 1) or []
            rank = len(shape) + len(axes)
            added = {a % rank for a in axes}
            left = iter(shape)
            return [1 if i in added else next(left) for i in range(rank)]
        case "Reshape":
            wanted = integers(signature, inputs, "shape", 1) or []
            keep_zero = bool(signature.attribute("allowzero", 0))
            return [shape[i] if n == 0 and not keep_zero else n for i, n in enumerate(wanted)]
        case _:
            return shape


TACTICS: list[type[Tactic]] = [NumpyReshape, NumpyCast, NumpyShape]
