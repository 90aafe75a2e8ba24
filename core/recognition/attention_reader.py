"""Reads the subgraph around a Softmax as an attention: its operands, mask and scale, or the reason why it is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir
from tactician.network import domain_of, tensor_type
from tactician.passes.match import known
from tactician.recognition.layout import scaled, static_shape

NEVER = -3e4
"""What is added to a score that is not to count: from here on its exponential is zero beside any other."""

_HALVES = ("float16", "bfloat16")


class Reader:
    """Reads the subgraph around one Softmax, first up to the product of q and k, then down to that with v."""

    def __init__(self, softmax: ir.Node) -> None:
        self._softmax = softmax
        self._nodes = {softmax}
        self._scale = 1.0
        self._mask: ir.Value | None = None
        self._by_truth = False

    def read(self) -> Parts:
        """Return the parts.

        Raises
        ------
        NoAttentionError
            If it is none.
        """
        product = self._product_with_v()
        axis = self._softmax.attributes.get("axis")
        rank = len(static_shape(self._softmax.outputs[0]) or ())
        if (axis.as_int() if axis else -1) not in (-1, rank - 1):
            raise NoAttentionError("the softmax is not over the last dimension")
        if rank != 4:
            raise NoAttentionError(f"scores have {rank} dimensions, not batch, heads, queries and keys")
        scores = self._scores(self._softmax.inputs[0])
        q, k = scores.inputs
        v = product.inputs[1]
        if q is None or k is None or v is None:
            raise NoAttentionError("an operand is absent")
        return Parts(q, k, v, product.outputs[0], self._mask, self._by_truth, self._scale, self._nodes)

    def _product_with_v(self) -> ir.Node:
        """Follow the weights down through a cast and what makes NaN of rows without any key to 0."""
        value = self._softmax.outputs[0]
        while True:
            readers = [use.node for use in value.uses()]
            if len(readers) == 2 and (guarded := _guard(value, readers)) is not None:
                self._nodes.update(readers)
                value = guarded
                continue
            if len(readers) != 1 or value.is_graph_output():
                near = any(is_op(r, "MatMul") for r in readers)
                raise NoAttentionError(f"'{value.name}' is read by others too", is_near=near)
            (reader,) = readers
            self._nodes.add(reader)
            if (
                is_op(reader, "Cast")
                and dtype_of(reader.outputs[0]) in _HALVES
                and dtype_of(value) == "float32"
            ):
                value = reader.outputs[0]
            elif is_op(reader, "MatMul") and reader.inputs[0] is value:
                return reader
            else:
                raise NoAttentionError("no product reads the softmax", is_near=False)

    def _scores(self, value: ir.Value | None) -> ir.Node:
        """Follow the scores up through casts, masks and factors to their product."""
        while True:
            node = None if value is None else value.producer()
            if node is None:
                raise NoAttentionError("the scores are no product", is_near=False)
            self._nodes.add(node)
            step = scaled(node)
            if is_op(node, "MatMul"):
                return node
            if step is not None:
                value, factor = step
                self._scale *= factor
            elif is_op(node, "Cast") and dtype_of(node.outputs[0]) == "float32":
                value = node.inputs[0]
                if value is None or dtype_of(value) not in _HALVES:
                    raise NoAttentionError("the scores are cast from another type than a 16-bit one")
            else:
                value = self._masked(node)

    def _masked(self, node: ir.Node) -> ir.Value | None:
        """Return the scores that a node masks, and keep the mask."""
        if self._mask is not None or self._scale != 1.0:
            raise NoAttentionError(
                f"{node.op_type} '{node.name}' stands between the product and the softmax",
                is_near=is_op(node, "Add"),
            )
        if is_op(node, "Add"):
            a, b = node.inputs
            for scores, mask in ((a, b), (b, a)):
                if scores is not None and _leads_to_product(scores):
                    self._mask = mask
                    return scores
        if is_op(node, "Where"):
            kept, scores, never = node.inputs
            array = None if never is None else known(never)
            if array is not None and array.size == 1 and float(array.reshape(()).astype(float)) <= NEVER:
                truth = None if kept is None else known(kept)
                if truth is None or not truth.any(axis=-1).all():
                    raise NoAttentionError("a mask by Where may leave a query without any key")
                self._mask, self._by_truth = kept, True
                return scores
        raise NoAttentionError(
            f"{node.op_type} '{node.name}' stands between the product and the softmax", is_near=False
        )


@dataclass
class Parts:
    """What an attention consists of; operands are [batch, heads, rows, size], and k may be transposed."""

    q: ir.Value
    k: ir.Value
    v: ir.Value
    y: ir.Value
    mask: ir.Value | None = None
    masks_by_truth: bool = False
    scale: float = 1.0
    nodes: set[ir.Node] = field(default_factory=set)
    is_transposed: bool = True
    attributes: dict[str, Any] = field(default_factory=dict)
    """What the call has beside scale, heads and the causal mask."""


class NoAttentionError(Exception):
    """The subgraph is no attention; ``is_near`` where somebody would have expected it to be."""

    def __init__(self, reason: str, *, is_near: bool = True) -> None:
        super().__init__(reason)
        self.is_near = is_near


def _leads_to_product(value: ir.Value | None, masks: int = 2) -> bool:
    """Return whether a product is what factors, casts and up to ``masks`` additions make ``value`` of."""
    node = None if value is None else value.producer()
    if node is None:
        return False
    if is_op(node, "Add") and masks:
        return any(_leads_to_product(v, masks - 1) for v in node.inputs)
    step = scaled(node)
    if step is not None or is_op(node, "Cast"):
        return _leads_to_product(step[0] if step else node.inputs[0], masks)
    return is_op(node, "MatMul")


def _guard(value: ir.Value, readers: Sequence[ir.Node]) -> ir.Value | None:
    """Return the result of Where(IsNaN(value), 0, value), if that is what reads it."""
    test = next((r for r in readers if is_op(r, "IsNaN")), None)
    pick = next((r for r in readers if is_op(r, "Where")), None)
    if test is None or pick is None or len(test.outputs[0].uses()) != 1:
        return None
    zero = None if pick.inputs[1] is None else known(pick.inputs[1])
    fits = pick.inputs[0] is test.outputs[0] and pick.inputs[2] is value
    return pick.outputs[0] if fits and zero is not None and not zero.any() else None


def is_op(node: ir.Node, op_type: str) -> bool:
    """Return whether a node is of this standard operator."""
    return node.op_type == op_type and domain_of(node) == "ai.onnx"


def dtype_of(value: ir.Value | None) -> str | None:
    """Return the element type, where it is known."""
    kind = None if value is None else tensor_type(value)
    return None if kind is None else kind.dtype
