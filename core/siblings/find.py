"""Finds products of one tensor with weights of the same shape, and products whose result is cut into equal parts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from tactician.network import domain_of, only_reader, tensor_type
from tactician.passes.match import known
from tactician.recognition.layout import static_shape

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Product:
    """``result = x @ weight + bias``; weight and bias are columns ``first`` to ``first + columns`` of constants.

    Parameters
    ----------
    nodes
        The nodes that compute it; those that it shares with others of its group are there again.
    weight, bias
        The constants; a weight that ``is_transposed`` is stored [columns, depth].
    """

    nodes: tuple[ir.Node, ...]
    result: ir.Value
    weight: ir.Value
    bias: ir.Value | None
    first: int
    columns: int
    is_transposed: bool = False

    def weight_array(self) -> Array:
        """Return the weight as [depth, columns]."""
        array = known(self.weight)
        assert array is not None
        return (array.T if self.is_transposed else array)[:, self.first : self.first + self.columns]

    def bias_array(self) -> Array | None:
        """Return the bias as [columns]."""
        array = None if self.bias is None else known(self.bias)
        return None if array is None else array.reshape(-1)[self.first : self.first + self.columns]


@dataclass(frozen=True, eq=False)
class Siblings:
    """Products of ``source``, [..., depth], that can be one of a batch: all of as many columns, all or none with a bias."""

    source: ir.Value
    depth: int
    products: tuple[Product, ...]

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """The nodes of all products, each once."""
        return tuple(dict.fromkeys(node for p in self.products for node in p.nodes))

    @property
    def name(self) -> str:
        """What the merged product is called."""
        return f"{self.nodes[0].name}+{self.nodes[-1].name}"

    @property
    def rows(self) -> int:
        """Rows of the source, all its dimensions but the last one."""
        return int(np.prod((static_shape(self.source) or ())[:-1], dtype=np.int64))


def find_siblings(network: ir.Model) -> Iterator[Siblings]:
    """Yield what can be merged in the main graph; no node is in two of them."""
    groups: dict[tuple[Any, ...], list[Product]] = defaultdict(list)
    for node in network.graph:
        product = _product(node)
        source = node.inputs[0] if product is not None else None
        # it is reshaped, which costs nothing only where another node has computed it
        if product is None or source is None or source.producer() is None or source.is_graph_output():
            continue
        if product.result.is_graph_output():
            continue
        parts = _parts(product)
        if parts:
            yield Siblings(source, _depth(product), parts)
            continue
        kind = tensor_type(product.weight)
        groups[source, product.columns, product.bias is not None, kind and kind.dtype].append(product)
    for (source, *_), products in groups.items():
        if len(products) > 1:
            yield Siblings(source, _depth(products[0]), tuple(products))


def _depth(product: Product) -> int:
    shape = static_shape(product.weight) or (0, 0)
    return shape[1] if product.is_transposed else shape[0]


def _product(node: ir.Node) -> Product | None:
    """Return the product that starts with ``node``, with the bias that is added to it."""
    if domain_of(node) != "ai.onnx" or node.op_type not in ("MatMul", "Gemm"):
        return None
    source, weight = node.inputs[:2]
    shape = None if source is None else static_shape(source)
    if source is None or weight is None or shape is None or len(shape) < 2 or known(weight) is None:
        return None
    size = static_shape(weight) or ()
    if len(size) != 2 or static_shape(node.outputs[0]) is None:
        return None
    if node.op_type == "Gemm":
        return _of_gemm(node, weight, size)
    product = Product((node,), node.outputs[0], weight, None, 0, size[1])
    reader = only_reader(node.outputs[0])
    if reader is None or reader.op_type != "Add" or domain_of(reader) != "ai.onnx":
        return product
    bias = reader.inputs[1] if reader.inputs[0] is node.outputs[0] else reader.inputs[0]
    if (
        bias is None
        or not _is_row(bias, size[1])
        or static_shape(reader.outputs[0]) != static_shape(node.outputs[0])
    ):
        return product
    return Product((node, reader), reader.outputs[0], weight, bias, 0, size[1])


def _of_gemm(node: ir.Node, weight: ir.Value, size: Sequence[int]) -> Product | None:
    given = {name: a.value for name, a in node.attributes.items()}
    if given.get("transA", 0) or given.get("alpha", 1.0) != 1.0 or given.get("beta", 1.0) != 1.0:
        return None
    is_transposed = bool(given.get("transB", 0))
    columns = size[0] if is_transposed else size[1]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and not _is_row(bias, columns):
        return None
    return Product((node,), node.outputs[0], weight, bias, 0, columns, is_transposed)


def _parts(product: Product) -> tuple[Product, ...]:
    """Return the products that the parts of a result are, which a Split cuts along its columns; none where none does."""
    nodes, value = list(product.nodes), product.result
    while (
        (reader := only_reader(value)) is not None and reader.op_type == "Reshape" and _keeps_columns(reader)
    ):
        nodes.append(reader)
        value = reader.outputs[0]
    if reader is None or reader.op_type != "Split" or domain_of(reader) != "ai.onnx":
        return ()
    shapes = [static_shape(v) for v in reader.outputs]
    whole = static_shape(value)
    axis = reader.attributes.get("axis")
    if whole is None or (axis.as_int() if axis else 0) % len(whole) != len(whole) - 1:
        return ()
    if any(s is None or s != shapes[0] for s in shapes) or any(v.is_graph_output() for v in reader.outputs):
        return ()
    columns = (shapes[0] or (0,))[-1]
    members = (*nodes, reader)
    return tuple(
        Product(members, v, product.weight, product.bias, i * columns, columns, product.is_transposed)
        for i, v in enumerate(reader.outputs)
    )


def _keeps_columns(node: ir.Node) -> bool:
    before = None if node.inputs[0] is None else static_shape(node.inputs[0])
    after = static_shape(node.outputs[0])
    return bool(before) and bool(after) and before[-1] == after[-1]  # type: ignore[index]  # neither is None


def _is_row(value: ir.Value, columns: int) -> bool:
    shape = static_shape(value)
    return bool(shape) and known(value) is not None and shape == (1,) * (len(shape) - 1) + (columns,)  # type: ignore[arg-type]  # it is not None
