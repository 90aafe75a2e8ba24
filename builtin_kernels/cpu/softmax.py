"""Softmax and its logarithm with NumPy."""

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
class NumpySoftmax(NumpyTactic):
    """Softmax or its logarithm, computed over the output's memory."""

    op: ClassVar[str | tuple[str, ...]] = ("ai.onnx::Softmax", "ai.onnx::LogSoftmax")

    def decline(self, signature: OpSignature, device: Device) -> str | None:
        """Decline types that are no floats."""
        return decline_types(signature, FLOATS)

    def kernel(self, signature: OpSignature, device: Device) -> Kernel:
        """Return the computation; before opset 13 all axes from ``axis`` on count as one."""
        flattened = signature.version < 13
        axis = int(signature.attribute("axis", 1 if flattened else -1))
        function = softmax if signature.op_type == "Softmax" else log_softmax
        narrow = dtype_of(signature) in NARROW

        def kernel(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any) -> list[Any]:
            x, out = wide(inputs[0]), None if narrow else outputs[0]
            if not flattened:
                return [function(x, axis, out)]
            rows = math.prod(x.shape[: axis % max(x.ndim, 1)])
            result = function(x.reshape(rows, -1), -1, None if out is None else out.reshape(rows, -1))
            return [result.reshape(x.shape) if out is None else out]

        return kernel


def softmax(x: Array, axis: int, out: Array | None = None) -> Array:
    """Return exp(x) over its sum along ``axis``, of any range of ``x``."""
    result = np.subtract(x, x.max(axis=axis, keepdims=True, initial=-np.inf), out=out)
    np.exp(result, out=result)
    return np.asarray(np.divide(result, result.sum(axis=axis, keepdims=True), out=result))


def log_softmax(x: Array, axis: int, out: Array | None = None) -> Array:
    """Return the logarithm of softmax along ``axis``."""
    result = np.subtract(x, x.max(axis=axis, keepdims=True, initial=-np.inf), out=out)
    total = np.log(np.exp(result).sum(axis=axis, keepdims=True))
    return np.asarray(np.subtract(result, total, out=result))


TACTICS: list[type[Tactic]] = [NumpySoftmax]
