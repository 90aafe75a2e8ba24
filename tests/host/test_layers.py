"""Imports point down only, and nobody reaches around the registry to the built-in kernels."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {
    "core": "tactician",
    "plugins": "tactician.plugins",
    "tactics": "tactician.tactics",
    "builtin_kernels": "tactician.builtin_kernels",
}

LAYERS = {
    "tactician.errors": 0,
    "tactician.signature": 0,
    "tactician.tactics.record": 0,  # plain data, as is the plan: both stand in engine files
    "tactician.plan": 1,
    "tactician.config": 1,
    "tactician.project": 1,
    "tactician.network": 1,
    "tactician.network_builder": 1,
    "tactician.external_data": 1,
    "tactician.shape_inference": 1,
    "tactician.memory": 1,
    "tactician.function_body": 1,
    "tactician.function_inlining": 1,
    "tactician.model_checks": 1,
    "tactician.model_file": 1,
    "tactician.node_inference": 1,
    "tactician.opset_conversion": 1,
    "tactician.profiles": 1,
    "tactician.shape_binding": 1,
    "tactician.shape_errors": 1,
    "tactician.stages": 1,
    "tactician.tensor_checks": 1,
    "tactician.user_folders": 1,
    "tactician.passes": 1,
    "tactician.importer": 1,
    "tactician.quantization": 1,
    "tactician.tactics": 2,
    "tactician.plugins": 3,
    "tactician.engine": 4,
    "tactician.arranging": 4,
    "tactician.assembly": 4,
    "tactician.builder": 4,
    "tactician.bisect": 4,
    "tactician.decompositions": 4,
    "tactician.fusion": 4,
    "tactician.layouts": 4,
    "tactician.measuring": 4,
    "tactician.recognition": 4,
    "tactician.optimizing": 4,
    "tactician.planning": 4,
    "tactician.precision_race": 4,
    "tactician.profile_building": 4,
    "tactician.profile_choices": 4,
    "tactician.profiled_engine": 4,
    "tactician.refitting": 4,
    "tactician.regions": 4,
    "tactician.siblings": 4,
    "tactician.specialising": 4,
    "tactician.stored_model": 4,
    "tactician.supervisor": 4,
    "tactician.views": 4,
    "tactician.worker": 4,
    "tactician.worker_process": 4,
    "tactician.runtime": 4,
    "tactician.report": 4,
    "tactician.onnx_backend": 5,
    "tactician.pytest_plugin": 5,
    "tactician.scaffold": 5,
    "tactician.testing": 5,
    "tactician.cli": 5,
}
"""Longest prefix wins; a module may import modules of its own layer or of one below."""

KERNELS_MAY_SEE = (
    "tactician.signature",
    "tactician.errors",
    "tactician.config",
    "tactician.tactics",
    "tactician.plugins",
    "tactician.builtin_kernels",
)


def modules() -> Iterator[tuple[str, Path]]:
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            relative = path.relative_to(ROOT / folder).with_suffix("")
            parts = [p for p in relative.parts if p != "__init__"]
            yield ".".join([package, *parts]), path


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and name of each tactician module that a file imports, except for type checkers alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        id(n) for block in ast.walk(tree) if _is_type_checking(block) for s in block.body for n in ast.walk(s)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (
                (node.lineno, alias.name) for alias in node.names if alias.name.startswith("tactician")
            )
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tactician"):
            assert node.level == 0
            module = node.module or ""
            names = [f"{module}.{alias.name}" for alias in node.names]
            yield from ((node.lineno, name if name in KNOWN else module) for name in names)


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def layer(module: str) -> int | None:
    while module:
        if module in LAYERS:
            return LAYERS[module]
        module = module.rpartition(".")[0]
    return None


KNOWN = {name for name, _ in modules()}


@pytest.mark.parametrize(("module", "path"), list(modules()), ids=[name for name, _ in modules()])
def test_imports_point_down(module: str, path: Path) -> None:
    if module == "tactician":
        assert list(imports(path)) == [], "the package itself imports nothing until it is asked"
        return
    if module.startswith("tactician.builtin_kernels"):
        for line, name in imports(path):
            assert name == "tactician" or name.startswith(KERNELS_MAY_SEE), (
                f"{path}:{line}: a plugin imports {name}"
            )
        return
    own = layer(module)
    assert own is not None, f"{module} has no layer; add it to LAYERS"
    for line, name in imports(path):
        assert not name.startswith("tactician.builtin_kernels"), (
            f"{path}:{line}: the built-in kernels are a plugin"
        )
        there = 0 if name == "tactician" else layer(name)
        assert there is not None, f"{path}:{line}: {name} has no layer; add it to LAYERS"
        assert there <= own, f"{path}:{line}: {module} (layer {own}) imports {name} (layer {there})"


def test_the_rule_is_checked_on_something() -> None:
    assert len(KNOWN) > 40
    assert any(list(imports(path)) for _, path in modules())


@pytest.mark.parametrize(("module", "path"), list(modules()), ids=[name for name, _ in modules()])
def test_every_file_says_what_it_owns(module: str, path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if path.name != "__init__.py" or text:
        docstring = ast.get_docstring(ast.parse(text))
        assert docstring, f"{path} has no docstring"
