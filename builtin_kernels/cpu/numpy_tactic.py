"""What the NumPy tactics have in common: how a kernel becomes a launch, and questions about signatures."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
from tactician.builtin_kernels.cpu.machine import one_blas_thread
from tactician.plugins.target import Device
from tactician.signature import OpSignature
from tactician.tactics.tactic import Launch, Tactic

Array = np.ndarray[Any, Any]
Kernel = Callable[[Sequence[Any], Sequence[Any], Any], Sequence[Any]]
"""``kernel(inputs, outputs, workspace) -> results``: a result that is the output itself was written in place.

Outputs are None where they are absent or where their shape is known only after the call.
"""

NARROW = ("float16", "bfloat16")
"""Floats that are computed in ``float32``."""
FLOATS = ("float32", "float64", *NARROW)
STEPWISE = ("float32", "float64", "float16")
"""Floats of products; ONNX's reference rounds bfloat16 at every step, which a sum in ``float32`` does not."""
INTEGERS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
NUMBERS = (*FLOATS, *INTEGERS)


class NumpyTactic(Tactic):
    """A tactic of the ``cpu`` target that computes with NumPy."""

    target: ClassVar[str] = "cpu"
    library: ClassVar[str] = "numpy"

    @abstractmethod
    def kernel(self, signature: OpSignature, device: Device) -> Kernel:
        """Return the function that computes the call."""

    def prepare(self, signature: OpSignature, device: Device) -> Launch:
        """Return the kernel as a launch: results that were not written in place are copied."""
        kernel = self.kernel(signature, device)

        def launch(
            inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any
        ) -> Sequence[Any] | None:
            with np.errstate(all="ignore"):
                results = kernel(inputs, outputs, workspace)
                for output, result in zip(outputs, results, strict=False):
                    if output is not None and result is not output:
                        np.copyto(output, result, casting="unsafe")
            return _as_typed(results, signature) if any(o is None for o in outputs) else None

        return launch


class BlasTactic(NumpyTactic):
    """A NumPy tactic whose time goes to matrix products: on one thread, as ``one_blas_thread`` explains."""

    def prepare(self, signature: OpSignature, device: Device) -> Launch:
        """Return the kernel as a launch that keeps BLAS to the calling thread."""
        launch = super().prepare(signature, device)

        def on_one_thread(
            inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any
        ) -> Sequence[Any] | None:
            with one_blas_thread():
                return launch(inputs, outputs, workspace, stream)

        return on_one_thread


def _as_typed(results: Sequence[Any], signature: OpSignature) -> list[Any]:
    """Return results in the types of the signature, which narrow floats are not computed in."""
    return [
        r if r is None or t is None else np.asarray(r).astype(t.numpy_dtype, copy=False)
        for r, t in zip(results, signature.outputs, strict=False)
    ]


def decline_types(signature: OpSignature, allowed: Sequence[str], inputs: Sequence[int] = (0,)) -> str | None:
    """Return why the types of ``inputs`` are not served, or None."""
    for i in inputs:
        tensor = signature.input(i)
        if tensor is not None and tensor.dtype not in allowed:
            return f"type {tensor.dtype} of input {i} is not among {', '.join(allowed)}"
    return None


def decline_dynamic(signature: OpSignature) -> str | None:
    """Return why a call is not served whose shapes are not all known, or None."""
    return None if signature.is_static else "needs static shapes"


def dtype_of(signature: OpSignature, index: int = 0) -> str:
    """Return the element type of input ``index``; empty where it is absent."""
    tensor = signature.input(index)
    return "" if tensor is None else tensor.dtype


def rank_of(signature: OpSignature, index: int = 0) -> int | None:
    """Return the rank of input ``index``; None where it is absent or unknown."""
    tensor = signature.input(index)
    return None if tensor is None else tensor.rank


def wide(array: Array) -> Array:
    """Return ``array`` in the type that it is computed in: ``float32`` for narrower floats, else as it is."""
    return array.astype(np.float32) if array.dtype.itemsize < 4 and array.dtype.kind in "fV" else array


def integers(signature: OpSignature, inputs: Sequence[Any], name: str, index: int) -> list[int] | None:
    """Return a list that is attribute ``name`` in older opsets, input ``index`` in newer; None if absent."""
    value = signature.attribute(name)
    if value is not None:
        return [int(v) for v in value] if isinstance(value, tuple) else [int(value)]
    if index < len(inputs) and inputs[index] is not None:
        return [int(v) for v in np.ravel(inputs[index])]
    return None
