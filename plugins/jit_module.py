"""The module that holds a plugin's jit functions: found and hashed without being imported, imported to compile."""

from __future__ import annotations

import ast
import hashlib
import importlib
import sys
import threading
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from tactician.errors import TacticError
from tactician.plugins.discovery import is_path

_lock = threading.Lock()


def read_sources(module: str | Path, function: str) -> list[tuple[str, bytes]]:
    """Return name and content of a module's file, and of those files of the same folder that it imports.

    Parameters
    ----------
    module
        Name of the module, or path of its file. Of a name with dots, the package is imported, not the module.
    function
        What is looked for in it, for errors.

    Raises
    ------
    TacticError
        If a file can't be found, read or parsed.
    """
    left, found = [locate(module, function)], dict[str, bytes]()
    while left:
        file = left.pop()
        if file.name in found:
            continue
        try:
            found[file.name] = file.read_bytes()
            left += _imported_siblings(file, ast.parse(found[file.name]))
        except (OSError, SyntaxError, ValueError) as error:
            raise TacticError(f"function '{function}': its source '{file}' can't be read: {error}") from error
    return sorted(found.items())


def locate(module: str | Path, function: str) -> Path:
    """Return the path of a module's file.

    Raises
    ------
    TacticError
        If there is none.
    """
    if isinstance(module, Path) or is_path(module):
        return Path(module)
    try:
        spec = find_spec(module)
    except (ImportError, ValueError, AttributeError) as error:
        raise TacticError(f"module '{module}' of function '{function}' can't be found: {error}") from error
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        raise TacticError(
            f"module '{module}' of function '{function}' can't be found; name a module that is installed with the "
            "plugin, or the path of a .py file"
        )
    return Path(spec.origin)


def import_module(module: str | Path, function: str) -> ModuleType:
    """Import the module, by its name or from its file.

    Raises
    ------
    TacticError
        If that fails.
    """
    file = locate(module, function)
    try:
        with _lock:
            if isinstance(module, str) and not is_path(module):
                return importlib.import_module(module)
            return _import_file(file)
    except Exception as error:
        raise TacticError(
            f"module '{module}' of function '{function}' can't be imported: {type(error).__name__}: {error}"
        ) from error


def _import_file(file: Path) -> ModuleType:
    # the content is part of the name: an edited file is another module, and none takes an installed one's place
    digest = hashlib.sha256(str(file.absolute()).encode() + file.read_bytes()).hexdigest()[:16]
    name = f"tactician_jit_{file.stem}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    spec = spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"'{file}' is no Python file")
    module = module_from_spec(spec)
    sys.modules[name] = module  # Triton looks functions' modules up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _imported_siblings(file: Path, tree: ast.AST) -> list[Path]:
    """Return the modules beside ``file`` that it may import: what bears the same name elsewhere does no harm."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.rpartition(".")[2] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.name for alias in node.names} | {(node.module or "").rpartition(".")[2]}
    paths = (file.with_name(f"{name}.py") for name in sorted(names - {"", "*"}))
    return [path for path in paths if path.is_file()]
