"""The network: helpers over onnx_ir that read a model as operator signatures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from tactician.function_body import canonical_body
from tactician.network_builder import Network
from tactician.signature import (
    AttributeValue,
    Blob,
    Constant,
    Dim,
    OpSignature,
    TensorType,
    make_constant,
)

__all__ = [
    "Network",
    "call_inputs",
    "captured_values",
    "constant",
    "domain_of",
    "make_names_unique",
    "only_reader",
    "signature_of",
    "signatures",
    "tensor_type",
]

MAX_CONSTANT_BYTES = 4096
"""Constants larger than this are weights: their values are not read for a signature."""


def signatures(model: ir.Model) -> dict[str, OpSignature]:
    """Return the signature of each node of the main graph by node name, in the graph's order."""
    return {
        node.name or "": signature_of(node, model)
        for node in model.graph
        if not (node.op_type == "Constant" and domain_of(node) == "ai.onnx")
    }


def signature_of(node: ir.Node, model: ir.Model) -> OpSignature:
    """Return all that a tactic may look at of ``node``.

    Values that a control-flow node's subgraphs capture are its last inputs. A call of a function of the model
    has the function as its body.
    """
    inputs = call_inputs(node)
    function = model.functions.get(node.op_identifier())
    version = model.graph.opset_imports.get(node.domain, node.version or 1)
    return OpSignature(
        op=f"{domain_of(node)}::{node.op_type}",
        version=version,
        attributes=tuple(
            sorted((name, _attribute(a)) for name, a in node.attributes.items() if not a.is_ref())
        ),
        inputs=tuple(None if v is None else _known_type(v) for v in inputs),
        outputs=tuple(_output_type(v) for v in node.outputs),
        constants=tuple(None if v is None else _constant(v) for v in inputs),
        body=None if function is None else canonical_body(function),
    )


def call_inputs(node: ir.Node) -> list[ir.Value | None]:
    """Return what ``node`` reads: its inputs, then the outer values that its subgraphs capture."""
    return [*node.inputs, *captured_values(node)]


def captured_values(node: ir.Node) -> list[ir.Value]:
    """Return the outer values that the subgraphs of ``node`` read, in the order of their first use.

    The order is that of ``tactician.plugins.node_model.captured_names``: subgraph attributes by name, in each graph
    its nodes in order, of each node first its inputs and then its own subgraphs, at last the graph's outputs.
    """
    found: dict[str, ir.Value] = {}
    for _, attribute in sorted(node.attributes.items(), key=_by_name):
        for graph in _graphs(attribute):
            for value in _captured(graph, frozenset()):
                found.setdefault(value.name or "", value)
    return list(found.values())


def tensor_type(value: ir.Value) -> TensorType | None:
    """Return the type of ``value`` as far as it is known; None where not even the element type is."""
    if value.const_value is not None:
        # a folded value keeps the type that inference had guessed; the constant itself knows better
        return _type(ir.TensorType(value.const_value.dtype), value.const_value.shape)
    if value.type is None:
        return None
    return _type(value.type, value.shape)


def domain_of(node: ir.Node) -> str:
    """Return the domain of ``node``, ``"ai.onnx"`` for the standard one."""
    return node.domain or "ai.onnx"


def only_reader(value: ir.Value) -> ir.Node | None:
    """Return the one node that reads ``value``, once; None where several do, or the caller does."""
    readers = [use.node for use in value.uses()]
    return readers[0] if len(readers) == 1 and not value.is_graph_output() else None


def constant(array: np.ndarray[Any, Any], name: str, graph: ir.Graph | None = None) -> ir.Value:
    """Return a constant: an initializer of ``graph``, the one that is there already if it is equal.

    Another one of that name keeps it, and the constant gets a longer one.
    """
    while graph is not None and (known := graph.initializers.get(name)) is not None:
        if known.const_value is not None and not known.is_graph_input() and _equals(known.const_value, array):
            return known
        name += "_"
    tensor = ir.tensor(array, name=name)
    value = ir.Value(
        name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape), const_value=tensor
    )
    if graph is not None:
        graph.register_initializer(value)
    return value


def make_names_unique(model: ir.Model) -> None:
    """Rename what a pass has made in the main graph and called as something else is called; absent outputs stay nameless."""
    graph = model.graph
    values = {v.name for v in (*graph.inputs, *graph.outputs, *graph.initializers.values())}
    nodes: set[str] = set()
    for node in graph:
        name = node.name or node.op_type
        while name in nodes:
            name += "_"
        node.name = name
        nodes.add(name)
        for value in node.outputs:
            if not value.name or value.is_graph_output():
                continue
            while value.name in values:
                value.name += "_"
            values.add(value.name)


def _equals(tensor: ir.TensorProtocol, array: np.ndarray[Any, Any]) -> bool:
    same = tuple(tensor.shape.numpy()) == array.shape and tensor.dtype.numpy() == array.dtype
    return same and np.asarray(tensor.numpy()).tobytes() == np.ascontiguousarray(array).tobytes()


def _by_name(item: tuple[str, ir.Attr]) -> str:
    return item[0]


def _known_type(value: ir.Value) -> TensorType:
    return tensor_type(value) or TensorType("float32", None)


def _output_type(value: ir.Value) -> TensorType | None:
    absent = not value.name and not value.uses()
    return None if absent else _known_type(value)


def _type(kind: ir.TypeProtocol, shape: Any) -> TensorType:
    if isinstance(kind, ir.SequenceType):
        return TensorType(f"sequence({_type(kind.elem_type, None).dtype})", None)
    if isinstance(kind, ir.OptionalType):
        return TensorType(f"optional({_type(kind.elem_type, None).dtype})", None)
    return TensorType(_NAMES.get(kind.dtype) or kind.dtype.name.lower(), _dims(shape))


def _dims(shape: Any) -> tuple[Dim, ...] | None:
    if shape is None:
        return None
    return tuple(d if isinstance(d, int) else (d.value if d.value is None else str(d.value)) for d in shape)


_NAMES = {ir.DataType.FLOAT: "float32", ir.DataType.DOUBLE: "float64"}


def _constant(value: ir.Value) -> Constant | None:
    tensor = None if value.is_graph_input() else ir.convenience.get_const_tensor(value)
    if tensor is None:
        return None
    if tensor.nbytes > MAX_CONSTANT_BYTES or tensor.dtype == ir.DataType.STRING:
        return Constant()
    return make_constant(np.asarray(tensor.numpy()))


def _attribute(attribute: ir.Attr) -> AttributeValue:
    kind, value = attribute.type, attribute.value
    match kind:
        case ir.AttributeType.INT:
            return int(value)
        case ir.AttributeType.FLOAT:
            return float(value)
        case ir.AttributeType.STRING:
            return _string(value)
        case ir.AttributeType.INTS:
            return tuple(int(v) for v in value)
        case ir.AttributeType.FLOATS:
            return tuple(float(v) for v in value)
        case ir.AttributeType.STRINGS:
            return tuple(_string(v) for v in value)
    proto = ir.serde.serialize_attribute(attribute)
    name = kind.name.lower()
    single = {"tensor": "t", "graph": "g", "sparse_tensor": "sparse_tensor", "type_proto": "tp"}.get(name)
    items = [getattr(proto, single)] if single else list(getattr(proto, name))
    return Blob(name, tuple(item.SerializeToString(deterministic=True) for item in items))


def _string(value: Any) -> str:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


def _graphs(attribute: ir.Attr) -> list[ir.Graph]:
    if attribute.type == ir.AttributeType.GRAPH:
        return [attribute.as_graph()]
    return list(attribute.as_graphs()) if attribute.type == ir.AttributeType.GRAPHS else []


def _captured(graph: ir.Graph, outer: frozenset[ir.Value]) -> Iterator[ir.Value]:
    known = set(outer) | set(graph.inputs) | set(graph.initializers.values())
    for node in graph:
        yield from (v for v in node.inputs if v is not None and v not in known)
        for attribute in node.attributes.values():
            for subgraph in _graphs(attribute):
                yield from _captured(subgraph, frozenset(known))
        known.update(node.outputs)
    yield from (v for v in graph.outputs if v not in known)
