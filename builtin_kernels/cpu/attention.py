"""Scaled dot-product attention with NumPy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from tactician.builtin_kernels.cpu.numpy_tactic import (
    STEPWISE,
    Array,
    BlasTactic,
    Kernel,
    decline_types,
    wide,
)
from tactician.plugins.target import Device
from tactician.signature import OpSignature
from tactician.tactics.tactic import Tactic


@dataclass(frozen=True)
class NumpyAttention(BlasTactic):
    """Two batched products with a softmax between; several queries may share the heads of keys and values."""

    op: ClassVar[str | tuple[str, ...]] = "ai.onnx::Attention"

    def decline(self, signature: OpSignature, device: Device) -> str | None:
        """Decline a cache of keys and values, soft caps, and the scores as an output."""
        if len([t for t in signature.inputs if t is not None]) > 3 + (signature.input(3) is not None):
            return "a cache of past keys and values, or lengths of padded ones, is not implemented"
        if len([t for t in signature.outputs if t is not None]) > 1:
            return "present keys and values and the scores are not computed"
        known = {"scale", "is_causal", "q_num_heads", "kv_num_heads", "softmax_precision"}
        for name, value in signature.attributes:
            if name not in known and value:
                return f"attribute {name}={value!r} is not implemented"
        x, y = signature.input(0), signature.input(1)
        if x is None or y is None or x.rank not in (3, 4):
            return "queries must have 3 or 4 dimensions"
        mask = signature.input(3)
        if mask is not None and (
            mask.rank is None or (mask.is_static and y.is_static and mask.dims[-1] != y.dims[-2])
        ):
            return "a mask shorter than the keys is not implemented"
        return decline_types(signature, STEPWISE)

    def kernel(self, signature: OpSignature, device: Device) -> Kernel:
        """Return the attention, computed in float32 for narrower types."""
        scale, causal = signature.attribute("scale"), bool(signature.attribute("is_causal", 0))
        heads, kv_heads = signature.attribute("q_num_heads"), signature.attribute("kv_num_heads")

        def kernel(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any) -> list[Any]:
            rank = inputs[0].ndim
            query = _heads(wide(inputs[0]), heads)
            key, value = (_heads(wide(a), kv_heads) for a in inputs[1:3])
            repeats = query.shape[1] // key.shape[1]
            if repeats > 1:
                key, value = key.repeat(repeats, axis=1), value.repeat(repeats, axis=1)
            factor = query.dtype.type(scale or 1 / math.sqrt(query.shape[-1]))
            scores = np.matmul(query * factor, key.swapaxes(-1, -2))
            if len(inputs) > 3 and inputs[3] is not None:
                _apply_mask(scores, inputs[3])
            if causal:
                later = np.triu(np.ones(scores.shape[-2:], bool), 1)
                np.copyto(scores, -np.inf, where=later)
            result = np.matmul(_weights(scores), value)
            if rank == 3:
                result = result.swapaxes(1, 2).reshape(*inputs[0].shape[:2], -1)
            return [result]

        return kernel


def _heads(x: Array, heads: int | None) -> Array:
    """Return ``x`` [batch, length, heads * size] as [batch, heads, length, size], which 4 dimensions are."""
    if x.ndim == 4:
        return x
    return x.reshape(x.shape[0], x.shape[1], int(heads or 1), -1).swapaxes(1, 2)


def _weights(scores: Array) -> Array:
    """Return the softmax of ``scores`` in their own memory; a row that is all masked has weights of 0."""
    highest = scores.max(axis=-1, keepdims=True, initial=-np.inf)
    np.copyto(highest, 0, where=np.isneginf(highest))
    np.exp(np.subtract(scores, highest, out=scores), out=scores)
    total = scores.sum(axis=-1, keepdims=True)
    np.copyto(total, 1, where=total == 0)
    return np.asarray(np.divide(scores, total, out=scores))


def _apply_mask(scores: Array, mask: Array) -> None:
    if mask.dtype == bool:
        np.copyto(scores, scores.dtype.type(-np.inf), where=~mask)
    else:
        np.add(scores, wide(mask), out=scores)


TACTICS: list[type[Tactic]] = [NumpyAttention]
