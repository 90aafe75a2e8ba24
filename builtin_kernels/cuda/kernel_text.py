"""Specialised kernels: shared helpers, then type names and macros, then the kernel's own file."""

from __future__ import annotations

from collections.abc import Mapping

from tactician.builtin_kernels.cuda.compiler import KernelSource, read_source


def specialise(
    name: str, file: str, types: Mapping[str, str], macros: Mapping[str, int | str], *headers: str
) -> KernelSource:
    """Return kernel ``name`` of ``file`` for ``types`` (names that the file uses → C types) and ``macros``.

    Both are put behind the headers, where names such as ``T`` can't clash with their template parameters.
    """
    lines = [f"typedef {c} {alias};" for alias, c in types.items()]
    lines += [f"#define {macro} {value}" for macro, value in macros.items()]
    return KernelSource("\n".join([read_source("common.cuh", *headers), *lines, read_source(file)]), name)
