"""The built-in kernels: an ordinary plugin, which brings the targets ``cpu`` and ``cuda`` and their tactics.

Importing it imports neither ONNX, ONNX Runtime nor CUDA: the modules behind it load these where needed.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from tactician.plugins.hookspecs import hookimpl

if TYPE_CHECKING:
    from tactician.plugins.op import Op
    from tactician.plugins.target import Target
    from tactician.tactics.tactic import Tactic

TACTICIAN_API = (1, 0)
TACTICIAN_DOMAINS = ("tactician.nhwc",)


@hookimpl
def ops() -> list[Op]:
    """Return the operators of channels-last tensors; the other kernels serve ONNX's own and fused ones."""
    from tactician.builtin_kernels import nhwc

    return nhwc.ops()


@hookimpl
def tactics() -> list[type[Tactic]]:
    """Return the tactics of ``cpu`` and, where CUDA's Python packages are installed, of ``cuda``."""
    from tactician.builtin_kernels import cpu

    found = cpu.tactics()
    if _has_cuda():
        from tactician.builtin_kernels import cuda

        found += cuda.tactics()
    return found


@hookimpl
def targets() -> list[type[Target]]:
    """Return the targets ``cpu`` and ``cuda``; a target says itself why it can't be used."""
    from tactician.builtin_kernels import cpu, cuda

    return [*cpu.targets(), *cuda.targets()]


def _has_cuda() -> bool:
    """Return whether CUDA's Python packages are installed, without importing them."""
    try:
        return find_spec("cuda.core") is not None and find_spec("cuda.bindings") is not None
    except ModuleNotFoundError:
        return False
