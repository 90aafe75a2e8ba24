"""New nodes, written as calls: what replacements of rewrite rules and of decompositions are made with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from tactician.errors import PluginError
from tactician.network import tensor_type
from tactician.node_inference import infer_custom_node, infer_node
from tactician.signature import numpy_dtype

Ops = Mapping[str, Any]


class Writer:
    """Makes nodes, ``op.Add(x, y)``, and infers their types.

    Parameters
    ----------
    rule
        What the nodes are made for, as errors call it.
    place
        What the names of nodes and values begin with.
    model
        Whose opsets the nodes are written in; they are not put into it.
    ops
        Plugins' operators by name.

    Attributes
    ----------
    nodes, constants
        What was made, in order.
    """

    def __init__(self, rule: str, place: str, model: ir.Model, ops: Ops) -> None:
        self.nodes: list[ir.Node] = []
        self.constants: list[ir.Value] = []
        self._rule, self._place, self._model, self._ops = rule, place, model, ops

    def __getattr__(self, op_type: str) -> Any:
        """Return the function that makes a node of ``op_type``."""
        if op_type.startswith("_"):
            raise AttributeError(op_type)

        def make(
            *inputs: Any, _domain: str = "", _version: int | None = None, _outputs: int = 1, **attributes: Any
        ) -> Any:
            return self._node(op_type, inputs, _domain, _version, _outputs, attributes)

        return make

    def named(self, output: ir.Value) -> tuple[ir.Node, ...]:
        """Return the nodes, named after the last node of the match, whose name the first output's node gets."""
        for node in self.nodes:
            node.name = self._place if node is output.producer() else f"{self._place}/{node.op_type}"
        return tuple(self.nodes)

    def _node(
        self,
        op_type: str,
        inputs: Sequence[Any],
        domain: str,
        version: int | None,
        outputs: int,
        attributes: Mapping[str, Any],
    ) -> Any:
        values = [self._value(v, inputs) for v in inputs]
        name = f"{self._place}/{len(self.nodes)}"
        node = ir.node(
            op_type,
            values,
            dict(attributes) or None,
            domain=domain,
            version=version,
            num_outputs=outputs,
            name=name,
        )
        for i, value in enumerate(node.outputs):
            value.name = f"{name}_out{i}"
        self.nodes.append(node)
        if not domain:
            infer_node(node, self._model.graph.opset_imports[""])
        elif f"{domain}::{op_type}" in self._ops:
            infer_custom_node(node, self._model, self._ops)
        else:
            raise PluginError(
                f"rewrite rule '{self._rule}': its replacement has operator '{domain}::{op_type}', which no loaded "
                "plugin defines; return it from the hook ops()"
            )
        return node.outputs[0] if outputs == 1 else tuple(node.outputs)

    def _value(self, value: Any, others: Sequence[Any]) -> ir.Value | None:
        """Return ``value``; numbers and arrays become constants, Python numbers of the first input's type."""
        if value is None or isinstance(value, ir.Value):
            return value
        if not isinstance(value, np.ndarray | np.generic):
            kinds = (tensor_type(v) for v in others if isinstance(v, ir.Value))
            first = next((kind for kind in kinds if kind is not None), None)
            value = np.asarray(value, numpy_dtype(first.dtype if first else "float32"))
        name = f"{self._place}/constant_{len(self.constants)}"
        tensor = ir.tensor(np.asarray(value), name=name)
        made = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape), const_value=tensor
        )
        self.constants.append(made)
        return made
