"""What NVML tells of a GPU: read only, and empty where NVML is not there."""

from __future__ import annotations

from functools import cache
from typing import Any


def device_state(index: int) -> dict[str, str]:
    """Return what measured times depend on: memory and SM clock limits in MHz, power limit in watts, MIG mode."""
    nvml, handle = _open(index)
    if nvml is None:
        return {}
    queries = {
        "memory_clock_mhz": lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_MEM),
        "sm_clock_limit_mhz": lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM),
        "power_limit_w": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) // 1000,
        "mig": lambda: nvml.nvmlDeviceGetMigMode(handle)[0],
    }
    return {name: _ask(nvml, query) for name, query in queries.items()}


def conditions(index: int) -> dict[str, int | str]:
    """Return the present SM clock in MHz, the throttle reasons (a bit mask in hexadecimal) and how many processes compute."""
    nvml, handle = _open(index)
    if nvml is None:
        return {}
    answers: dict[str, int | str] = {}
    clock = _ask(nvml, lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM))
    if clock:
        answers["sm_clock_mhz"] = int(clock)
    answers["throttle"] = _ask(
        nvml, lambda: hex(_serious(nvml, nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)))
    )
    return answers


def driver_version(index: int) -> str:
    """Return the driver's version, ``"580.159.04"``, or ``"unknown"``."""
    nvml, _ = _open(index)
    return (nvml and _ask(nvml, nvml.nvmlSystemGetDriverVersion)) or "unknown"


def _serious(nvml: Any, reasons: int) -> int:
    """Drop the reasons that say nothing of a sample: the GPU was idle, or an application asked for these clocks."""
    return int(reasons) & ~0x1 & ~0x2


@cache
def _open(index: int) -> tuple[Any, Any]:
    try:
        import pynvml

        pynvml.nvmlInit()
        return pynvml, pynvml.nvmlDeviceGetHandleByIndex(index)
    except Exception:  # no NVML is a state, not a failure
        return None, None


def _ask(nvml: Any, query: Any) -> str:
    try:
        return str(query())
    except nvml.NVMLError:
        return ""
