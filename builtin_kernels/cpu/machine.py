"""What can be read of this machine's processor, and of the libraries that compute on it."""

from __future__ import annotations

import platform
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

_SETS = {
    "sse4_2": "sse4.2",
    "avx": "avx",
    "avx2": "avx2",
    "fma": "fma",
    "avx512f": "avx512f",
    "avx512_vnni": "avx512-vnni",
    "avx512_bf16": "avx512-bf16",
    "avx512_fp16": "avx512-fp16",
    "amx_tile": "amx",
    "asimd": "neon",
    "asimddp": "dotprod",
    "bf16": "bf16",
    "sve": "sve",
}
"""Flags as Linux spells them, and the instruction sets that speed of kernels depends on."""


@cache
def processor_name() -> str:
    """Return the processor's name, such as ``"AMD EPYC 9654"``, or no more than its architecture."""
    return _cpu_info().get("model name") or platform.processor() or platform.machine()


@cache
def instruction_sets() -> str:
    """Return the vector instruction sets, space-separated; empty where they can't be read."""
    info = _cpu_info()
    flags = set((info.get("flags") or info.get("Features") or "").split())
    return " ".join(name for flag, name in _SETS.items() if flag in flags)


@cache
def cache_bytes() -> dict[str, int]:
    """Return ``l1_bytes``, ``l2_bytes`` and ``l3_bytes`` of one core, as far as they can be read."""
    sizes: dict[str, int] = {}
    for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            kind, level, size = (
                (index / name).read_text(encoding="ascii").strip() for name in ("type", "level", "size")
            )
        except OSError:
            continue
        if kind != "Instruction" and size.endswith("K"):
            sizes[f"l{level}_bytes"] = int(size[:-1]) * 1024
    return dict(sorted(sizes.items()))


@cache
def library_versions() -> dict[str, str]:
    """Return the versions of NumPy, its BLAS and ONNX Runtime; empty text for what is not installed."""
    try:
        runtime = version("onnxruntime")
    except PackageNotFoundError:
        runtime = ""
    return {"numpy": np.__version__, "blas": _blas_name(), "onnxruntime": runtime}


def one_blas_thread() -> AbstractContextManager[Any]:
    """Return a context in which NumPy's BLAS computes on the calling thread alone.

    Threads of BLAS and of ONNX Runtime both spin for a while after their work, and take the same cores from
    each other: nodes that alternate between the two were seen to take ten times as long. ONNX Runtime's pool
    is the one that spreads work over cores; the rest keeps to one. Does nothing without ``threadpoolctl``.
    """
    controller = _blas_controller()
    return nullcontext() if controller is None else controller.limit(limits=1)


@cache
def _blas_controller() -> Any:
    try:
        import threadpoolctl  # type: ignore[import-untyped]  # it has no stubs
    except ImportError:
        return None
    return threadpoolctl.ThreadpoolController().select(user_api="blas")


def _blas_name() -> str:
    try:
        blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
        return f"{blas['name']} {blas['version']}"
    except (KeyError, TypeError):
        return ""


@cache
def _cpu_info() -> dict[str, str]:
    """Return the fields of the first processor in Linux's list; empty elsewhere."""
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    except OSError:
        return {}
    return {
        key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())
    }
