"""The ``numba`` target: says whether Numba is there, and opens the device."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING, ClassVar

from tactician import Device, Target
from tactician.errors import DeviceError

if TYPE_CHECKING:
    from tactician.plugins.target import Artifacts


class NumbaTarget(Target):
    """The processor, by kernels that Numba compiles. What has no kernel here runs on ``cpu``."""

    name: ClassVar[str] = "numba"
    fallback: ClassVar[str | None] = "cpu"
    # kernels are native code that checks no index: a wrong one ends the process
    isolated: ClassVar[bool] = True

    def unavailable(self) -> str | None:
        """Return why Numba can't be used, or None. Looks for it without importing it."""
        if find_spec("numba") is None:
            return "Numba is not installed; pip install numba"
        if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
            return "NUMBA_DISABLE_JIT switches Numba's compiler off; unset it"
        return None

    def count(self) -> int:
        """Return 1."""
        return 1

    def device(self, index: int = 0, artifacts: Artifacts | None = None) -> Device:
        """Open the device.

        Raises
        ------
        DeviceError
            If Numba is not there, or ``index`` is not 0.
        """
        from tactician_numba.device import NumbaDevice

        if reason := self.unavailable():
            raise DeviceError(f"target 'numba': {reason}")
        if index != 0:
            raise DeviceError(f"target 'numba' has 1 device; there is no device {index}")
        return NumbaDevice(artifacts=artifacts)
