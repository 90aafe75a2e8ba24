"""A Triton kernel as a tactic hands it to the ``cuda`` device: compiled once, then run without Triton."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import numpy as np
from tactician.errors import TacticError
from tactician.plugins.jit_module import import_module, read_sources
from tactician.plugins.kernel_binary import KernelBinary
from tactician.plugins.target import Artifacts

Constant = int | float | bool | str | None

SCALARS: dict[str, type[np.generic]] = {
    "i1": np.bool_,
    **{f"i{n}": getattr(np, f"int{n}") for n in (8, 16, 32, 64)},
    **{f"u{n}": getattr(np, f"uint{n}") for n in (8, 16, 32, 64)},
    "fp32": np.float32,
    "fp64": np.float64,
}
"""NumPy type of a scalar argument by its name in Triton."""
POINTER_DIVISIBILITY = 16
"""Bytes that Triton can make use of; tensors are aligned to more."""
_TYPE = re.compile(r"(\*?)(\w+)(?::(\d+))?")


@dataclass(frozen=True)
class TritonSource:
    """A ``@triton.jit`` function, specialised.

    ``device.compile(source)`` of the ``cuda`` device returns the kernel; ``kernel.launch(stream, grid, *args)``
    enqueues it. Needs no GPU to compile. The engine holds the machine code, so that Triton has to be installed where
    engines are built, not where they run; the function therefore stands in a module of its own, which the plugin
    names and doesn't import.

    Parameters
    ----------
    module
        Module of the function: a name (``"tactician_triton.kernels"``), or the path of a ``.py`` file. The functions
        that it calls stand in that file, or in files of the same folder that it imports.
    function
        The function's name.
    signature
        Name and type of each argument that a launch passes, in the function's order: ``"*fp16"`` for a tensor,
        ``"i32"``, ``"fp32"`` … for a scalar, and ``"i32:16"`` for an integer known to be divisible by 16. Tensors
        are taken to be aligned to 16 bytes.
    constants
        Name and value of each other argument.
    num_warps, num_stages, maxnreg
        As in Triton.
    """

    module: str | Path
    function: str
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Constant], ...] = ()
    num_warps: int = 4
    num_stages: int = 3
    maxnreg: int | None = None

    def key(self, arch: str) -> str:
        """Return the content key of this kernel compiled for ``arch``; imports neither the module nor Triton.

        Triton's version is no part of it: a process without Triton has to find what an engine holds. The version
        that compiled it stands in ``CompiledKernel``.

        Raises
        ------
        TacticError
            If the module's file can't be found or read.
        """
        options = (self.num_warps, self.num_stages, self.maxnreg)
        sources = [part for item in read_sources(self.module, self.function) for part in item]
        specialisation = repr((self.signature, self.constants, options))
        return Artifacts.key("triton", arch, self.function, specialisation, *sources)

    def load(self, device: Any) -> TritonKernel:
        """Return the kernel on ``device``, compiled where ``device.artifacts`` does not hold it yet.

        Raises
        ------
        TacticError
            If Triton is missing or refuses the function, if the arguments are not the function's, or if the kernel
            needs what a launch does not provide: scratch memory of Triton's own, or more shared memory than there is.
        """
        arch, sm = str(device.facts["arch"]), int(device.facts["sm"])
        data = device.artifacts.get(self.key(arch), lambda: msgspec.msgpack.encode(self.compile(sm)))
        compiled = msgspec.msgpack.decode(data, type=CompiledKernel)
        limit = int(device.facts["shared_bytes_per_block"])
        if compiled.shared_bytes > limit:
            raise TacticError(
                f"{self} takes {compiled.shared_bytes} bytes of shared memory for a block, {device.name} has {limit}; "
                "decline smaller devices, or take smaller blocks or fewer stages"
            )
        return TritonKernel(device.compile(KernelBinary(compiled.cubin, compiled.name)), compiled, self)

    def compile(self, sm: int) -> CompiledKernel:
        """Compile for compute capability ``sm`` (90 for 9.0).

        Raises
        ------
        TacticError
            As ``load``.
        """
        try:
            import triton
            from triton.backends.compiler import GPUTarget
            from triton.compiler import ASTSource
        except ImportError as error:
            raise TacticError(
                f"{self} has to be compiled, and Triton can't be imported ({error}); `pip install triton`, or run an "
                "engine that was built where it is installed"
            ) from error
        function = self._find(import_module(self.module, self.function))
        signature, attributes = self._types(function.arg_names)
        options = {
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            "maxnreg": self.maxnreg,
            "enable_fp_fusion": True,  # as NVRTC does; Triton's own default changes with its version
        }
        try:
            source = ASTSource(function, signature, dict(self.constants), attributes)
            result = triton.compile(source, target=GPUTarget("cuda", sm, 32), options=options)
        except Exception as error:
            raise TacticError(
                f"{self} does not compile for sm_{sm} with Triton {triton.__version__}: {error}"
            ) from error
        return self._compiled(result, triton.__version__)

    def __str__(self) -> str:
        """Return how errors call it."""
        constants = ", ".join(f"{name}={value!r}" for name, value in self.constants)
        return f"Triton kernel '{self.function}' of '{self.module}' ({constants})"

    def _find(self, module: ModuleType) -> Any:
        function = getattr(module, self.function, None)
        if not hasattr(function, "arg_names") or not hasattr(function, "cache_key"):
            raise TacticError(
                f"{self}: '{self.function}' is {function!r}, no function under @triton.jit; decorate it, and unset "
                "TRITON_INTERPRET"
            )
        return function

    def _types(self, names: list[str]) -> tuple[dict[str, str], dict[tuple[int], list[list[Any]]]]:
        """Return the types of all arguments, in the function's order, and what is known of their values."""
        passed, constants = dict(self.signature), dict(self.constants)
        order = [name for name in names if name in passed]
        if sorted([*passed, *constants]) != sorted(names) or order != list(passed):
            raise TacticError(
                f"{self} has the arguments {', '.join(names)}; signature {', '.join(passed)} and constants "
                f"{', '.join(constants)} don't make these, each once and in that order"
            )
        types, attributes = {}, {}
        for index, name in enumerate(names):
            star, kind, divisor = self._parse(name, passed[name]) if name in passed else ("", "constexpr", 1)
            types[name] = star + kind
            if divisor > 1:
                attributes[index,] = [["tt.divisibility", divisor]]
        return types, attributes

    def _parse(self, name: str, text: str) -> tuple[str, str, int]:
        match = _TYPE.fullmatch(text)
        if match is None or not (match[1] or match[2] in SCALARS):
            raise TacticError(
                f"{self}: argument '{name}' has type '{text}'; write '*' and an element type for a tensor, or one of "
                f"{', '.join(SCALARS)} for a scalar, and ':16' behind it for a multiple of 16"
            )
        return match[1], match[2], int(match[3] or (POINTER_DIVISIBILITY if match[1] else 1))

    def _compiled(self, result: Any, version: str) -> CompiledKernel:
        """Take what a launch needs out of Triton's result."""
        metadata, text = result.metadata, result.asm.get("ptx", "")
        for what in ("global_scratch_size", "profile_scratch_size"):
            if getattr(metadata, what, 0):
                raise TacticError(
                    f"{self} needs {getattr(metadata, what)} bytes of {what.removesuffix('_size').replace('_', ' ')} memory "
                    "for each block, which launches don't provide; do without descriptors made on the device and "
                    "without profiling"
                )
        head = re.search(rf"\.entry\s+{re.escape(metadata.name)}\s*\((.*?)\)", text, re.DOTALL)
        if head is None:
            raise TacticError(f"{self}: Triton kept no PTX of it; unset TRITON_STORE_BINARY_ONLY")
        # how many pointers to scratch memory follow the arguments depends on Triton's version
        hidden = len(re.findall(r"\.param\b", head[1])) - len(self.signature)
        if hidden < 0:
            raise TacticError(
                f"{self}: Triton {version} left out some of its {len(self.signature)} arguments"
            )
        return CompiledKernel(
            result.asm["cubin"], metadata.name, metadata.shared, metadata.num_warps, hidden, version
        )


class CompiledKernel(msgspec.Struct, frozen=True):
    """What an engine holds of a Triton kernel.

    Parameters
    ----------
    cubin, name
        The machine code, and the kernel's name in it.
    shared_bytes
        Dynamic shared memory of a block, in bytes.
    num_warps
        Warps of a block.
    hidden
        Pointers to scratch memory that follow the arguments; all null.
    triton
        Version of Triton that compiled it.
    """

    cubin: bytes
    name: str
    shared_bytes: int
    num_warps: int
    hidden: int
    triton: str


class TritonKernel:
    """A loaded Triton kernel.

    Parameters
    ----------
    kernel
        The kernel as the device loaded it.
    """

    def __init__(self, kernel: Any, compiled: CompiledKernel, source: TritonSource) -> None:
        self.name = compiled.name
        self.threads = 32 * compiled.num_warps
        self.shared_bytes = compiled.shared_bytes
        self._kernel = kernel
        self._source = source
        self._arguments = [(name, SCALARS.get(kind.partition(":")[0])) for name, kind in source.signature]
        self._hidden = (None,) * compiled.hidden

    @property
    def registers(self) -> int:
        """Registers of a thread."""
        return int(self._kernel.registers)

    def launch(self, stream: Any, grid: int | tuple[int, ...], *args: Any) -> None:
        """Enqueue the kernel.

        Parameters
        ----------
        stream
            The stream to enqueue on.
        grid
            Programs, up to three dimensions.
        args
            One for each entry of the source's ``signature``: tensors or None (the null pointer), and for scalars NumPy
            scalars of just that type, or numbers.

        Raises
        ------
        TacticError
            If they are too few, too many, or of another type.
        """
        if len(args) != len(self._arguments):
            names = ", ".join(name for name, _ in self._arguments)
            raise TacticError(f"{self._source} takes {names}; the launch passes {len(args)} arguments")
        values = [self._value(*known, value) for known, value in zip(self._arguments, args, strict=True)]
        self._kernel.launch(
            stream, grid, self.threads, *values, *self._hidden, shared_bytes=self.shared_bytes
        )

    def _value(self, name: str, kind: type[np.generic] | None, value: Any) -> Any:
        number = isinstance(value, int | float | np.generic)
        make: Callable[[Any], Any] | None = kind
        if make is None and not number:
            return value
        if make is not None and number and (not isinstance(value, np.generic) or type(value) is kind):
            return make(value)
        wanted = "a tensor" if kind is None else kind.__name__
        raise TacticError(f"{self._source}: argument '{name}' is {wanted}; the launch passes {value!r}")
