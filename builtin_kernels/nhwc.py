"""Operators on tensors with the channels innermost, in a domain of their own: what ONNX's mean, in another layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from tactician.plugins.op import ChannelsLast, Op
from tactician.plugins.reference import reference_for
from tactician.signature import Dim, OpSignature, TensorType

CONV = "tactician.nhwc::Conv"
"""``ai.onnx::Conv`` of X [N, H, W, C] and W [K, R, S, C / group], and optionally B [K], to Y [N, P, Q, K].

The attributes are those of ``ai.onnx::Conv``.
"""
STANDARD_VERSION = 22
"""Opset of ``ai.onnx`` whose convolution is meant: the first with bfloat16."""

Array = np.ndarray[Any, Any]


def ops() -> list[Op]:
    """Return the operators."""
    return [Op(CONV, infer_conv, conv, ChannelsLast("ai.onnx::Conv", moved=(0, 1), constant=(1,)))]


def standard_conv(signature: OpSignature) -> OpSignature:
    """Return the call of ``ai.onnx::Conv`` that computes the same with the channels behind the batch."""
    moved = tuple(_channels_second(t) for t in signature.inputs[:2])
    return replace(
        signature,
        op="ai.onnx::Conv",
        version=STANDARD_VERSION,
        inputs=moved + signature.inputs[2:],
        outputs=tuple(_channels_second(t) for t in signature.outputs),
    )


def conv(signature: OpSignature, x: Array, w: Array, b: Array | None = None) -> Array:
    """Return the convolution, as ONNX's reference computes it, in the type of ``x``."""
    if None in signature.outputs:  # within the body of a fused node nobody has worked it out
        signature = replace(signature, outputs=tuple(infer_conv(signature)))
    inputs: list[Array | None] = [np.moveaxis(x, -1, 1), np.moveaxis(w, -1, 1)]
    if len(signature.inputs) > 2:
        inputs.append(b)
    (result,) = reference_for(standard_conv(signature))(inputs)
    return np.ascontiguousarray(np.moveaxis(result, 1, -1))


def infer_conv(signature: OpSignature) -> Sequence[TensorType]:
    """Return the type of the convolution's output; dimensions that don't follow from numbers are unknown.

    Raises
    ------
    ValueError
        If an operand is absent, or the shapes or attributes make no convolution.
    """
    from tactician.builtin_kernels.cuda.conv_problem import GeometryError, window_of

    x, w = signature.input(0), signature.input(1)
    if x is None or w is None:
        raise ValueError("a convolution needs an input and filters")
    if x.shape is None or w.shape is None:
        return [TensorType(x.dtype, None)]
    if len(x.shape) != len(w.shape) or len(x.shape) < 3:
        raise ValueError(f"input {x} and filters {w} are no convolution")
    rank = len(x.shape) - 2
    kernel = [k for k in signature.attribute("kernel_shape") or w.shape[1:-1] if isinstance(k, int)]
    if len(kernel) < len(w.shape) - 2:
        return [TensorType(x.dtype, (x.shape[0], *(None,) * rank, w.shape[0]))]
    # what is not known stands for an input that is large enough, whatever comes out of it
    size = [d if isinstance(d, int) else _LARGE for d in x.shape[1:-1]]
    try:
        out = window_of(signature, kernel, size).out[-rank:]
    except GeometryError as error:
        raise ValueError(str(error)) from error
    known: tuple[Dim, ...] = tuple(
        o if isinstance(d, int) else None for o, d in zip(out, x.shape[1:-1], strict=True)
    )
    return [TensorType(x.dtype, (x.shape[0], *known, w.shape[0]))]


_LARGE = 1 << 24


def _channels_second(tensor: TensorType | None) -> TensorType | None:
    if tensor is None or tensor.shape is None or len(tensor.shape) < 2:
        return tensor
    first, *middle, last = tensor.shape
    return TensorType(tensor.dtype, (first, last, *middle))
