"""Beginnings of plugin packages: templates, and what fills them in."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from tactician import __version__
from tactician.errors import ConfigError
from tactician.plugins.discovery import check_plugin_name


@dataclass(frozen=True)
class Kind:
    """A kind of package: what it brings, what to do with it, and what it needs beside tactician and NumPy."""

    what: str
    next: str
    dependencies: tuple[str, ...] = ()


KINDS = {
    "cuda": Kind(
        "A CUDA C++ kernel for HardSwish.",
        "Put your kernel into `@PACKAGE@/kernel.cu`, and say in `@PACKAGE@/__init__.py` for which operator it is, what it\n"
        "can't do (`decline`) and what is searched over (the fields). On a machine with a GPU,\n"
        "`tactician explain ENGINE` has it in its table.",
    ),
    "triton": Kind(
        "A Triton kernel for HardSwish.",
        "Put your kernel into `@PACKAGE@/kernels.py`, and say in `@PACKAGE@/__init__.py` for which operator it is, what it\n"
        "can't do (`decline`) and what is searched over (the fields). On a machine with a GPU,\n"
        "`tactician explain ENGINE` has it in its table. Engines that use it run without Triton.",
        ("triton>=3.6",),
    ),
    "op": Kind(
        "The operator SquaredRelu, with a kernel for the CPU.",
        "Put your operator in its place in `@PACKAGE@/__init__.py`: its name, how its output types follow (`infer`), a\n"
        "NumPy reference, and tactics, as many as you like.",
    ),
    "selector": Kind(
        "A policy for the choice of tactics.",
        "Write your rules into `@PACKAGE@/__init__.py`. They hold in every build on a machine where this is installed.",
    ),
    "target": Kind(
        "A kind of device, with tactics for Add and Relu.",
        "Put your device's memory, streams and clock into `@PACKAGE@/device.py` in place of the host's, and its tactics into\n"
        "`@PACKAGE@/kernels.py`. `tactician build --target @NAME@` builds for it; what it has no tactic for runs on the CPU.",
    ),
}
FILES = {"__init__.py": "@PACKAGE@/__init__.py", "test.py": "tests/test_@PACKAGE@.py"}
"""Where templates go, if not to the folder of the module (code) or of the package (all else)."""


def create(name: str, kind: str, into: Path | None = None) -> list[Path]:
    """Write a package for the plugin ``name`` and return its files.

    Parameters
    ----------
    kind
        One of ``KINDS``.
    into
        Folder to make; by default ``tactician-NAME`` in the working folder.

    Raises
    ------
    ConfigError
        If the name can't be a plugin's, or there is something at ``into`` already.
    """
    check_plugin_name(name)
    distribution = f"tactician-{name.lower().replace('_', '-')}"
    folder = Path(into or distribution).absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"'{folder}' is there already; name a new folder with --into")
    package = distribution.replace("-", "_")
    words = {"@WHAT@": KINDS[kind].what, "@NEXT@": KINDS[kind].next}
    words |= {"@NAME@": name, "@DISTRIBUTION@": distribution, "@PACKAGE@": package}
    words["@DEPENDENCIES@"] = ", ".join(
        f'"{d}"' for d in (_own_version(), "numpy>=1.26", *KINDS[kind].dependencies)
    )
    written = []
    for source, text in _templates(kind):
        path = folder / _filled(_place(source), words)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_filled(text, words), encoding="utf-8")
        written.append(path)
    return sorted(written, key=lambda p: (len(p.parts), p))


def _templates(kind: str) -> list[tuple[str, str]]:
    """Return names and texts of the templates of a kind."""
    found = []
    for folder in ("common", kind):
        for item in (files("tactician.scaffold") / folder).iterdir():
            if item.name.endswith(".template"):
                found.append((item.name.removesuffix(".template"), item.read_text(encoding="utf-8")))
    return found


def _place(name: str) -> str:
    if name in FILES:
        return FILES[name]
    return name if name in ("README.md", "pyproject.toml") else f"@PACKAGE@/{name}"


def _filled(text: str, words: dict[str, str]) -> str:
    for word, value in words.items():
        text = text.replace(word, value)
    assert not re.search(r"@[A-Z]+@", text), text
    return text


def _own_version() -> str:
    major, minor, *_ = __version__.split(".")
    return f"tactician>={major}.{minor},<{major}.{int(minor) + 1}"
