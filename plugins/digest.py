"""The hash of a plugin's files: what tells one build of a plugin from another."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from tactician.plugins.discovery import GROUP, Source

SOURCE_SUFFIXES = frozenset(
    {
        ".c",
        ".cc",
        ".cpp",
        ".cu",
        ".cubin",
        ".cuh",
        ".fatbin",
        ".h",
        ".hpp",
        ".json",
        ".ptx",
        ".py",
        ".pyd",
        ".so",
    }
)


def plugin_digest(source: Source, loaded: Any) -> str:
    """Return the SHA-256 of the files of plugin ``source``, whose entry point named the object ``loaded``.

    ``loaded`` is None where the plugin is not imported.

    Of an installed distribution it is taken from the hashes in its RECORD, and no file is read. Of an
    editable install, a single file, or a package within tactician itself, it is taken from the module's own
    source files.
    """
    if source.inline is not None:
        return source.inline.digest
    file = _module_file(source, loaded)
    if source.distribution is not None and source.distribution_name != GROUP:
        recorded = _record_digest(source.distribution, file)
        if recorded:
            return recorded
    return _source_digest(file) if file else hashlib.sha256(source.entry.encode()).hexdigest()


def _module_file(source: Source, loaded: Any) -> Path | None:
    import sys

    module = loaded if isinstance(loaded, ModuleType) else sys.modules.get(source.entry.partition(":")[0])
    file = getattr(module, "__file__", None)
    return Path(file) if file else source.location


def _record_digest(distribution: metadata.Distribution, file: Path | None) -> str | None:
    """Return the digest of what RECORD lists, or None if the module is not there (an editable install)."""
    lines, has_module = [], False
    for path in distribution.files or ():
        # scripts lie outside and hold the interpreter's path; metadata differs by installer
        if (
            path.hash is None
            or path.suffix == ".pyc"
            or path.parts[0] == ".."
            or ".dist-info" in path.parts[0]
        ):
            continue
        lines.append(f"{path.as_posix()},{path.hash.mode}={path.hash.value}\n")
        has_module = has_module or (file is not None and Path(str(path.locate())).resolve() == file.resolve())
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest() if has_module else None


def _source_digest(file: Path) -> str:
    """Return the digest of a module: of its folder if it is a package, else of its file."""
    if file.name != "__init__.py":
        return _hash_files(((file.name, file),))
    folder = file.parent
    paths = (p for p in folder.rglob("*") if p.suffix in SOURCE_SUFFIXES and "__pycache__" not in p.parts)
    return _hash_files(tuple(sorted((p.relative_to(folder).as_posix(), p) for p in paths if p.is_file())))


def _hash_files(files: tuple[tuple[str, Path], ...]) -> str:
    return _hash_stamped(
        tuple((name, path, path.stat().st_mtime_ns, path.stat().st_size) for name, path in files)
    )


@cache
def _hash_stamped(files: tuple[tuple[str, Path, int, int], ...]) -> str:
    """Hash names and contents; the stamps are there so that an edited file is read again."""
    digest = hashlib.sha256()
    for name, path, _, _ in files:
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{name},{content}\n".encode())
    return digest.hexdigest()
