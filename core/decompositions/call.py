"""What a decomposition looks at: one call of an operator, of which every shape is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
from tactician.passes.writer import Writer
from tactician.signature import OpSignature, TensorType

Array = np.ndarray[Any, Any]

FLOATS = ("float16", "bfloat16", "float32", "float64")

Values: TypeAlias = ir.Value | Sequence[ir.Value | None]
"""What takes the place of the outputs: one value for the first of them, or one for each."""


class UnexpandableError(Exception):
    """Why a call can't be written with other operators; it stays as it is."""


@dataclass(frozen=True)
class Call:
    """One call of an operator of the standard domain.

    Parameters
    ----------
    node
        The node; its inputs are what new nodes read.
    signature
        What is known of it: every shape is.
    """

    node: ir.Node
    signature: OpSignature

    def has(self, index: int) -> bool:
        """Return whether input ``index`` is there."""
        return self.signature.input(index) is not None

    def input(self, index: int) -> ir.Value:
        """Return input ``index``.

        Raises
        ------
        UnexpandableError
            If it is absent.
        """
        value = self.node.inputs[index] if index < len(self.node.inputs) else None
        if value is None:
            raise UnexpandableError(f"input {index} is absent")
        return value

    def type(self, index: int = 0) -> TensorType:
        """Return the type of input ``index``.

        Raises
        ------
        UnexpandableError
            If it is absent.
        """
        kind = self.signature.input(index)
        if kind is None:
            raise UnexpandableError(f"input {index} is absent")
        return kind

    def result(self, index: int = 0) -> TensorType:
        """Return the type of output ``index``.

        Raises
        ------
        UnexpandableError
            If it is absent.
        """
        kind = self.signature.outputs[index] if index < len(self.signature.outputs) else None
        if kind is None:
            raise UnexpandableError(f"output {index} is absent")
        return kind

    def known(self, index: int) -> Array | None:
        """Return the value of input ``index`` where it is a constant."""
        value = self.node.inputs[index] if index < len(self.node.inputs) else None
        tensor = None if value is None or value.is_graph_input() else value.const_value
        return None if tensor is None else np.asarray(tensor.numpy())

    def attribute(self, name: str, default: Any = None) -> Any:
        """Return the value of attribute ``name``, or ``default`` where the node does not set it."""
        return self.signature.attribute(name, default)

    def axis(self, default: int, rank: int | None = None) -> int:
        """Return the attribute ``axis``, counted from the front."""
        rank = len(self.type().dims) if rank is None else rank
        axis = int(self.attribute("axis", default))
        if not -rank <= axis < rank:
            raise UnexpandableError(f"axis {axis} is none of {rank}")
        return axis % rank


Rule = Callable[[Writer, Call], Values]
"""Writes a call with other operators, or raises ``UnexpandableError``."""


def require(condition: bool, reason: str) -> None:
    """Leave the call as it is, for ``reason``, unless ``condition`` holds.

    Raises
    ------
    UnexpandableError
        If it does not.
    """
    if not condition:
        raise UnexpandableError(reason)


def ints(*values: int) -> Array:
    """Return integers as the constant that shapes and axes are given by."""
    return np.array(values, np.int64)


def shape_of(value: ir.Value) -> tuple[int, ...]:
    """Return the dimensions of what was written."""
    return tuple(int(d) for d in value.shape or () if isinstance(d, int))


def reshaped(op: Writer, value: ir.Value, shape: Sequence[int]) -> ir.Value:
    """Return ``value`` in another shape, which has as many elements."""
    made: ir.Value = op.Reshape(value, ints(*shape))
    return made


def transposed(op: Writer, value: ir.Value, order: Sequence[int]) -> ir.Value:
    """Return ``value`` with its dimensions in another order."""
    made: ir.Value = op.Transpose(value, perm=list(order))
    return made


def zero_of(value: ir.Value) -> Array:
    """Return a zero of the type of what was written."""
    return np.zeros((), np.float32 if value.dtype is None else value.dtype.numpy())
