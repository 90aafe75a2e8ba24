"""Writes docs/kernels.md out of the registry: every built-in tactic, what it serves, where it runs, and its fields.

Types and architectures are found by asking: each tactic for CUDA is offered the calls of the test suite, those in
float32 also in the other types, on the architectures below, without a GPU. A test holds the page to it.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from tactician.config import BuilderConfig
from tactician.plugins.manager import load_plugins
from tactician.signature import OpSignature, TensorType
from tactician.tactics.tactic import ANY_OP, Tactic
from tactician.testing import make_signature, offline_device

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "docs" / "kernels.md"
ARCHITECTURES = ("sm_80", "sm_90a")
PLUGIN = "builtin"
_GENERATED = re.compile(r"(?<=<!-- generated: begin -->\n).*(?=<!-- generated: end -->)", re.DOTALL)
FLOATS = ("float16", "bfloat16", "float64")
NHWC_CONV = "tactician.nhwc::Conv"

Found = dict[type[Tactic], dict[str, set[str]]]


def updated(text: str) -> str:
    """Return the page with its generated part written anew."""
    registry = load_plugins(BuilderConfig()).registry
    classes = [cls for plugin, cls in registry if plugin.name == PLUGIN]
    parts = []
    for target in ("cuda", "cpu"):
        found = sorted((c for c in classes if c.target == target), key=lambda c: (_ops(c)[0], c.name()))
        parts.append(f"## {target}\n")
        parts += _table(found, _accepted(registry) if target == "cuda" else None)
        parts += [section for cls in found for section in _fields(cls)]
    return _GENERATED.sub(lambda _: "\n" + "\n".join(parts) + "\n", text)


def _table(classes: Iterable[type[Tactic]], accepted: Found | None) -> Iterator[str]:
    columns = ["tactic", "operators", *(["types", "architectures"] if accepted is not None else []), "source"]
    yield f"| {' | '.join(columns)} |"
    yield "|" + "---|" * len(columns)
    for cls in classes:
        cells = [f"[{cls.name()}](#{cls.name()})" if fields(cls) else cls.name(), _shortened(_ops(cls))]
        if accepted is not None:
            cells += [_types(cls, accepted), ", ".join(_architectures(cls, accepted))]
        yield f"| {' | '.join([*cells, _source(cls)])} |"
    yield ""


def _fields(cls: type[Tactic]) -> Iterator[str]:
    names = [f.name for f in fields(cls)]
    if not names:
        return
    documented = _field_docstrings(cls)
    yield f"### {cls.name()}\n"
    yield f"{inspect.cleandoc(cls.__doc__ or '').splitlines()[0]}\n"
    yield "| field | default | meaning |\n|---|---|---|"
    for f in fields(cls):
        yield f"| `{f.name}` | {f.default!r} | {documented.get(f.name, '')} |"
    yield ""


def _field_docstrings(cls: type[Tactic]) -> dict[str, str]:
    """Return the strings that stand below the fields of a class and of the classes that it is made of."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not issubclass(base, Tactic) or base is Tactic:
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)
        for statement, below in zip(body.body, body.body[1:], strict=False):
            if isinstance(statement, ast.AnnAssign) and isinstance(below, ast.Expr):
                value = below.value
                if isinstance(value, ast.Constant) and isinstance(statement.target, ast.Name):
                    found[statement.target.id] = " ".join(str(value.value).split()).replace("|", "\\|")
    return found


def _ops(cls: type[Tactic]) -> tuple[str, ...]:
    return (cls.op,) if isinstance(cls.op, str) else tuple(sorted(cls.op))


def _shortened(ops: tuple[str, ...]) -> str:
    if ops == (ANY_OP,):
        return "any"
    return ", ".join(op.removeprefix("ai.onnx::") for op in ops)


def _types(cls: type[Tactic], accepted: Found) -> str:
    types = {t for found in accepted[cls].values() for t in found}
    return ", ".join(sorted(types, key=_by_kind)) if types else _as_library(cls)


def _architectures(cls: type[Tactic], accepted: Found) -> list[str]:
    return [a for a in ARCHITECTURES if accepted[cls].get(a)] or [_as_library(cls)]


def _as_library(cls: type[Tactic]) -> str:
    return f"those of {cls().library or 'the operators within'}"


def _by_kind(dtype: str) -> tuple[str, int]:
    return re.sub(r"\d", "", dtype), int(re.sub(r"\D", "", dtype) or 0)


def _source(cls: type[Tactic]) -> str:
    module = Path(inspect.getsourcefile(cls) or "")
    path = Path("builtin_kernels") / module.parent.name / module.name
    kernel = path.with_suffix(".cu")
    links = [f"[{p.name}](../{p.as_posix()})" for p in (path, kernel) if (ROOT / p).exists()]
    return ", ".join(links)


@cache
def _calls() -> list[OpSignature]:
    """Return the calls that the test suite makes of the CUDA kernels."""
    sys.path.insert(0, str(ROOT / "tests"))
    import attention_cases
    import conv_nhwc_cases
    import convolution_cases
    import gemm_cases
    import memory_bound_cases

    cases: list[Any] = [*attention_cases.SMALL, *gemm_cases.SMALL]
    cases += [*convolution_cases.CONVOLUTIONS, *convolution_cases.POOLING, *convolution_cases.NORMALIZATION]
    cases += [case for family in memory_bound_cases.FAMILIES.values() for case in family]
    made = [make_signature(c.op, c.inputs, c.attributes, c.version, c.constants, c.outputs) for c in cases]
    made += [make_signature(NHWC_CONV, c.inputs(), c.attributes) for c in conv_nhwc_cases.SMALL]
    return [*made, *(_retyped(s, t) for s in made for t in FLOATS if _is_of(s, "float32"))]


def _is_of(signature: OpSignature, dtype: str) -> bool:
    return any(t is not None and t.dtype == dtype for t in signature.inputs)


def _retyped(signature: OpSignature, dtype: str) -> OpSignature:
    """Return the call with ``dtype`` wherever it has float32."""

    def of(types: tuple[TensorType | None, ...]) -> tuple[Any, ...]:
        return tuple(replace(t, dtype=dtype) if t and t.dtype == "float32" else t for t in types)

    return replace(signature, inputs=of(signature.inputs), outputs=of(signature.outputs))


@cache
def _accepted(registry: Any) -> Found:
    """Return, for each tactic and architecture, the types of first inputs that some configuration takes."""
    found: Found = defaultdict(lambda: defaultdict(set))
    for architecture in ARCHITECTURES:
        device = offline_device("cuda", architecture)
        for signature in _calls():
            first = next((t for t in signature.inputs if t is not None), signature.outputs[0])
            for candidate in registry.candidates(signature, device)[0]:
                if candidate.plugin.name == PLUGIN and not candidate.tactic.library:
                    found[type(candidate.tactic)][architecture].add(first.dtype)
    return found


if __name__ == "__main__":
    FILE.write_text(updated(FILE.read_text(encoding="utf-8")), encoding="utf-8")
