"""The ``cuda`` target: NVIDIA GPUs."""

from __future__ import annotations

import ctypes
from functools import cache

from tactician.errors import DeviceError
from tactician.plugins.target import Artifacts, Device, Target


class CudaTarget(Target):
    """NVIDIA GPUs of compute capability 8.0 and later, through cuda.core."""

    name = "cuda"

    def unavailable(self) -> str | None:
        """Return why there is no usable GPU, or None."""
        return _probe()[1]

    def count(self) -> int:
        """Return the number of GPUs."""
        return _probe()[0]

    def device(self, index: int = 0, artifacts: Artifacts | None = None) -> Device:
        """Open GPU ``index``."""
        from tactician.builtin_kernels.cuda.device import CudaDevice

        if reason := self.unavailable():
            raise DeviceError(f"target 'cuda': {reason}")
        if not 0 <= index < self.count():
            raise DeviceError(f"target 'cuda' has {self.count()} device(s); there is no device {index}")
        return CudaDevice(index, artifacts)

    def offline_device(self, architecture: str) -> Device:
        """Return a GPU of ``architecture`` (``"sm_90a"``) to compile for: needs neither GPU nor driver."""
        try:
            from tactician.builtin_kernels.cuda.device import ARCHITECTURES, CompileOnlyDevice
        except ImportError as error:
            raise DeviceError(
                f"target 'cuda' can't compile here ({error}); install the extra: pip install 'tactician[cuda]'"
            ) from error
        if architecture not in ARCHITECTURES:
            raise DeviceError(
                f"target 'cuda' knows no architecture '{architecture}'; write one of {', '.join(ARCHITECTURES)}"
            )
        return CompileOnlyDevice(architecture)


@cache
def _probe() -> tuple[int, str | None]:
    """Ask the driver itself: bindings that find no driver raise in ways that later calls don't recover from."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0, "no NVIDIA driver on this machine (libcuda.so.1 can't be loaded)"
    count = ctypes.c_int()
    status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if status:
        return 0, f"the NVIDIA driver answered error {status} to cuInit"
    if not count.value:
        return 0, "the NVIDIA driver sees no GPU"
    try:
        import cuda.core  # noqa: F401  # the question is whether it can be imported
    except ImportError as error:
        return 0, f"cuda.core can't be imported ({error}); install the extra: pip install 'tactician[cuda]'"
    return count.value, None
