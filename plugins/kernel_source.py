"""Source of a CUDA kernel: what a tactic of any plugin hands to the ``cuda`` device to compile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

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

    @property
    def waits(self) -> bool:
        """Whether the kernel calls a function ``await_predecessors()`` that waits for the kernels before it.

        It may then be launched before they have ended (programmatic dependent launch, compute capability 9.0 and later:
        CUDA C++ Programming Guide). The function is ``griddepcontrol.wait``, and comes before any access to memory that
        other kernels write.
        """
        return "await_predecessors();" in self.text

    def key(self, arch: str) -> str:
        """Return the content key of this kernel compiled for ``arch``."""
        return Artifacts.key("cubin", arch, self.name, self.text, repr(self.defines))


class KernelLanguage(Protocol):
    """A kernel in another language than CUDA C++: ``device.compile(it)`` returns what its ``load(device)`` does.

    A language compiles within ``device.artifacts.get(key, make)``, so that an engine holds what ``make`` returned and
    runs without the language's compiler, and hands the machine code on as a ``KernelBinary``. ``TritonSource`` is one;
    plugins can bring others.
    """

    def load(self, device: Any) -> Any:
        """Return the kernel on ``device``.

        Raises
        ------
        TacticError
            If it does not compile.
        """
        ...
