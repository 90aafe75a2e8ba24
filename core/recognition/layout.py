"""How a value lies in the value that it is a view of: what chains of Reshape, Transpose and Expand come to."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from tactician.network import domain_of, tensor_type
from tactician.passes.match import known

Factor = tuple[int, int]
"""Size and stride, in elements of the source, of a digit of an index."""


@dataclass(frozen=True)
class Layout:
    """Each dimension as digits of mixed radix, the outer ones first: a digit of stride 0 repeats.

    Layouts of equal meaning are equal: digits of size 1 are left out, and neighbours that are one are merged.
    """

    dims: tuple[tuple[Factor, ...], ...]

    @classmethod
    def make(cls, *dims: Sequence[Factor]) -> Layout:
        """Return the layout of these dimensions."""
        return cls(tuple(map(_merged, dims)))

    @classmethod
    def contiguous(cls, shape: Sequence[int]) -> Layout:
        """Return the layout of a tensor in itself."""
        strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
        return cls.make(*([(size, stride)] for size, stride in zip(shape, strides, strict=True)))

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes of the dimensions."""
        return tuple(math.prod(size for size, _ in dim) for dim in self.dims)

    def transposed(self, order: Sequence[int]) -> Layout:
        """Return the layout with its dimensions in another order."""
        return Layout(tuple(self.dims[i] for i in order))

    def expanded(self, shape: Sequence[int]) -> Layout | None:
        """Return the layout broadcast to ``shape``, of as many dimensions."""
        found = []
        for dim, old, new in zip(self.dims, self.shape, shape, strict=True):
            if old not in (1, new):
                return None
            found.append(dim if old == new else ((new, 0),))
        return Layout.make(*found)

    def reshaped(self, shape: Sequence[int]) -> Layout | None:
        """Return the layout with its elements, in order, in ``shape``; None where a digit would have to be cut unevenly."""
        left = [factor for dim in self.dims for factor in dim][::-1]
        found: list[list[Factor]] = []
        for size in shape:
            digits: list[Factor] = []
            while size > 1:
                if not left:
                    return None
                most, stride = left.pop()
                taken = math.gcd(size, most)
                if taken not in (size, most):
                    return None
                digits.append((taken, stride * (most // taken)))
                if taken < most:
                    left.append((most // taken, stride))
                size //= taken
            found.append(digits)
        return Layout.make(*found) if not left else None


@dataclass(frozen=True)
class Source:
    """A value that another one is a view of, times a number.

    Parameters
    ----------
    value
        The source.
    layout
        How the view lies in it.
    scale
        What the view is multiplied by.
    nodes
        The nodes between the two, the last one first.
    """

    value: ir.Value
    layout: Layout
    scale: float
    nodes: tuple[ir.Node, ...]


def sources(value: ir.Value) -> Iterator[Source]:
    """Yield ``value`` itself, and then all that it is a view of, nearest first."""
    steps: list[ir.Node] = []
    scale = 1.0
    while True:
        shape = static_shape(value)
        layout = None if shape is None else _along(Layout.contiguous(shape), steps[::-1])
        if layout is None:
            return
        yield Source(value, layout, scale, tuple(steps))
        node = value.producer()
        step = None if node is None else scaled(node)
        if node is None or (step is None and (not is_view(node) or node.inputs[0] is None)):
            return
        value, factor = step or (node.inputs[0], 1.0)
        scale *= factor
        steps.append(node)


def after(node: ir.Node, layout: Layout) -> Layout | None:
    """Return the layout of what a view node makes of a value that lies as ``layout`` says."""
    shape = static_shape(node.outputs[0])
    if shape is None:
        return None
    match node.op_type:
        case "Transpose":
            order = node.attributes.get("perm")
            return layout.transposed(order.as_ints() if order else range(len(shape))[::-1])
        case "Expand":
            before = layout.reshaped((1,) * (len(shape) - len(layout.dims)) + layout.shape)
            return None if before is None else before.expanded(shape)
    return layout.reshaped(shape)


def scaled(node: ir.Node) -> tuple[ir.Value, float] | None:
    """Return what a node multiplies by one known number, and that number."""
    if node.op_type not in ("Mul", "Div") or domain_of(node) != "ai.onnx":
        return None
    a, b = node.inputs
    if a is None or b is None:
        return None
    for value, other in ((a, b), (b, a))[: 1 if node.op_type == "Div" else 2]:
        array = known(other)
        if array is not None and array.size == 1 and _same_shape(value, node.outputs[0]):
            number = float(array.reshape(()).astype(float))
            return (value, 1 / number if node.op_type == "Div" else number) if number else None
    return None


def static_shape(value: ir.Value) -> tuple[int, ...] | None:
    """Return the dimensions of a tensor, where all of them are known."""
    kind = tensor_type(value)
    return kind.dims if kind is not None and kind.is_static else None


def _along(layout: Layout, steps: Sequence[ir.Node]) -> Layout | None:
    found: Layout | None = layout
    for node in steps:
        if found is not None and scaled(node) is None:
            found = after(node, found)
    return found


def is_view(node: ir.Node) -> bool:
    """Return whether a node gives the elements of its first input, in another order or again and again."""
    kinds = ("Reshape", "Transpose", "Expand", "Unsqueeze", "Squeeze", "Flatten", "Identity")
    return domain_of(node) == "ai.onnx" and node.op_type in kinds


def _same_shape(a: ir.Value, b: ir.Value) -> bool:
    return static_shape(a) is not None and static_shape(a) == static_shape(b)


def _merged(dim: Sequence[Factor]) -> tuple[Factor, ...]:
    found: list[Any] = []
    for size, stride in dim:
        if size == 1:
            continue
        if found and found[-1][1] == size * stride:
            found[-1] = (found[-1][0] * size, stride)
        else:
            found.append((size, stride))
    return tuple(found)
