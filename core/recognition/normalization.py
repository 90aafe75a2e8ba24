"""Layer and RMS normalisation written out: x / sqrt(mean(x²) + ε) with its scale becomes one call of ONNX's operator.

Exporters of opsets without the operators spell them with Pow or Mul, Sqrt with Div or with Reciprocal, in float32 between
casts where the model is of 16 bits, and with the scale before the last cast or behind it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import onnx_ir as ir
from tactician.network import constant, only_reader, signature_of
from tactician.passes.match import known
from tactician.passes.rewrite import detach
from tactician.recognition import Missed, Recognised
from tactician.recognition.attention_reader import dtype_of, is_op
from tactician.recognition.layout import static_shape

OPSETS = {"LayerNormalization": 17, "RMSNormalization": 23}
"""The first opset with each operator."""

_WIDE = 1
"""The attribute stash_type: what is computed between is float32."""


class NormalizationRecogniser:
    """Looks at every mean of squares."""

    name = "normalization"

    def prepare(self, network: ir.Model) -> None:
        """Change nothing."""

    def find(self, network: ir.Model) -> Iterator[Recognised | Missed]:
        """Yield a normalisation for each mean of squares of the last dimension that one comes of."""
        places = {node: number for number, node in enumerate(network.graph)}
        for node in list(network.graph):
            parts = _read(node)
            if parts is not None:
                yield _recognised(parts, network, places)


@dataclass
class _Parts:
    """What a normalisation consists of; ``result`` grows with what follows."""

    source: ir.Value
    centred: bool
    epsilon: float
    result: ir.Value
    scale: ir.Value | None = None
    bias: ir.Value | None = None
    nodes: list[ir.Node] = field(default_factory=list)


def _read(node: ir.Node) -> _Parts | None:
    """Return the normalisation that ``node`` is the mean of squares of."""
    squared = _squared(node.inputs[0]) if _is_mean(node) else None
    if squared is None:
        return None
    value, square = squared
    down = _normalised(node.outputs[0], value)
    if down is None:
        return None
    epsilon, result, nodes = down
    parts = _Parts(value, False, epsilon, result, nodes=[square, node, *nodes])
    centre = value.producer()
    if centre is not None and is_op(centre, "Sub") and (mean := _mean_of(centre)) is not None:
        parts.source, parts.centred = mean.inputs[0], True
        parts.nodes += [mean, centre]
    cast = parts.source.producer()
    if cast is not None and is_op(cast, "Cast") and dtype_of(cast.inputs[0]) in ("float16", "bfloat16"):
        parts.source = cast.inputs[0]
        parts.nodes.append(cast)
    _follow(parts)
    return parts if parts.scale is not None and dtype_of(parts.result) == dtype_of(parts.source) else None


def _follow(parts: _Parts) -> None:
    """Take in the scale, the bias and the cast back."""
    length = (static_shape(parts.source) or (0,))[-1]
    while (reader := only_reader(parts.result)) is not None:
        is_back = is_op(reader, "Cast") and dtype_of(reader.outputs[0]) == dtype_of(parts.source)
        if is_back and dtype_of(parts.result) == "float32":
            pass
        elif (
            is_op(reader, "Mul")
            and parts.scale is None
            and (other := _row(reader, parts.result, length)) is not None
        ):
            parts.scale = other
        elif (
            is_op(reader, "Add")
            and parts.centred
            and parts.scale is not None
            and parts.bias is None
            and (other := _row(reader, parts.result, length)) is not None
        ):
            parts.bias = other
        else:
            return
        parts.nodes.append(reader)
        parts.result = reader.outputs[0]


def _recognised(parts: _Parts, network: ir.Model, places: dict[ir.Node, int]) -> Recognised:
    op = "LayerNormalization" if parts.centred else "RMSNormalization"
    assert parts.scale is not None
    inputs = [parts.source, _of_type(parts.scale, parts.source, network)]
    if parts.bias is not None:
        inputs.append(_of_type(parts.bias, parts.source, network))
    attributes = {"axis": -1, "epsilon": parts.epsilon, "stash_type": _WIDE}
    call = ir.node(op, inputs, attributes, num_outputs=1)
    call.outputs[0].name, call.outputs[0].type, call.outputs[0].shape = (
        "y",
        parts.source.type,
        parts.source.shape,
    )
    signature = signature_of(call, network)
    detach([call])
    nodes = tuple(sorted(set(parts.nodes), key=places.__getitem__))
    version = max(OPSETS[op], signature.version)
    return Recognised(NormalizationRecogniser.name, nodes, tuple(inputs), replace(signature, version=version))


def _of_type(value: ir.Value, like: ir.Value, network: ir.Model) -> ir.Value:
    """Return a constant in the type of ``like``, as one dimension: a model of 16 bits has its weights cast to float32."""
    array = known(value)
    assert array is not None
    assert like.dtype is not None
    if value.dtype == like.dtype and array.ndim == 1:
        return value
    name = f"{value.name}_{like.dtype.name.lower()}_row"
    return constant(array.reshape(-1).astype(like.dtype.numpy()), name, network.graph)


def _is_mean(node: ir.Node) -> bool:
    """Return whether a node is the mean over the last dimension, which stays with size 1."""
    if not is_op(node, "ReduceMean") or node.inputs[0] is None:
        return False
    shape = static_shape(node.inputs[0])
    keep, attribute = node.attributes.get("keepdims"), node.attributes.get("axes")
    given = known(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] is not None else None
    axes = (
        attribute.as_ints() if attribute is not None else () if given is None else given.reshape(-1).tolist()
    )
    last = bool(shape) and [int(a) % len(shape or ()) for a in axes] == [len(shape or ()) - 1]
    return last and (keep is None or keep.as_int() == 1)


def _squared(value: ir.Value | None) -> tuple[ir.Value, ir.Node] | None:
    node = None if value is None else value.producer()
    if node is None or only_reader(node.outputs[0]) is None:
        return None
    a, b = (*node.inputs, None)[:2]
    exponent = known(b) if b is not None else None
    is_square = (is_op(node, "Mul") and a is b) or (
        is_op(node, "Pow")
        and exponent is not None
        and exponent.size == 1
        and float(exponent.reshape(())) == 2
    )
    return (a, node) if is_square and a is not None else None


def _mean_of(centre: ir.Node) -> ir.Node | None:
    """Return the mean that a Sub takes from the value that it is of."""
    value, mean = centre.inputs
    node = None if mean is None else mean.producer()
    return node if node is not None and _is_mean(node) and node.inputs[0] is value else None


def _normalised(mean: ir.Value, value: ir.Value) -> tuple[float, ir.Value, list[ir.Node]] | None:
    """Follow the mean to ``value`` over its root; return ε, that result, and the nodes between."""
    add = only_reader(mean)
    if add is None or not is_op(add, "Add"):
        return None
    other = add.inputs[1] if add.inputs[0] is mean else add.inputs[0]
    epsilon = known(other) if other is not None else None
    root = only_reader(add.outputs[0])
    if epsilon is None or epsilon.size != 1 or root is None or not is_op(root, "Sqrt"):
        return None
    nodes, number = [add, root], float(epsilon.reshape(()).astype(float))
    last = only_reader(root.outputs[0])
    if last is not None and is_op(last, "Reciprocal"):
        nodes.append(last)
        factor, last = last.outputs[0], only_reader(last.outputs[0])
        fits = last is not None and is_op(last, "Mul") and {*last.inputs} == {value, factor}
    else:
        fits = last is not None and is_op(last, "Div") and tuple(last.inputs) == (value, root.outputs[0])
    return (number, last.outputs[0], [*nodes, last]) if fits and last is not None else None


def _row(node: ir.Node, value: ir.Value, length: int) -> ir.Value | None:
    """Return the constant that a node joins ``value`` with, if it has one number for each place of the last dimension."""
    other: ir.Value | None = node.inputs[1] if node.inputs[0] is value else node.inputs[0]
    shape: Sequence[int] | None = None if other is None else static_shape(other)
    is_row = bool(shape) and tuple(shape or ()) == (1,) * (len(shape or ()) - 1) + (length,)
    return other if is_row and other is not None and known(other) is not None else None
