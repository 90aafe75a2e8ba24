"""A CUDA kernel that is compiled already: a cubin, fatbin or PTX that a plugin ships, or that another compiler made."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from tactician.errors import TacticError
from tactician.plugins.target import Artifacts

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

Form = Literal["cubin", "fatbin", "ptx"]
"""What a driver or an assembler takes: code of one architecture, of several, or of a virtual one as text."""

_ELF, _FATBIN = b"\x7fELF", b"\x50\xed\x55\xba"
_CUDA_MACHINE = 190
"""``e_machine`` of an ELF file that holds code for NVIDIA GPUs."""
_PTX = re.compile(rb"^\s*\.version\s+\d.*?^\s*\.target\s+\w", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class KernelBinary:
    """One kernel of a compiled module.

    ``device.compile(binary)`` of the ``cuda`` device returns the kernel; ``kernel.launch(stream, grid, block, *args)``
    enqueues it. A cubin and a fatbin are loaded as they are. PTX is assembled for the device once, and the engine
    holds the result.

    Parameters
    ----------
    code
        The module: a cubin, a fatbin, or PTX in UTF-8.
    name
        Name of the kernel in it, mangled as the compiler wrote it (``extern "C"`` keeps CUDA C++ names plain).

    Raises
    ------
    TacticError
        If ``code`` is none of the three.
    """

    code: bytes = field(repr=False)
    name: str

    def __post_init__(self) -> None:
        if _form(self.code) is None:
            raise TacticError(
                f"the code of kernel '{self.name}' is no cubin, fatbin or PTX: it has {len(self.code)} bytes and "
                f"begins with {self.code[:16]!r}; host objects and libraries have to be unpacked (`cuobjdump -xelf all`)"
            )

    @classmethod
    def from_file(cls, file: str | Path | Traversable, name: str) -> Self:
        """Read the module from a path, or from a resource such as ``importlib.resources.files(package) / "k.cubin"``.

        Raises
        ------
        TacticError
            If the file can't be read, or holds none of the three forms.
        """
        source = Path(file) if isinstance(file, str) else file
        try:
            return cls(source.read_bytes(), name)
        except OSError as error:
            raise TacticError(f"the code of kernel '{name}' can't be read from '{file}': {error}") from error

    @property
    def form(self) -> Form:
        """Which of the three ``code`` is."""
        form = _form(self.code)
        assert form is not None  # __post_init__ asked
        return form

    @property
    def sm(self) -> int | None:
        """Of a cubin, the architecture it is for, such as 90 for sm_90 and sm_90a; None of the other forms."""
        if self.form != "cubin":
            return None
        (flags,) = struct.unpack_from("<I", self.code, 48)
        # since version 8 of the ABI, which CUDA 13 writes, the architecture is in the second byte, before in the first
        return int(flags >> 8 if self.code[8] >= 8 else flags) & 0xFF

    def key(self, arch: str) -> str:
        """Return the content key of this kernel on ``arch``."""
        return Artifacts.key("binary", arch, self.name, self.code)

    def require(self, arch: str) -> None:
        """Check that a device of ``arch`` (``"sm_90a"``) can run this, as far as its head says.

        Raises
        ------
        TacticError
            If it is a cubin for another architecture.
        """
        there, here = self.sm, _sm(arch)
        if there is not None and not (there // 10 == here // 10 and there % 10 <= here % 10):
            raise TacticError(
                f"the cubin of kernel '{self.name}' is for sm_{there}, and the device is {arch}; ship one for each "
                "architecture, or PTX, and decline the devices for which there is none"
            )


def _form(code: bytes) -> Form | None:
    if code.startswith(_ELF):
        machine = struct.unpack_from("<H", code, 18)[0] if len(code) >= 64 else 0
        return "cubin" if machine == _CUDA_MACHINE else None
    if code.startswith(_FATBIN):
        return "fatbin"
    return "ptx" if _PTX.search(code) else None


def _sm(arch: str) -> int:
    return int(arch.removeprefix("sm_").rstrip("af"))
