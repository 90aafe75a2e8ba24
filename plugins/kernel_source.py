"""Source of a CUDA C++ kernel: what a tactic of any plugin hands to the ``cuda`` device to compile."""

from __future__ import annotations

from dataclasses import dataclass

from tactician.plugins.target import Artifacts


@dataclass(frozen=True)
class KernelSource:
    """One kernel to compile: complete header-free CUDA C++ text, its ``extern "C"`` name, and its macros.

    ``device.compile(source)`` of the ``cuda`` device returns the kernel;
    ``kernel.launch(stream, grid, block, *args)`` enqueues it.
    """

    text: str
    name: str
    defines: tuple[tuple[str, int | str], ...] = ()

    def key(self, arch: str) -> str:
        """Return the content key of this kernel compiled for ``arch``."""
        return Artifacts.key("cubin", arch, self.name, self.text, repr(self.defines))
