"""Runs one tactic on one call, with outputs and workspace that hold NaN before, and compares in float64."""

from __future__ import annotations

import numpy as np
from tactician.testing import make_signature
from tactician_numba.device import NumbaDevice, NumbaTensor

THREADS = 3
"""More than work divides by, on any machine."""
DEVICE = NumbaDevice(threads=THREADS)


def normal(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def run(tactic, op, inputs, attributes=None, *, version=None, constants=(), outputs=1):
    """Return the outputs of ``tactic``, having made sure that it accepts and that it leaves its inputs alone."""
    signature = make_signature(op, inputs, attributes, version, constants, outputs)
    assert tactic.decline(signature, DEVICE) is None
    given = [None if a is None else upload(a) for a in inputs]
    results = [upload(np.full(t.dims, np.nan, t.numpy_dtype)) for t in signature.outputs]
    workspace = upload(np.full(tactic.workspace(signature, DEVICE), 0xFF, np.uint8))
    tactic.prepare(signature, DEVICE)(given, results, workspace, None)
    for tensor, array in zip(given, inputs, strict=True):
        assert tensor is None or np.array_equal(tensor.array, array, equal_nan=array.dtype.kind == "f")
    arrays = [DEVICE.download(tensor) for tensor in results]
    return arrays[0] if outputs == 1 else arrays


def upload(array):
    array = np.ascontiguousarray(array).reshape(array.shape)
    tensor = NumbaTensor(np.empty(array.shape, array.dtype))
    DEVICE.upload(tensor, array)
    return tensor


def wide(*arrays):
    """Return ``arrays`` in float64."""
    return [a.astype(np.float64) for a in arrays]


def relative(result, exact):
    """Return ‖result − exact‖ / ‖exact‖."""
    assert result.shape == exact.shape
    return float(np.linalg.norm(result - exact) / np.linalg.norm(exact))
