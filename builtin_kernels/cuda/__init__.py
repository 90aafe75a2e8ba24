"""The CUDA target and the tactics for it, one flat pair of ``.py`` and ``.cu`` for each kernel."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tactician.plugins.target import Target
    from tactician.tactics.tactic import Tactic

_MODULES = (
    "gemm_ffma",
    "gemm_mma",
    "gemm_small_m",
    "gemm_wgmma",
    "gemm_wgmma_8bit",
    "conv_wgmma",
    "cublaslt",
    "cublaslt_8bit",
    "conv_direct",
    "conv_implicit_gemm",
    "conv_implicit_gemm_ffma",
    "conv_depthwise",
    "conv_depthwise_nhwc",
    "cudnn_conv",
    "pooling",
    "batch_norm",
    "pointwise",
    "reduce",
    "softmax",
    "attention_mma",
    "attention_wgmma",
    "cudnn_attention",
    "layer_norm",
    "transpose",
    "strided_copy",
    "copy",
    "gather",
    "pad",
    "fill",
    "scan",
    "topk",
    "resize",
)


def tactics() -> list[type[Tactic]]:
    """Return every CUDA tactic class."""
    modules = (import_module(f"{__name__}.{name}") for name in _MODULES)
    return [tactic for module in modules for tactic in module.TACTICS]


def targets() -> list[type[Target]]:
    """Return the ``cuda`` target."""
    from tactician.builtin_kernels.cuda.target import CudaTarget

    return [CudaTarget]
