"""Which node it is whose inputs do not fit together, and why, in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, TypeProto, numpy_helper
from tactician.model_checks import node_text, one_line, opset_versions, subgraphs
from tactician.tensor_checks import type_name

Dims = list[int | None] | None
"""Dimensions, None for those that are unknown; None where the rank is."""


@dataclass
class Types:
    """Types, and values of small constants, of the main graph's values by name."""

    types: Mapping[str, TypeProto]
    constants: Mapping[str, TensorProto]

    @classmethod
    def of(cls, proto: ModelProto) -> Types:
        """Return what ``proto`` says of its values."""
        graph = proto.graph
        types = {
            v.name: v.type
            for v in (*graph.input, *graph.value_info, *graph.output)
            if v.type.WhichOneof("value")
        }
        for tensor in graph.initializer:
            types[tensor.name] = onnx.helper.make_tensor_type_proto(tensor.data_type, tuple(tensor.dims))
        constants = {t.name: t for t in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant" and len(node.attribute) == 1 and node.attribute[0].HasField("t"):
                constants[node.output[0]] = node.attribute[0].t
        return cls(types, constants)

    def dims(self, name: str) -> Dims:
        """Return the dimensions of the value called ``name``."""
        kind = self.types.get(name)
        if kind is None or not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
            return None
        return [d.dim_value if d.HasField("dim_value") else None for d in kind.tensor_type.shape.dim]

    def text(self, name: str) -> str:
        """Return name and type of a value, ``'x' float32[1, 3, N]``."""
        kind = self.types.get(name)
        if kind is None or not kind.HasField("tensor_type"):
            return f"'{name}'"
        element = type_name(kind.tensor_type.elem_type) if kind.tensor_type.elem_type else ""
        if not kind.tensor_type.HasField("shape"):
            return f"'{name}' {element}"
        dims = [
            str(d.dim_value) if d.HasField("dim_value") else d.dim_param or "?"
            for d in kind.tensor_type.shape.dim
        ]
        return f"'{name}' {element}[{', '.join(dims)}]"


def find_clash(proto: ModelProto, *, thorough: bool) -> str | None:
    """Return what is wrong with the first node of ``proto`` whose inputs do not fit together, or None.

    Parameters
    ----------
    proto
        A model whose types are inferred as far as they can be.
    thorough
        Whether onnx's own inference is asked about every node, too, and not the common operators' rules alone.
    """
    types = Types.of(proto)
    versions = opset_versions(proto)
    for node in proto.graph.node:
        if node.domain:
            continue
        rule = _RULES.get(node.op_type)
        reason = rule(node, types) if rule else None
        if reason:
            return f"{node_text(node)}: {reason}"
        if thorough and (said := _onnx_says(node, types, versions)):
            given = ", ".join(types.text(name) for name in node.input if name)
            return f"{node_text(node)}: {said} (inputs: {given or 'none'})"
    return None


def _onnx_says(node: NodeProto, types: Types, versions: Mapping[str, int]) -> str | None:
    if any(True for _ in subgraphs(node)) or any(name and name not in types.types for name in node.input):
        return None
    try:
        onnx.shape_inference.infer_node_outputs(
            onnx.defs.get_schema(node.op_type, versions[""], ""),
            node,
            {name: types.types[name] for name in node.input if name},
            {name: types.constants[name] for name in node.input if name in types.constants},
            opset_imports=[onnx.helper.make_opsetid("", versions[""])],
        )
    except Exception as error:
        return one_line(error).replace("[ShapeInferenceError] ", "").replace("[TypeInferenceError] ", "")
    return None


def _conv(node: NodeProto, types: Types) -> str | None:
    x, w = _two(node, types)
    if x is None or w is None or len(x) < 3 or len(w) < 2:
        return None
    if len(x) != len(w):
        return f"weight is {_show(w)} but input '{node.input[0]}' is {_show(x)}; both must have one rank"
    group = _attribute(node, "group", 1)
    channels, wanted = x[1], w[0] if node.op_type == "ConvTranspose" else _times(w[1], group)
    if channels is None or wanted is None or channels == wanted:
        return None
    with_groups = f" in {group} groups" if group != 1 else ""
    return (
        f"weight is {_show(w)} but input has {channels} channels; it needs {wanted}{with_groups} "
        f"(input {types.text(node.input[0])}, weight {types.text(node.input[1])})"
    )


def _matmul(node: NodeProto, types: Types) -> str | None:
    a, b = _two(node, types)
    if not a or not b:
        return None
    columns, rows = a[-1], b[-2] if len(b) > 1 else b[0]
    if _differ(columns, rows):
        return f"{columns} columns of {types.text(node.input[0])} do not fit {rows} rows of {types.text(node.input[1])}"
    return _broadcast_reason(node, types, a[:-2], b[:-2])


def _gemm(node: NodeProto, types: Types) -> str | None:
    a, b = _two(node, types)
    if a is None or b is None or len(a) != 2 or len(b) != 2:
        return None
    columns = a[0 if _attribute(node, "transA", 0) else 1]
    rows = b[1 if _attribute(node, "transB", 0) else 0]
    if not _differ(columns, rows):
        return None
    flags = ", ".join(f for f in ("transA", "transB") if _attribute(node, f, 0))
    return (
        f"{columns} columns of {types.text(node.input[0])} do not fit {rows} rows of {types.text(node.input[1])}"
        + (f" with {flags}" if flags else "")
    )


def _broadcast(node: NodeProto, types: Types) -> str | None:
    a, b = _two(node, types)
    return None if a is None or b is None else _broadcast_reason(node, types, a, b)


def _broadcast_reason(node: NodeProto, types: Types, a: list[int | None], b: list[int | None]) -> str | None:
    for p, q in zip(reversed(a), reversed(b), strict=False):
        if _differ(p, q) and 1 not in (p, q):
            return (
                f"{types.text(node.input[0])} and {types.text(node.input[1])} do not broadcast: {p} meets {q}"
            )
    return None


def _concat(node: NodeProto, types: Types) -> str | None:
    known = [(name, dims) for name in node.input if (dims := types.dims(name)) is not None]
    if not known:
        return None
    first, reference = known[0]
    axis = _attribute(node, "axis", 0)
    for name, dims in known[1:]:
        same_rank = len(dims) == len(reference)
        at = axis % len(dims) if dims else 0
        if not same_rank or any(
            _differ(p, q) for i, (p, q) in enumerate(zip_longest(reference, dims)) if i != at
        ):
            return f"{types.text(first)} and {types.text(name)} do not fit along axis {axis}: only that dimension may differ"
    return None


def _reshape(node: NodeProto, types: Types) -> str | None:
    x = types.dims(node.input[0])
    target = types.constants.get(node.input[1]) if len(node.input) > 1 else None
    if x is None or None in x or target is None:
        return None
    wanted = [int(v) for v in numpy_helper.to_array(target).ravel()]
    zero_is_zero = bool(_attribute(node, "allowzero", 0))
    dims = [x[i] if d == 0 and not zero_is_zero and i < len(x) else d for i, d in enumerate(wanted)]
    total = int(np.prod([d or 0 for d in x], dtype=object)) if x else 1
    rest = int(np.prod([d or 0 for d in dims if d != -1], dtype=object)) if dims else 1
    fits = (total % rest == 0 if rest else total == 0) if -1 in dims else total == rest
    return (
        None
        if fits
        else f"{types.text(node.input[0])} has {total} elements; they do not fill the shape {wanted}"
    )


def _two(node: NodeProto, types: Types) -> tuple[Dims, Dims]:
    if len(node.input) < 2:
        return None, None
    return types.dims(node.input[0]), types.dims(node.input[1])


def _attribute(node: NodeProto, name: str, default: int) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def _differ(p: int | None, q: int | None) -> bool:
    return p is not None and q is not None and p != q


def _times(p: int | None, q: int) -> int | None:
    return None if p is None else p * q


def _show(dims: list[int | None]) -> str:
    return f"[{', '.join('?' if d is None else str(d) for d in dims)}]"


_BROADCASTING = (
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Pow",
    "Equal",
    "Greater",
    "Less",
    "And",
    "Or",
    "Xor",
    "Mod",
    "PRelu",
)
_RULES: dict[str, Callable[[NodeProto, Types], Any]] = {
    "Conv": _conv,
    "ConvTranspose": _conv,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Concat": _concat,
    "Reshape": _reshape,
    **dict.fromkeys(_BROADCASTING, _broadcast),
}
