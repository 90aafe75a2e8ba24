"""Kernels to what the driver loads: CUDA C++ by NVRTC, PTX by nvJitLink. Needs no GPU and no driver."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from tactician.errors import TacticError
from tactician.plugins.kernel_binary import KernelBinary
from tactician.plugins.kernel_source import KernelSource as KernelSource
from tactician.plugins.target import Artifacts

Defines = Mapping[str, int | str]


@dataclass(frozen=True)
class Resources:
    """What ptxas says that a kernel takes; sizes in bytes, spills and stack per thread."""

    registers: int
    spill_stores: int
    spill_loads: int
    stack: int
    warnings: tuple[str, ...]


@cache
def read_source(*names: str) -> str:
    """Return the text of this folder's source files ``names``, one after the other."""
    folder = files("tactician.builtin_kernels.cuda")
    return "\n".join((folder / name).read_text(encoding="utf-8") for name in names)


def loadable_code(source: KernelSource | KernelBinary, arch: str, artifacts: Artifacts) -> bytes:
    """Return the cubin, or the fatbin, of a kernel on ``arch``; what has to be compiled is kept in ``artifacts``.

    Raises
    ------
    TacticError
        If the source does not compile, or the binary is for another architecture.
    """
    if isinstance(source, KernelSource):
        return artifacts.get(source.key(arch), lambda: compile_cubin(source, arch)[0])
    if source.form == "ptx":
        return artifacts.get(source.key(arch), lambda: assemble_ptx(source, arch))
    source.require(arch)
    return source.code


def assemble_ptx(source: KernelBinary, arch: str) -> bytes:
    """Return the cubin of PTX on ``arch``, made by nvJitLink or, where that is not installed, by the driver.

    Raises
    ------
    TacticError
        If the assembler refuses the PTX, or there is none; the message holds its log.
    """
    from cuda.core import Program, ProgramOptions

    text = source.code.decode().rstrip("\0")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # cuda.core warns where it takes the driver's linker
            return bytes(Program(text, "ptx", ProgramOptions(arch=arch)).compile("cubin").code)
    except Exception as error:
        raise TacticError(
            f"the PTX of kernel '{source.name}' can't be assembled for {arch}: {error}; without a GPU's driver this "
            "needs the package nvidia-nvjitlink"
        ) from error


def compile_cubin(source: KernelSource, arch: str, *, report: bool = False) -> tuple[bytes, Resources | None]:
    """Compile ``source`` for ``arch`` (``"sm_80"``, ``"sm_90a"``), through the user's program cache.

    With ``report``, the cache is passed by and what ptxas said comes back too.

    Raises
    ------
    TacticError
        If NVRTC refuses the source; the message holds its log.
    """
    from cuda.core import Program, ProgramOptions

    options = ProgramOptions(
        std="c++17",
        arch=arch,
        define_macro=[(k, str(v)) for k, v in source.defines] or None,
        ptxas_options=["-v"] if report else None,
    )
    log = io.StringIO()
    try:
        program = Program(source.text, "c++", options)
        code = (
            program.compile("cubin", logs=log) if report else program.compile("cubin", cache=_program_cache())
        )
    except Exception as error:
        raise TacticError(
            f"kernel '{source.name}' does not compile for {arch}: {error}\n{log.getvalue()}"
        ) from error
    cubin = bytes(code.code)
    return cubin, _resources(log.getvalue()) if report else None


@cache
def _program_cache() -> object:
    from pathlib import Path

    import platformdirs
    from cuda.core.utils import FileStreamProgramCache

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return FileStreamProgramCache(Path(platformdirs.user_cache_dir("tactician")) / "cubins")


def _resources(log: str) -> Resources:
    def worst(pattern: str) -> int:
        return max((int(n) for n in re.findall(pattern, log)), default=0)

    return Resources(
        registers=worst(r"Used (\d+) registers"),
        spill_stores=worst(r"(\d+) bytes spill stores"),
        spill_loads=worst(r"(\d+) bytes spill loads"),
        stack=worst(r"(\d+) bytes stack frame"),
        warnings=tuple(line.strip() for line in log.splitlines() if "warning" in line.lower()),
    )
