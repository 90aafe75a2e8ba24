"""The body of a fused node as bytes: equal fusions give equal bytes, whatever their values were called."""

from __future__ import annotations

import onnx_ir as ir
from onnx import FunctionProto, GraphProto, NodeProto


def canonical_body(function: ir.Function) -> bytes:
    """Return ``function`` as a serialized FunctionProto whose inner names depend on its structure alone.

    Inputs are called ``i0`` …, what nodes compute ``v0`` …, in the order of the nodes; names of nodes, comments,
    metadata and the overload are left out; attributes and opset imports are sorted.
    """
    proto = ir.serde.serialize_function(function)
    plain = FunctionProto(name=proto.name, domain=proto.domain)
    names = _Names()
    plain.input.extend(names.define(name, "i") for name in proto.input)
    plain.attribute.extend(sorted(proto.attribute))
    plain.attribute_proto.extend(sorted(proto.attribute_proto, key=lambda a: str(a.name)))
    plain.opset_import.extend(sorted(proto.opset_import, key=lambda entry: str(entry.domain)))
    plain.node.extend(_node(node, names) for node in proto.node)
    plain.output.extend(names.of(name) for name in proto.output)
    return bytes(plain.SerializeToString(deterministic=True))


class _Names:
    """New names of values by their old ones; an inner scope sees the outer one's."""

    def __init__(self, outer: _Names | None = None) -> None:
        self._outer = outer
        self._new: dict[str, str] = {}
        self._count: list[int] = outer._count if outer else [0, 0]

    def define(self, name: str, prefix: str = "v") -> str:
        """Return a new name for the value called ``name``; the empty name stays, it means absent."""
        if not name:
            return ""
        kind = prefix == "v"
        self._new[name] = f"{prefix}{self._count[kind]}"
        self._count[kind] += 1
        return self._new[name]

    def of(self, name: str) -> str:
        """Return the new name of a value that is defined already."""
        if name in self._new:
            return self._new[name]
        return self._outer.of(name) if self._outer else name


def _node(node: NodeProto, names: _Names) -> NodeProto:
    plain = NodeProto(op_type=node.op_type, domain=node.domain, overload=node.overload)
    plain.input.extend(names.of(name) for name in node.input)
    for attribute in sorted(node.attribute, key=lambda a: str(a.name)):
        copy = plain.attribute.add()
        copy.CopyFrom(attribute)
        copy.ClearField("doc_string")
        if attribute.HasField("t"):
            copy.t.ClearField("name")
        if attribute.HasField("g"):
            copy.g.CopyFrom(_graph(attribute.g, names))
        for i, graph in enumerate(attribute.graphs):
            copy.graphs[i].CopyFrom(_graph(graph, names))
    plain.output.extend(names.define(name) for name in node.output)
    return plain


def _graph(graph: GraphProto, outer: _Names) -> GraphProto:
    """Return ``graph``, a branch or a loop's body, with new names for what it defines."""
    names = _Names(outer)
    plain = GraphProto(name="graph")
    for value in graph.input:
        copy = plain.input.add()
        copy.CopyFrom(value)
        copy.name = names.define(value.name)
    for tensor in graph.initializer:
        constant = plain.initializer.add()
        constant.CopyFrom(tensor)
        constant.name = names.define(tensor.name)
    plain.node.extend(_node(node, names) for node in graph.node)
    for value in graph.output:
        copy = plain.output.add()
        copy.CopyFrom(value)
        copy.name = names.of(value.name)
    return plain
