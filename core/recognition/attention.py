"""Attention, however exporters spell it: softmax(scale * q @ k.T + mask) @ v becomes one call of ONNX's Attention.

What torch's exporters and the models of Hugging Face write is recognised by what it computes: how operands lie in the
tensors that they are views of (``layout.py``), not by the order of reshapes and transposes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from tactician.network import constant, signature_of
from tactician.passes.match import known
from tactician.passes.rewrite import detach
from tactician.recognition import Missed, Recognised
from tactician.recognition.attention_reader import NEVER, NoAttentionError, Parts, Reader, is_op
from tactician.recognition.layout import Layout, Source, after, is_view, scaled, sources, static_shape
from tactician.signature import OpSignature

OPSET = 23
"""The first opset with Attention."""

_MOST_STEPS = 8
"""Reshapes and factors between a transpose of heads and the product, at most."""


class AttentionRecogniser:
    """Looks at every Softmax, and at every Attention of heads that were split and are joined again."""

    name = "attention"

    def prepare(self, network: ir.Model) -> None:
        """Let heads lie in a tensor [batch, rows, heads * size], where they are transposed from or to one that is split.

        Such a reshape is a view.
        """
        for node in list(network.graph):
            if _moves_heads(node) and (value := node.inputs[0]) is not None and value.producer() is not None:
                maker, shape = value.producer(), static_shape(value)
                if shape is not None and maker is not None and not is_view(maker):
                    joined = _insert_reshape(network, node, value, (*shape[:2], shape[2] * shape[3]))
                    _insert_reshape(network, node, joined, shape)
        for node in list(network.graph):
            shape = static_shape(node.outputs[0]) if is_op(node, "Reshape") else None
            value = node.inputs[0] if shape is not None else None
            maker = None if value is None else value.producer()
            if value is None or maker is None or not _joins_heads(maker) or len(value.uses()) != 1:
                continue
            heads = static_shape(value)
            if heads is not None and shape != (joined := (*heads[:2], heads[2] * heads[3])):
                _insert_reshape(network, node, value, joined)

    def find(self, network: ir.Model) -> Iterator[Recognised | Missed]:
        """Yield an attention, or why it is none, for each Softmax whose result a product reads."""
        places = {node: number for number, node in enumerate(network.graph)}
        for node in network.graph:
            try:
                if is_op(node, "Softmax"):
                    yield _recognised(Reader(node).read(), network, places)
                elif is_op(node, "Attention"):
                    yield _rejoined(node, network, places)
            except NoAttentionError as error:
                if error.is_near:
                    yield Missed(self.name, node.name or "", str(error))


def _rejoined(node: ir.Node, network: ir.Model, places: dict[ir.Node, int]) -> Recognised:
    """Return the call on [batch, rows, heads * size] for an Attention of heads."""
    q, k, v, mask, *more = (*node.inputs, *[None] * 4)[: max(4, len(node.inputs))]
    shape = None if q is None else static_shape(q)
    if q is None or k is None or v is None or shape is None or len(shape) != 4:
        raise NoAttentionError("no heads are split", is_near=False)
    if any(more) or any(o.uses() or o.is_graph_output() for o in node.outputs[1:]):
        raise NoAttentionError("it has past or present keys, or gives its scores")
    attributes = {name: a.value for name, a in node.attributes.items() if a.value is not None}
    scale = attributes.pop("scale", 1 / math.sqrt(shape[3]))
    parts = Parts(q, k, v, node.outputs[0], mask, False, scale, {node}, False, attributes)
    found = _recognised(parts, network, places)
    if len(found.nodes) == 1:
        raise NoAttentionError("its heads are none of joined tensors", is_near=False)
    return found


def _recognised(parts: Parts, network: ir.Model, places: dict[ir.Node, int]) -> Recognised:
    """Return the call for ``parts``: on [batch, rows, heads * size] if all operands come from there, else on heads."""
    shapes = [static_shape(v) for v in (parts.q, parts.k, parts.v, parts.y)]
    if any(s is None or len(s) != 4 for s in shapes):
        raise NoAttentionError("operands do not have four known dimensions")
    (b, h, s, d), _, (*_, t, e), _ = shapes  # type: ignore[misc]  # none is None
    joined = _Joined(b, h, s, e)
    result = joined.follow(parts.y)
    for is_joined in (True, False) if result is not None else (False,):
        q = _source(parts.q, b, h, s, d, is_joined)
        k = _source(parts.k, b, h, t, d, is_joined, is_transposed=parts.is_transposed)
        v = _source(parts.v, b, h, t, e, is_joined)
        if q is not None and k is not None and v is not None and q[1] == h and k[1] == v[1]:
            kept = result if is_joined and result is not None else (parts.y, ())
            return _call(parts, (q[0], k[0], v[0]), (h, k[1]), kept, network, places, is_joined=is_joined)
    raise NoAttentionError("queries, keys or values are not heads of a tensor as Attention takes them")


def _call(
    parts: Parts,
    operands: Sequence[Source],
    heads: tuple[int, int],
    result: tuple[ir.Value, tuple[ir.Node, ...]],
    network: ir.Model,
    places: dict[ir.Node, int],
    *,
    is_joined: bool,
) -> Recognised:
    scale = parts.scale * operands[0].scale * operands[1].scale
    if not (np.isfinite(scale) and scale > 0) or operands[2].scale != 1.0:
        raise NoAttentionError(f"scores times {scale}, values times {operands[2].scale}")
    attributes: dict[str, Any] = parts.attributes | {"scale": scale}
    if is_joined:
        attributes |= {"q_num_heads": heads[0], "kv_num_heads": heads[1]}
    mask = parts.mask
    is_causal = bool(attributes.get("is_causal"))
    kind = None if mask is None else _constant_mask(mask, is_truth=parts.masks_by_truth)
    if kind == "causal" and not is_causal:
        attributes["is_causal"] = 1
    inputs = [source.value for source in operands]
    if mask is not None and (kind is None or (kind == "causal" and is_causal)):
        inputs.append(mask)
    nodes = parts.nodes.union(result[1], *(source.nodes for source in operands))
    ordered = tuple(sorted(nodes, key=places.__getitem__))
    signature = _signature(inputs, attributes, result[0], network)
    return Recognised(AttentionRecogniser.name, ordered, tuple(inputs), signature)


def _signature(
    inputs: Sequence[ir.Value], attributes: dict[str, Any], result: ir.Value, network: ir.Model
) -> OpSignature:
    call = ir.node("Attention", list(inputs), attributes, num_outputs=1)
    call.outputs[0].name, call.outputs[0].type, call.outputs[0].shape = "y", result.type, result.shape
    signature = signature_of(call, network)
    detach([call])
    return replace(signature, version=max(OPSET, signature.version))


def _source(
    value: ir.Value, b: int, h: int, s: int, d: int, is_joined: bool, *, is_transposed: bool = False
) -> tuple[Source, int] | None:
    """Return what a [b, h, s, d] operand is a view of, with its own number of heads; transposed it is [b, h, d, s].

    Of several tensors it is the farthest one: what lies between is not computed then.
    """
    found = None
    for source in sources(value):
        shape = static_shape(source.value) or ()
        if is_joined and len(shape) == 3 and shape[:2] == (b, s) and shape[2] % d == 0:
            own = shape[2] // d
            strides = s * own * d, d, own * d
        elif not is_joined and len(shape) == 4 and shape[0] == b and shape[2:] == (s, d):
            own = shape[1]
            strides = own * s * d, s * d, d
        else:
            continue
        if own == 0 or h % own:
            continue
        rows, size = [(s, strides[2])], [(d, 1)]
        tail = (size, rows) if is_transposed else (rows, size)
        if source.layout == Layout.make([(b, strides[0])], [(own, strides[1]), (h // own, 0)], *tail):
            found = source, own
    return found


@dataclass(frozen=True)
class _Joined:
    """The sizes of a result of heads."""

    b: int
    h: int
    s: int
    e: int

    def follow(self, y: ir.Value) -> tuple[ir.Value, tuple[ir.Node, ...]] | None:
        """Return the value [b, s, h * e] that heads are joined to, and the nodes up to it, if nothing else reads them."""
        b, h, s, e = self.b, self.h, self.s, self.e
        wanted = Layout.make([(b, h * s * e)], [(s, e)], [(h, s * e), (e, 1)])
        layout: Layout | None = Layout.contiguous((b, h, s, e))
        steps: list[ir.Node] = []
        while layout is not None:
            if layout == wanted and static_shape(y) == (b, s, h * e):
                return y, tuple(steps)
            readers = [use.node for use in y.uses()]
            if len(readers) != 1 or y.is_graph_output() or readers[0].op_type not in ("Transpose", "Reshape"):
                return None
            steps.append(readers[0])
            layout, y = after(readers[0], layout), readers[0].outputs[0]
        return None


def _constant_mask(mask: ir.Value, *, is_truth: bool) -> str | None:
    """Return "none" of a mask that lets everything through, "causal" of one that hides what comes later, else None."""
    array = known(mask)
    if array is None or array.size == 0:
        return None
    numbers = array.astype(np.float32)
    open_, shut = (numbers > 0, numbers <= 0) if is_truth else (numbers == 0, numbers <= NEVER)
    if open_.all():
        return "none"
    if array.ndim < 2 or array.shape[-1] != array.shape[-2] or not (open_ | shut).all():
        return None
    lower = np.tril(np.ones(array.shape[-2:], bool))
    return "causal" if (open_ == lower).all() else None


def _joins_heads(node: ir.Node) -> bool:
    """Return whether a node puts the heads of what a softmax weighs beside one another."""
    perm = node.attributes.get("perm")
    if not is_op(node, "Transpose") or perm is None or tuple(perm.as_ints()) != (0, 2, 1, 3):
        return False
    product = None if node.inputs[0] is None else node.inputs[0].producer()
    weights = None if product is None or not is_op(product, "MatMul") else product.inputs[0]
    while weights is not None and (maker := weights.producer()) is not None:
        if is_op(maker, "Softmax"):
            return True
        weights = {"Cast": maker.inputs[0], "Where": maker.inputs[-1]}.get(maker.op_type)
    return False


def _moves_heads(node: ir.Node) -> bool:
    """Return whether a node transposes [batch, rows, heads, size] for a product, perhaps after reshapes and a factor."""
    perm = node.attributes.get("perm")
    if (
        not is_op(node, "Transpose")
        or perm is None
        or tuple(perm.as_ints()) not in ((0, 2, 1, 3), (0, 2, 3, 1))
    ):
        return False
    value, steps = node.outputs[0], 0
    while steps < _MOST_STEPS and len(readers := [use.node for use in value.uses()]) == 1:
        if readers[0].op_type in ("MatMul", "Attention"):
            return True
        if not is_view(readers[0]) and scaled(readers[0]) is None:
            return False
        value, steps = readers[0].outputs[0], steps + 1
    return False


def _insert_reshape(network: ir.Model, reader: ir.Node, value: ir.Value, shape: tuple[int, ...]) -> ir.Value:
    name = f"{reader.name}_heads"
    sizes = constant(np.array(shape, np.int64), f"{name}_shape", network.graph)
    node = ir.node("Reshape", [value, sizes], num_outputs=1, name=name)
    node.outputs[0].name, node.outputs[0].type = name, value.type
    node.outputs[0].shape = ir.Shape(shape)
    network.graph.insert_before(reader, node)
    reader.replace_input_with(0, node.outputs[0])
    return node.outputs[0]
