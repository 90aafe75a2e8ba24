"""A node by itself, as a model: it is expanded in there, and what came of it goes back into the network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from tactician.decompositions.call import Call, Rule, UnexpandableError
from tactician.network import signature_of, tensor_type
from tactician.passes.fold_constants import FoldConstants
from tactician.passes.lift_constants import LiftConstants
from tactician.passes.merge_common import MergeCommon
from tactician.passes.remove_dead import RemoveDead
from tactician.passes.remove_no_ops import RemoveNoOps
from tactician.passes.writer import Writer

Ops = Mapping[str, Any]


@dataclass
class Piece:
    """One node as a model: its inputs are inputs, its constants initializers.

    Parameters
    ----------
    model
        Has the opsets of the network.
    outer
        What inputs and initializers stand for in the network, by name.
    """

    model: ir.Model
    outer: dict[str, ir.Value]

    @classmethod
    def of(cls, node: ir.Node, network: ir.Model) -> Piece:
        """Return a copy of ``node`` as a model of its own."""
        own: dict[ir.Value, ir.Value] = {}
        for value in node.inputs:
            if value is not None and value not in own:
                tensor = None if value.is_graph_input() else ir.convenience.get_const_tensor(value)
                own[value] = _copied(value, f"in{len(own)}", tensor)
        copy = ir.Node(
            node.domain,
            node.op_type,
            [None if v is None else own[v] for v in node.inputs],
            node.attributes.values(),
            outputs=[_copied(v, f"out{i}") if v.name or v.uses() else ir.Value(name="") for i, v in enumerate(node.outputs)],
            name="node",
        )  # fmt: skip
        graph = ir.Graph(
            [v for v in own.values() if v.const_value is None],
            [v for v in copy.outputs if v.name],
            nodes=[copy],
            initializers=[v for v in own.values() if v.const_value is not None],
            opset_imports=dict(network.opset_imports),
            name="piece",
        )
        outer = {new.name or "": old for old, new in own.items()}
        return cls(ir.Model(graph, ir_version=network.ir_version), outer)

    def apply(self, rule: Rule, ops: Ops) -> None:
        """Let ``rule`` put other nodes in the place of the node.

        Raises
        ------
        UnexpandableError, ShapeError
            If it can't.
        """
        graph = self.model.graph
        (node,) = graph
        writer = Writer(node.op_type, "new", self.model, ops)
        made = rule(writer, Call(node, signature_of(node, self.model)))
        values = [made] if isinstance(made, ir.Value) else list(made)
        for value in writer.constants:
            graph.register_initializer(value)
        graph.extend(writer.nodes)
        for i, old in enumerate(list(graph.outputs)):
            graph.outputs[i] = self._matching(old, values[list(node.outputs).index(old)])
        graph.remove(node, safe=True)

    def simplify(self, ops: Ops) -> None:
        """Compute what is constant and leave out what does nothing; every output then has a node of its own."""
        for step in (LiftConstants(), FoldConstants(ops), RemoveNoOps(), MergeCommon(), RemoveDead()):
            step(self.model)
        graph = self.model.graph
        seen: set[ir.Value] = set()
        for i, value in enumerate(list(graph.outputs)):
            if value.producer() is None or value in seen:
                node = ir.node("Identity", [value], name=f"copy{i}")
                graph.append(node)
                graph.outputs[i] = self._matching(value, node.outputs[0])
                node.outputs[0].name = f"copy{i}"
            seen.add(graph.outputs[i])

    def put_into(self, network: ir.Model, node: ir.Node, names: Names) -> None:
        """Let what the piece has become take the place of ``node`` in ``network``; its outputs keep their names."""
        inner, graph, place = self.model.graph, network.graph, node.name or ""
        results, nodes = list(inner.outputs), list(inner)
        inner.outputs.clear()
        for value in list(inner.inputs):
            value.replace_all_uses_with(self.outer[value.name or ""])
        for name, value in list(inner.initializers.items()):
            inner.initializers.pop(name)
            if name in self.outer:
                value.replace_all_uses_with(self.outer[name])
            elif value.uses():
                value.name = names.new(f"{place}/{name}")
                graph.register_initializer(value)
        inner.remove(nodes)
        for made in nodes:
            made.name = names.new(f"{place}/{made.op_type}")
            for value in made.outputs:
                value.name = value.name and names.new(f"{place}/{made.op_type}_out")
        first = results[0].producer()
        if first is not None:
            first.name = place
        read = {v for v in node.inputs if v is not None}
        old = [v for v in node.outputs if v.name or v.uses()]
        for before, after in zip(old, results, strict=True):
            before.type, before.shape = after.type, after.shape
        ir.convenience.replace_nodes_and_values(graph, node, [node], nodes, old, results)
        for value in read:
            if value.is_initializer() and not value.uses() and not value.is_graph_output():
                graph.initializers.pop(value.name or "", None)

    @staticmethod
    def _matching(old: ir.Value, new: ir.Value | None) -> ir.Value:
        if new is None:
            raise UnexpandableError(f"nothing is computed for '{old.name}'")
        wanted, given = tensor_type(old), tensor_type(new)
        if given is not None and given != wanted:
            raise UnexpandableError(f"it would compute {given} instead of {wanted}")
        new.type, new.shape = old.type, old.shape
        return new


class Names:
    """Names of a network that are taken."""

    def __init__(self, taken: Iterable[str]) -> None:
        self._taken = set(taken)
        self._next: dict[str, int] = {}

    @classmethod
    def of(cls, network: ir.Model) -> Names:
        """Return the names of nodes and values of ``network``."""
        graph = network.graph
        values = [v.name or "" for n in graph.all_nodes() for v in n.outputs]
        nodes = [n.name or "" for n in graph]
        return cls([*values, *nodes, *graph.initializers, *(v.name or "" for v in graph.inputs)])

    def new(self, wanted: str) -> str:
        """Return ``wanted``, with a number after it where it is taken."""
        name = wanted
        while name in self._taken:
            self._next[wanted] = self._next.get(wanted, 0) + 1
            name = f"{wanted}_{self._next[wanted]}"
        self._taken.add(name)
        return name


def _copied(value: ir.Value, name: str, tensor: ir.TensorProtocol | None = None) -> ir.Value:
    if tensor is not None:
        return ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape), const_value=tensor
        )
    return ir.Value(name=name, type=value.type, shape=value.shape)
