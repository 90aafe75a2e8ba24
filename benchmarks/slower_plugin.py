"""A plugin that is right and slower everywhere: one warp does what the whole GPU could. For ``repeatability.py``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from tactician import OpSignature, Tactic, hookimpl
from tactician.plugins.kernel_source import KernelSource

SOURCE = """
extern "C" __global__ void slow_relu(const float* x, float* y, long long n) {
    for (long long i = threadIdx.x; i < n; i += blockDim.x) y[i] = x[i] > 0.f ? x[i] : 0.f;
}
"""


@dataclass(frozen=True)
class SlowRelu(Tactic):
    """y = max(x, 0) by one block of a few threads."""

    op: ClassVar[str] = "ai.onnx::Relu"
    target: ClassVar[str] = "cuda"

    threads: int = 32

    def decline(self, signature: OpSignature, device: Any) -> str | None:
        """Decline all but static fp32."""
        x = signature.input(0)
        return (
            None
            if signature.is_static and x is not None and x.dtype == "float32"
            else "is for static float32"
        )

    def prepare(self, signature: OpSignature, device: Any) -> Any:
        """Compile the kernel."""
        kernel = device.compile(KernelSource(SOURCE, "slow_relu"))
        size = signature.inputs[0].size

        def launch(inputs: Any, outputs: Any, workspace: Any, stream: Any) -> None:
            kernel.launch(stream, 1, self.threads, inputs[0], outputs[0], np.int64(size))

        return launch


@hookimpl
def tactics() -> list[type[Tactic]]:
    """Offer the slow tactic."""
    return [SlowRelu]
