"""The CPU target and the tactics for it: ONNX Runtime's kernels, NumPy's, and ONNX's own reference."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tactician.plugins.target import Target
    from tactician.tactics.tactic import Tactic

_MODULES = (
    "onnxruntime_node",
    "onnx_reference",
    "activations",
    "arithmetic",
    "attention",
    "conv",
    "gather",
    "gemm",
    "layout",
    "normalization",
    "pooling",
    "reductions",
    "shaping",
    "softmax",
)


def tactics() -> list[type[Tactic]]:
    """Return every CPU tactic class."""
    modules = (import_module(f"{__name__}.{name}") for name in _MODULES)
    return [tactic for module in modules for tactic in module.TACTICS]


def targets() -> list[type[Target]]:
    """Return the ``cpu`` target."""
    from tactician.builtin_kernels.cpu.target import CpuTarget

    return [CpuTarget]
