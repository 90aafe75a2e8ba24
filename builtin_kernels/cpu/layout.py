"""Moving data with NumPy: transposition, joining, cutting, padding and repeating."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from tactician.builtin_kernels.cpu.numpy_tactic import Array, Kernel, NumpyTactic, integers
from tactician.plugins.target import Device
from tactician.signature import OpSignature
from tactician.tactics.tactic import Tactic


@dataclass(frozen=True)
class NumpyTranspose(NumpyTactic):
    """One strided copy."""

    op: ClassVar[str | tuple[str, ...]] = "ai.onnx::Transpose"

    def kernel(self, signature: OpSignature, device: Device) -> Kernel:
        """Return a copy of the permuted view."""
        order = signature.attribute("perm")
        return lambda inputs, outputs, _: [_fresh(inputs[0].transpose(order), outputs[0])]


@dataclass(frozen=True)
class NumpyConcat(NumpyTactic):
    """Arrays one after the other along an axis."""

    op: ClassVar[str | tuple[str, ...]] = "ai.onnx::Concat"

    def kernel(self, signature: OpSignature, device: Device) -> Kernel:
        """Return ``numpy.concatenate`` into the output."""
        axis = int(signature.attribute("axis", 1))
        return lambda inputs, outputs, _: [np.concatenate(inputs, axis=axis, out=outputs[0])]


@dataclass(frozen=True)
class NumpySplit(NumpyTactic):
    """Pieces of an array along an axis, each copied."""

    op: ClassVar[str | tuple[str, ...]] = "ai.onnx::Split"

    def kernel(self, signature: OpSignature, device: Device) -> Kernel:
        """Return copies of the pieces: of given lengths, or of equal ones with a shorter last."""
        axis, count = int(signature.attribute("axis", 0)), len(signature.outputs)

        def kernel(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any) -> list[Any]:
            size = inputs[0].shape[axis]
            each = -(-size // count)
            lengths = integers(signature, inputs, "split", 1) or [
                min(each, size - i * each) for i in range(count)
            ]
            pieces = np.split(inputs[0], np.cumsum(lengths)[:-1], axis=axis)
            return [_fresh(p, o) for p, o in zip(pieces, outputs, strict=True)]

        return kernel


@dataclass(frozen=True)
class NumpySlice(NumpyTactic):
    """A range of each axis, with steps."""

    op: ClassVar[str | tuple[str, ...]] = "ai.onnx::Slice"

    def kernel(self, signature: OpSignature, device: Device) -> Kernel:
        """Return a copy of the view; bounds are attributes before opset 10 and inputs since."""

        def kernel(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any) -> list[Any]:
            starts = integers(signature, inputs, "starts", 1) or []
            ends = integers(signature, inputs, "ends", 2) or []
            axes = integers(signature, inputs, "axes", 3) or list(range(len(starts)))
            steps = integers(signature, inputs, "steps", 4) or [1] * len(starts)
            view = [slice(None)] * inputs[0].ndim
            for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
                # backwards to before the first element: a bound below -size, which Python's slices clip
                view[axis] = slice(start, end if step > 0 or end >= -inputs[0].shape[axis] else None, step)
            return [_fresh(inputs[0][tuple(view)], outputs[0])]

        return kernel


@dataclass(frozen=True)
class NumpyPad(NumpyTactic):
    """Values around an array."""

    op: ClassVar[str | tuple[str, ...]] = "ai.onnx::Pad"

    def decline(self, signature: OpSignature, device: Device) -> str | None:
        """Decline negative padding, and padding that is only known at run time."""
        pads = signature.attribute("pads")
        known = signature.known(1)
        values = pads if pads is not None else None if known is None else known.tolist()
        if values is None:
            return "the padding is only known at run time"
        return "negative padding is not implemented" if any(v < 0 for v in values) else None

    def kernel(self, signature: OpSignature, device: Device) -> Kernel:
        """Return the padded array; in place for constants."""
        mode: Any = signature.attribute("mode", "constant")
        mode = mode.decode() if isinstance(mode, bytes) else mode

        def kernel(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any) -> list[Any]:
            x, out = inputs[0], outputs[0]
            pads = integers(signature, inputs, "pads", 1) or []
            axes = integers(signature, inputs, "axes", 3) or list(range(x.ndim))
            widths = [(0, 0)] * x.ndim
            for i, axis in enumerate(axes):
                widths[axis] = (pads[i], pads[i + len(axes)])
            if mode != "constant":
                return [np.pad(x, widths, mode=mode)]
            given = inputs[2] if len(inputs) > 2 else signature.attribute("value", 0)
            fill = np.zeros((), x.dtype) if given is None else np.asarray(given).astype(x.dtype).reshape(())
            if out is None:
                out = np.empty([n + a + b for n, (a, b) in zip(x.shape, widths, strict=True)], x.dtype)
            np.copyto(out, fill)
            out[tuple(slice(a, a + n) for n, (a, _) in zip(x.shape, widths, strict=True))] = x
            return [out]

        return kernel


@dataclass(frozen=True)
class NumpyExpand(NumpyTactic):
    """An array broadcast to a larger shape, or repeated."""

    op: ClassVar[str | tuple[str, ...]] = ("ai.onnx::Expand", "ai.onnx::Tile")

    def decline(self, signature: OpSignature, device: Device) -> str | None:
        """Decline the form of Tile before opset 6."""
        return "Tile before opset 6 is not implemented" if len(signature.inputs) != 2 else None

    def kernel(self, signature: OpSignature, device: Device) -> Kernel:
        """Return a copy of the broadcast view, or ``numpy.tile``."""
        is_tile = signature.op_type == "Tile"

        def kernel(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any) -> list[Any]:
            sizes = [int(n) for n in inputs[1]]
            if is_tile:
                return [np.tile(inputs[0], sizes)]
            shape = np.broadcast_shapes(inputs[0].shape, tuple(sizes))
            return [_fresh(np.broadcast_to(inputs[0], shape), outputs[0])]

        return kernel


def _fresh(view: Array, out: Array | None) -> Array:
    """Return ``view`` copied into ``out``, or, without one, into an array of its own."""
    if out is None:
        return np.array(view, order="C")
    np.copyto(out, view)
    return out


TACTICS: list[type[Tactic]] = [NumpyTranspose, NumpyConcat, NumpySplit, NumpySlice, NumpyPad, NumpyExpand]
