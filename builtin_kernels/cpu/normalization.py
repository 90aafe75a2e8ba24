"""Normalization over batches, layers, groups and single images with NumPy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from tactician.builtin_kernels.cpu.numpy_tactic import (
    FLOATS,
    NARROW,
    Array,
    Kernel,
    NumpyTactic,
    decline_types,
    dtype_of,
    wide,
)
from tactician.plugins.target import Device
from tactician.signature import OpSignature
from tactician.tactics.tactic import Tactic


@dataclass(frozen=True)
class NumpyBatchNormalization(NumpyTactic):
    """Normalization by given statistics: one product and one sum for each channel."""

    op: ClassVar[str | tuple[str, ...]] = "ai.onnx::BatchNormalization"

    def decline(self, signature: OpSignature, device: Device) -> str | None:
        """Decline training."""
        if (
            signature.attribute("training_mode", 0)
            or len([t for t in signature.outputs if t is not None]) > 1
        ):
            return "training is not implemented"
        if signature.attribute("spatial", 1) == 0:
            return "statistics for each element, as before opset 9, are not implemented"
        return decline_types(signature, FLOATS)

    def kernel(self, signature: OpSignature, device: Device) -> Kernel:
        """Return x factor + offset, with both derived from the statistics at each call."""
        epsilon = float(signature.attribute("epsilon", 1e-5))
        narrow = dtype_of(signature) in NARROW

        def kernel(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any) -> list[Any]:
            x, scale, bias, mean, variance = (wide(a) for a in inputs)
            factor = (scale / np.sqrt(variance + variance.dtype.type(epsilon))).astype(x.dtype)
            offset = (bias - mean * factor).astype(x.dtype)
            shape = (-1, *(1,) * (x.ndim - 2)) if x.ndim > 1 else (-1,)
            result = np.multiply(x, factor.reshape(shape), out=None if narrow else outputs[0])
            return [np.add(result, offset.reshape(shape), out=result)]

        return kernel


@dataclass(frozen=True)
class NumpyLayerNormalization(NumpyTactic):
    """Normalization of the last axes, with or without subtracting the mean."""

    op: ClassVar[str | tuple[str, ...]] = ("ai.onnx::LayerNormalization", "ai.onnx::RMSNormalization")

    def decline(self, signature: OpSignature, device: Device) -> str | None:
        """Decline types that are no floats."""
        return decline_types(signature, FLOATS)

    def kernel(self, signature: OpSignature, device: Device) -> Kernel:
        """Return the normalized, scaled and shifted rows; also mean and inverse deviation where asked for."""
        axis = int(signature.attribute("axis", -1))
        epsilon = float(signature.attribute("epsilon", 1e-5))
        centered = signature.op_type == "LayerNormalization"
        narrow = dtype_of(signature) in NARROW

        def kernel(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any) -> list[Any]:
            x = wide(inputs[0])
            axes = tuple(range(axis % x.ndim, x.ndim))
            out = None if narrow else outputs[0]
            result, mean, inverse = _normalize(x, axes, epsilon, centered, out)
            np.multiply(result, wide(inputs[1]), out=result)
            if len(inputs) > 2 and inputs[2] is not None:
                np.add(result, wide(inputs[2]), out=result)
            return [result, mean, inverse]

        return kernel


@dataclass(frozen=True)
class NumpyGroupNormalization(NumpyTactic):
    """Normalization of each image, in groups of channels: of all (group) or of one (instance)."""

    op: ClassVar[str | tuple[str, ...]] = ("ai.onnx::InstanceNormalization", "ai.onnx::GroupNormalization")

    def decline(self, signature: OpSignature, device: Device) -> str | None:
        """Decline types that are no floats."""
        return decline_types(signature, FLOATS)

    def kernel(self, signature: OpSignature, device: Device) -> Kernel:
        """Return the normalized images; scales are for each channel, before opset 21 for each group."""
        epsilon = float(signature.attribute("epsilon", 1e-5))
        groups = signature.attribute("num_groups")
        narrow = dtype_of(signature) in NARROW

        def kernel(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any) -> list[Any]:
            x, scale, bias = (wide(a) for a in inputs)
            batch, channels = x.shape[:2]
            count = int(groups or channels)
            out = None if narrow or outputs[0] is None else outputs[0].reshape(batch, count, -1)
            result, _, _ = _normalize(x.reshape(batch, count, -1), (2,), epsilon, True, out)
            # over the channels of a group where there are as many scales as groups
            view = result.reshape(batch, len(scale), -1)
            np.multiply(view, scale[:, None], out=view)
            np.add(view, bias[:, None], out=view)
            return [outputs[0] if out is not None else result.reshape(x.shape)]

        return kernel


def _normalize(
    x: Array, axes: tuple[int, ...], epsilon: float, centered: bool, out: Array | None
) -> tuple[Array, Array | None, Array]:
    """Return ``x`` over its deviation along ``axes``, its mean, and the inverse deviation."""
    count = math.prod(x.shape[a] for a in axes)
    mean = x.mean(axis=axes, keepdims=True) if centered else None
    result = np.copy(x) if out is None else out
    if mean is None:
        np.copyto(result, x)
    else:
        np.subtract(x, mean, out=result)
    squares = np.multiply(result, result).sum(axis=axes, keepdims=True)
    inverse = 1 / np.sqrt(squares / x.dtype.type(count) + x.dtype.type(epsilon))
    np.multiply(result, inverse, out=result)
    return result, mean, inverse


TACTICS: list[type[Tactic]] = [NumpyBatchNormalization, NumpyLayerNormalization, NumpyGroupNormalization]
