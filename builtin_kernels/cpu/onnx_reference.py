"""ONNX's reference, and the references of custom operators, as a tactic: the last resort, right and slow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from tactician.builtin_kernels.cpu.machine import one_blas_thread
from tactician.plugins.reference import ops_in_use, reference_for
from tactician.plugins.target import Device
from tactician.signature import OpSignature
from tactician.tactics.tactic import ANY_OP, Launch, Tactic


@dataclass(frozen=True)
class Reference(Tactic):
    """Any operator by its reference: standard, custom, fused, control flow; with static or dynamic types."""

    op: ClassVar[str | tuple[str, ...]] = ANY_OP
    target: ClassVar[str] = "cpu"
    library: ClassVar[str] = "reference"

    def decline(self, signature: OpSignature, device: Device) -> str | None:
        """Decline operators that have no reference."""
        if signature.body is None and signature.op in ops_in_use():
            return None
        try:
            reference_for(signature)
        except Exception as error:  # of many types
            return "no reference: " + " ".join(str(error).split())[:300]
        return None

    def prepare(self, signature: OpSignature, device: Device) -> Launch:
        """Return a launch that computes the reference and copies its results to the outputs."""
        compute = reference_for(signature)

        def launch(
            inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any
        ) -> Sequence[Any] | None:
            with one_blas_thread():
                results = compute(inputs)
            for output, result in zip(outputs, results, strict=False):
                if output is not None and result is not None:
                    np.copyto(output, result, casting="same_kind")
            return results if any(o is None for o in outputs) else None

        return launch


TACTICS: list[type[Tactic]] = [Reference]
