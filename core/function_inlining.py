"""Model-local functions, inlined: checked first, since a small file can call functions without end or limit."""

from __future__ import annotations

from onnx import FunctionProto, ModelProto, NodeProto, inliner
from tactician.errors import InvalidModelError
from tactician.model_checks import all_nodes, node_text, one_line, standard

MOST_NODES = 1_000_000
"""Nodes that a model may have once its functions are inlined."""

_Key = tuple[str, str, str]


def inline_functions(proto: ModelProto) -> ModelProto:
    """Return ``proto`` with all calls of its own functions replaced by their bodies.

    Raises
    ------
    InvalidModelError
        If functions call themselves, grow the model beyond ``MOST_NODES``, or are called with too many inputs.
    """
    if not proto.functions:
        return proto
    functions = {_key(f): f for f in proto.functions}
    if len(functions) != len(proto.functions):
        raise InvalidModelError("two functions of the model have the same domain, name and overload")
    sizes: dict[_Key, int] = {}
    nodes = sum(_count(node, functions, sizes, ()) for node in all_nodes(proto.graph.node))
    if nodes > MOST_NODES:
        raise InvalidModelError(
            f"inlining the model's functions would make {nodes} nodes; the limit is {MOST_NODES}"
        )
    try:
        inlined = inliner.inline_local_functions(proto, convert_version=True)
    except Exception as error:  # the inliner has no exception of its own
        raise InvalidModelError(f"the model's functions can't be inlined: {one_line(error)}") from error
    left = next((n for n in all_nodes(inlined.graph.node) if _call(n) in functions), None)
    if left is not None:
        raise InvalidModelError(
            f"{node_text(left)}: the function it calls can't be inlined, since it is written for another opset than the model"
        )
    del inlined.functions[:]
    return inlined


def _count(
    node: NodeProto, functions: dict[_Key, FunctionProto], sizes: dict[_Key, int], path: tuple[_Key, ...]
) -> int:
    """Return how many nodes ``node`` becomes; ``path`` are the functions that are being counted."""
    key = _call(node)
    function = functions.get(key)
    if function is None:
        return 1
    if key in path:
        names = " -> ".join(name for _, name, _ in (*path[path.index(key) :], key))
        raise InvalidModelError(f"the model's functions call themselves: {names}")
    if len(node.input) > len(function.input) or len(node.output) > len(function.output):
        raise InvalidModelError(
            f"{node_text(node)} calls function '{function.name}' with {len(node.input)} inputs and {len(node.output)} outputs; "
            f"it has {len(function.input)} and {len(function.output)}"
        )
    if key not in sizes:
        inner = (*path, key)
        sizes[key] = sum(_count(n, functions, sizes, inner) for n in all_nodes(function.node))
    return sizes[key]


def _key(function: FunctionProto) -> _Key:
    return standard(function.domain), function.name, function.overload


def _call(node: NodeProto) -> _Key:
    return standard(node.domain), node.op_type, node.overload
