"""Signatures for tests: made of real arrays, with output types as the ONNX reference computes them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from tactician.plugins.reference import reference_for
from tactician.signature import OpSignature, TensorType, dtype_name, make_constant

Array = np.ndarray[Any, Any]


def make_signature(
    op: str,
    inputs: Sequence[Array | None],
    attributes: Mapping[str, Any] | None = None,
    version: int | None = None,
    constants: Collection[int] = (),
    outputs: int = 1,
) -> OpSignature:
    """Return the signature of ``op`` (``"ai.onnx::Conv"`` or ``"Conv"``) called with ``inputs``.

    Parameters
    ----------
    inputs
        Arrays; None where an optional input is absent.
    attributes
        Plain values: int, float, str, and lists of them.
    version
        Opset version; by default the newest.
    constants
        Indices of inputs that are constants.
    outputs
        Number of outputs.
    """
    name = op if "::" in op else f"ai.onnx::{op}"
    types = tuple(None if a is None else TensorType(dtype_name(a.dtype), a.shape) for a in inputs)
    values = tuple(
        (key, tuple(v) if isinstance(v, list | tuple) else v) for key, v in sorted((attributes or {}).items())
    )
    known = tuple(
        make_constant(a) if i in constants and a is not None else None for i, a in enumerate(inputs)
    )
    unknown = (TensorType("float32", None),) * outputs
    signature = OpSignature(name, version or onnx.defs.onnx_opset_version(), values, types, unknown, known)
    results = reference_for(signature)(inputs)
    return signature.bound(types, tuple(TensorType(dtype_name(r.dtype), r.shape) for r in results))
