"""Two tactics for ``ai.onnx::Conv`` with windows of 1 x 1 on NVIDIA GPUs: products by multiply-adds and by tensor cores.

A convolution with a window of one pixel is a matrix product: filters by channels times channels by pixels. At
batch 1 it is a small one, and what counts is that all multiprocessors get a share and that nobody waits for
memory for long. So the channels are split among blocks too, and their sums are added up in a fixed order.
"""

from __future__ import annotations

from tactician import Tactic, hookimpl

from tactician_pointwise_conv.ffma import FfmaTiles
from tactician_pointwise_conv.mma import MmaTiles

__all__ = ["FfmaTiles", "MmaTiles", "tactics"]


@hookimpl
def tactics() -> list[type[Tactic]]:
    return [FfmaTiles, MmaTiles]
