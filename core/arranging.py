"""Products of quantised tensors, arranged so that kernels take the dequantisation in: weights turned, zero points dropped.

Tensor cores multiply elements of 8 bits along k only where k is contiguous in both operands. Where a kernel of the device
would take a product with its dequantised operands as one call, constant weights [K, N] are stored as [N, K] with a
transposition behind them, which that call takes in too, and each product gets a dequantisation of its own. Nothing is
measured here: the fused call competes with its operators one by one, as every other.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from tactician.config import BuilderConfig
from tactician.layouts.stage import report_stage
from tactician.network import constant, domain_of, make_names_unique, only_reader, tensor_type
from tactician.plugins.manager import Plugins
from tactician.plugins.target import Device
from tactician.regions import propose
from tactician.stages import FUSE, StageReport

ARRANGE = "arrange_quantised"
"""What ``--without`` and reports call it."""

PRODUCTS = ("MatMul", "Gemm", "MatMulInteger")
ZERO_POINTS = {"DequantizeLinear": (2,), "MatMulInteger": (2, 3)}
"""Inputs that are zero points, which change nothing where they are 0."""
SCALES_HAVE_AXES = 13
"""The opset from which on DequantizeLinear takes a scale for each place along an axis."""


def arrange_quantised(
    network: ir.Model, plugins: Plugins, device: Device, config: BuilderConfig, number: int
) -> list[StageReport]:
    """Arrange products of quantised tensors in place; return the stage, where there is any such product.

    Parameters
    ----------
    number
        Of the stages before.
    """
    if ARRANGE in config.without or not any(n.op_type in ZERO_POINTS for n in network.graph):
        return []
    before, start = network.graph.num_nodes(), time.perf_counter()
    _drop_zero_points(network.graph)
    changes = [] if FUSE in config.without else _change(network)
    if changes:
        make_names_unique(network)
        regions = [set(region.nodes) for region in propose(network, plugins.registry, device)]
        for change in changes:
            if not any(change.nodes() <= nodes for nodes in regions):
                change.undo()
        _sweep(network.graph)
    seconds = time.perf_counter() - start
    return [report_stage(ARRANGE, network, before, seconds, config, number, plugins, len(changes))]


@dataclass
class _Change:
    """A product that reads other operands than it did."""

    product: ir.Node
    was: dict[int, ir.Value] = field(default_factory=dict)
    made: list[ir.Node] = field(default_factory=list)

    def read(self, index: int, nodes: list[ir.Node]) -> None:
        """Let the product read what the last of new ``nodes`` computes as input ``index``."""
        value = self.product.inputs[index]
        assert value is not None
        self.was.setdefault(index, value)
        assert self.product.graph is not None
        self.product.graph.insert_before(self.product, nodes)
        self.product.replace_input_with(index, nodes[-1].outputs[0])
        self.made += nodes

    def nodes(self) -> set[ir.Node]:
        """Return the product and what was made for it."""
        return {self.product, *self.made}

    def undo(self) -> None:
        """Let the product read what it did; what was made then has no reader."""
        for index, value in self.was.items():
            self.product.replace_input_with(index, value)


def _change(network: ir.Model) -> list[_Change]:
    changes = []
    version = network.graph.opset_imports.get("", 0)
    for node in list(network.graph):
        if domain_of(node) != "ai.onnx" or node.op_type not in PRODUCTS:
            continue
        change = _Change(node)
        _turn_weights(change, network.graph, version)
        for index in (0, 1):
            _own_dequantisation(change, index)
        if change.made:
            changes.append(change)
    return changes


def _own_dequantisation(change: _Change, index: int) -> None:
    """Give the product a dequantisation of its own in the place of one that others read too."""
    value = change.product.inputs[index]
    maker = None if value is None else value.producer()
    if maker is None or value is None or not _is_dequantisation(maker):
        return
    if only_reader(value) is None and [*change.product.inputs].count(value) == 1:
        copy = _like(maker, maker.inputs[0], f"{change.product.name}/{maker.name}")
        change.read(index, [copy])


def _turn_weights(change: _Change, graph: ir.Graph, version: int) -> None:
    """Store constant weights [K, N] with k contiguous, and put a transposition behind them."""
    product = change.product
    value = product.inputs[1]
    attribute = product.attributes.get("transB")
    if value is None or (attribute is not None and attribute.as_int()):
        return
    maker = value.producer()
    dequantise = maker if maker is not None and _is_dequantisation(maker) else None
    source = dequantise.inputs[0] if dequantise is not None else value
    kind = None if source is None else tensor_type(source)
    if source is None or source.const_value is None or source.is_graph_input():
        return
    if kind is None or kind.rank != 2 or kind.itemsize != 1:
        return
    turned = constant(np.ascontiguousarray(source.const_value.numpy().T), f"{source.name}/turned", graph)
    nodes = []
    if dequantise is not None:
        copy = _turned_dequantisation(dequantise, turned, f"{product.name}/{dequantise.name}/turned", version)
        if copy is None:
            return
        nodes.append(copy)
    last = nodes[-1].outputs[0] if nodes else turned
    turn = ir.node("Transpose", [last], {"perm": [1, 0]}, num_outputs=1, name=f"{product.name}/turn")
    turn.outputs[0].name, turn.outputs[0].type, turn.outputs[0].shape = turn.name, value.type, value.shape
    change.read(1, [*nodes, turn])


def _turned_dequantisation(node: ir.Node, source: ir.Value, name: str, version: int) -> ir.Node | None:
    """Return a dequantisation of the turned weights; None where the scales are along k, or of blocks."""
    scale = node.inputs[1]
    kind = None if scale is None else tensor_type(scale)
    block = node.attributes.get("block_size")
    if kind is None or not kind.is_static or (block is not None and block.as_int()):
        return None
    copy = _like(node, source, name)
    if kind.size > 1:
        axis = node.attributes.get("axis")
        if version < SCALES_HAVE_AXES or (1 if axis is None else axis.as_int()) % 2 != 1:
            return None
        copy.attributes["axis"] = ir.AttrInt64("axis", 0)
    copy.outputs[0].shape = source.shape
    return copy


def _like(node: ir.Node, source: ir.Value | None, name: str) -> ir.Node:
    """Return a node as ``node`` that reads ``source`` first."""
    copy = ir.Node(
        node.domain,
        node.op_type,
        [source, *node.inputs[1:]],
        node.attributes.values(),
        num_outputs=1,
        version=node.version,
        name=name,
    )
    result, like = copy.outputs[0], node.outputs[0]
    result.name, result.type, result.shape = name, like.type, like.shape
    return copy


def _is_dequantisation(node: ir.Node) -> bool:
    return domain_of(node) == "ai.onnx" and node.op_type == "DequantizeLinear"


def _drop_zero_points(graph: ir.Graph) -> None:
    """Let dequantisations and integer products go without zero points that are constants and 0."""
    for node in graph:
        for index in ZERO_POINTS.get(node.op_type, ()) if domain_of(node) == "ai.onnx" else ():
            value = node.inputs[index] if index < len(node.inputs) else None
            known = None if value is None or value.is_graph_input() else value.const_value
            if known is not None and not np.any(np.asarray(known.numpy()).astype(np.float32)):
                node.replace_input_with(index, None)


def _sweep(graph: ir.Graph) -> None:
    """Remove dequantisations, transpositions and constants that nothing reads any more."""
    for node in reversed(list(graph)):
        if node.op_type in ("DequantizeLinear", "Transpose") and all(map(_is_unread, node.outputs)):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if _is_unread(value) and not value.is_graph_input():
            del graph.initializers[name]


def _is_unread(value: ir.Value) -> bool:
    return not value.uses() and not value.is_graph_output()
