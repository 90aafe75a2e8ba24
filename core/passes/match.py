"""A subgraph that a rewrite rule has found: what the variables of its pattern stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from tactician.network import tensor_type
from tactician.signature import TensorType

Array = np.ndarray[Any, Any]


class Match:
    """A subgraph that looks like a pattern, by the variables of the pattern.

    Parameters
    ----------
    bindings
        What each variable, and each output with a name, stands for; None where it does not occur.
    nodes
        The nodes of the subgraph; the last one first.
    outputs
        The values that are to be replaced.
    """

    def __init__(
        self, bindings: Mapping[str, Any], nodes: Sequence[ir.Node], outputs: Sequence[ir.Value]
    ) -> None:
        self._bindings = bindings
        self.nodes, self.outputs = tuple(nodes), tuple(outputs)

    def __getitem__(self, name: str) -> Any:
        """Return the value that variable ``name`` stands for: an input of the new nodes."""
        return self._bindings[name]

    @property
    def last(self) -> ir.Node:
        """The node that computes the first output."""
        return self.nodes[0]

    @property
    def output_types(self) -> tuple[TensorType | None, ...]:
        """The types of the outputs, as far as they are known."""
        return tuple(tensor_type(value) for value in self.outputs)

    def type(self, name: str) -> TensorType | None:
        """Return the type of the value that ``name`` stands for, as far as it is known."""
        value = self._bindings[name]
        return tensor_type(value) if isinstance(value, ir.Value) else None

    def constant(self, name: str) -> Array | None:
        """Return the value of the constant, or of the numeric attribute, that ``name`` stands for; None if it is neither."""
        value = self._bindings[name]
        if isinstance(value, ir.Value):
            return known(value)
        plain = value.value if isinstance(value, ir.Attr) else value
        return np.asarray(plain) if isinstance(plain, int | float | list | tuple) else None

    def number(self, name: str) -> Any:
        """Return the Python number of a constant, or of an attribute, of one element; None where it is none."""
        array = self.constant(name)
        return array.item() if array is not None and array.size == 1 and array.dtype.kind in "iubfV" else None

    def attribute(self, name: str) -> Any:
        """Return the attribute that ``name`` stands for, or its default; None where there is neither."""
        value = self._bindings[name]
        return value.value if isinstance(value, ir.Attr) else value


def known(value: ir.Value) -> Array | None:
    """Return the value of a constant; None for what is none."""
    tensor = None if value.is_graph_input() else ir.convenience.get_const_tensor(value)
    return None if tensor is None else np.asarray(tensor.numpy())
