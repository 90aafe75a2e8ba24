"""Transposes move behind what works on each row: where heads are turned by their positions, attention takes them as they lie."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from tactician.network import constant, domain_of, tensor_type
from tactician.passes.match import known

BY_ELEMENT = frozenset({
    "Abs", "Add", "Cast", "Clip", "Cos", "Div", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish",
    "LeakyRelu", "Log", "Max", "Mean", "Min", "Mish", "Mul", "Neg", "Pow", "Reciprocal", "Relu", "Selu", "Sigmoid",
    "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Swish", "Tanh", "Where",
})  # fmt: skip
"""Operators that do the same to every element."""

BY_ROW = frozenset({"Concat", "Slice", "Split"})
"""Operators that cut or join along one dimension: the last one stays where it is."""


class SinkTransposes(ir.passes.InPlacePass):
    """Let nodes work on what a Transpose reads instead of what it makes, and transpose what they make.

    1. The Transpose leaves the last dimension in its place.
    2. Nodes that read it work element by element, or along the last dimension alone; other tensors that they read are
       constants, whose dimensions move.
    3. One value comes of them: so there are as many transposes as before, and the one behind can often be taken in by its
       reader, as attention does.
    """

    name = "sink_transposes"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run on ``model`` in place."""
        modified = False
        for node in list(model.graph):
            if node.graph is model.graph and _moves_rows(node):
                cluster = _Cluster(node)
                if cluster.grow() and (result := cluster.result()) is not None:
                    cluster.move(model.graph, result)
                    modified = True
        return ir.passes.PassResult(model, modified=modified)


@dataclass
class _Cluster:
    """Nodes behind one Transpose that can work on what it reads."""

    root: ir.Node
    nodes: list[ir.Node] = field(default_factory=list)

    def grow(self) -> bool:
        """Take in all that reads the transposed value, and what reads that, and return whether it is anything."""
        values = {self.root.outputs[0]}
        waiting = self._readers(self.root.outputs)
        while waiting:
            node = waiting.pop(0)
            if node in self.nodes or not self._fits(node, values):
                continue
            self.nodes.append(node)
            values.update(node.outputs)
            waiting += self._readers(node.outputs)
            # what was refused, since it read something that has come in by now, gets another look
            waiting += [
                r for v in values for r in self._readers([v]) if r not in self.nodes and self._fits(r, values)
            ]
        return bool(self.nodes)

    def result(self) -> ir.Value | None:
        """Return the only value that is read outside; None where there are more, or the transposed one itself is."""
        inside = set(self.nodes)
        outer = [
            v
            for v in (self.root.outputs[0], *(o for n in self.nodes for o in n.outputs))
            if v.is_graph_output() or any(use.node not in inside for use in v.uses())
        ]
        return (
            outer[0]
            if len(outer) == 1 and outer[0] is not self.root.outputs[0] and not outer[0].is_graph_output()
            else None
        )

    def move(self, graph: ir.Graph, result: ir.Value) -> None:
        """Let the nodes read what the Transpose reads, and transpose their result."""
        order = _order(self.root)
        back = tuple(int(i) for i in np.argsort(order))
        source, transposed = self.root.inputs[0], self.root.outputs[0]
        for node in self.nodes:
            for i, value in enumerate(node.inputs):
                if value is transposed:
                    node.replace_input_with(i, source)
                elif value is not None and (moved := _moved(value, back, graph)) is not None:
                    node.replace_input_with(i, moved)
            for value in node.outputs:
                if value.shape is not None:
                    value.shape = ir.Shape([value.shape[i] for i in back])
        turned = ir.node(
            "Transpose", [result], {"perm": list(order)}, num_outputs=1, name=f"{self.root.name}_behind"
        )
        made = turned.outputs[0]
        made.name, made.type = f"{result.name}_transposed", result.type
        made.shape = ir.Shape([result.shape[i] for i in order]) if result.shape is not None else None
        readers = [use for use in result.uses() if use.node is not turned and use.node not in self.nodes]
        for use in readers:
            use.node.replace_input_with(use.idx, made)
        producer = result.producer()
        assert producer is not None
        graph.insert_after(producer, turned)
        graph.remove(self.root, safe=True)

    def _readers(self, values: Iterable[ir.Value]) -> list[ir.Node]:
        found = dict.fromkeys(use.node for v in values for use in v.uses())
        return [node for node in found if node.graph is self.root.graph]

    def _fits(self, node: ir.Node, values: set[ir.Value]) -> bool:
        if domain_of(node) != "ai.onnx" or any(len(_dims(v)) != len(_order(self.root)) for v in node.outputs):
            return False
        others = [v for v in node.inputs if v is not None and v not in values]
        if node.op_type in BY_ELEMENT:
            return all(known(v) is not None for v in others)
        return node.op_type in BY_ROW and _works_on_rows(node, len(_order(self.root)), others)


def _works_on_rows(node: ir.Node, rank: int, others: Sequence[ir.Value]) -> bool:
    """Return whether a node cuts or joins along the last dimension, and reads nothing else but constants."""
    if node.op_type == "Concat":
        axis = node.attributes.get("axis")
        return not others and axis is not None and axis.as_int() % rank == rank - 1
    if any(known(v) is None for v in others):
        return False
    if node.op_type == "Split":
        axis = node.attributes.get("axis")
        return (axis.as_int() if axis is not None else 0) % rank == rank - 1
    axes = known(node.inputs[3]) if len(node.inputs) > 3 and node.inputs[3] is not None else None
    return axes is not None and [int(a) % rank for a in axes.reshape(-1)] == [rank - 1]


def _moves_rows(node: ir.Node) -> bool:
    """Return whether a node is a Transpose of known shape that leaves the last dimension in its place."""
    if node.op_type != "Transpose" or domain_of(node) != "ai.onnx" or not _dims(node.outputs[0]):
        return False
    order = _order(node)
    return len(order) > 2 and order[-1] == len(order) - 1 and list(order) != list(range(len(order)))


def _order(node: ir.Node) -> tuple[int, ...]:
    perm = node.attributes.get("perm")
    return tuple(perm.as_ints()) if perm is not None else tuple(range(len(_dims(node.outputs[0]))))[::-1]


def _dims(value: ir.Value) -> tuple[int, ...]:
    kind = tensor_type(value)
    return kind.dims if kind is not None and kind.is_static else ()


def _moved(value: ir.Value, back: Sequence[int], graph: ir.Graph) -> ir.Value | None:
    """Return a constant that is broadcast with its dimensions moved; None where that changes nothing."""
    array = known(value)
    if array is None or array.ndim < 2:
        return None
    wide = array.reshape((1,) * (len(back) - array.ndim) + array.shape)
    moved = np.ascontiguousarray(wide.transpose(back))
    return constant(moved, f"{value.name}_{'_'.join(map(str, back))}", graph)
