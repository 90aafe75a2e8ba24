"""A network written in Python, for those who have no ONNX file: thin over onnx_ir."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from tactician.errors import InvalidModelError
from tactician.signature import dtype_name, numpy_dtype

DEFAULT_OPSET = 21


class Tensor:
    """A value of a network under construction; arithmetic operators append nodes."""

    def __init__(self, network: Network, value: ir.Value) -> None:
        self._network = network
        self.value = value

    @property
    def name(self) -> str:
        """The value's name."""
        return self.value.name or ""

    def __add__(self, other: Any) -> Tensor:
        """Append Add."""
        return self._network.op("Add", self, other)

    def __sub__(self, other: Any) -> Tensor:
        """Append Sub."""
        return self._network.op("Sub", self, other)

    def __mul__(self, other: Any) -> Tensor:
        """Append Mul."""
        return self._network.op("Mul", self, other)

    def __truediv__(self, other: Any) -> Tensor:
        """Append Div."""
        return self._network.op("Div", self, other)

    def __matmul__(self, other: Any) -> Tensor:
        """Append MatMul."""
        return self._network.op("MatMul", self, other)


class Network:
    """A network, built call by call and passed to ``tactician.build``.

    Parameters
    ----------
    opset
        Opset of the standard operators.
    name
        Name of the graph.

    Examples
    --------
    >>> net = Network()
    >>> x = net.input("x", "float32", (1, 4))
    >>> y = net.op("Relu", x @ net.constant(weights))
    >>> net.output(y, "y")
    """

    def __init__(self, opset: int = DEFAULT_OPSET, name: str = "network") -> None:
        graph = ir.Graph([], [], nodes=[], opset_imports={"": opset}, name=name)
        self.model = ir.Model(graph, ir_version=10)
        self._count = 0

    def input(self, name: str, dtype: str, shape: Sequence[int | str | None]) -> Tensor:
        """Add a graph input of element type ``dtype`` (``"float32"``); dimensions are numbers or symbols."""
        if any(v.name == name for v in self.model.graph.inputs):
            raise InvalidModelError(f"the network has an input '{name}' already; choose another name")
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(_data_type(dtype)))
        self.model.graph.inputs.append(value)
        return Tensor(self, value)

    def constant(self, array: Any, name: str | None = None) -> Tensor:
        """Add a weight or another constant."""
        array = np.asarray(array)
        name = name or self._fresh("constant")
        if name in self.model.graph.initializers:
            raise InvalidModelError(f"the network has a constant '{name}' already; choose another name")
        tensor = ir.tensor(array, dtype=_data_type(dtype_name(array.dtype)), name=name)
        value = ir.Value(
            name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        self.model.graph.register_initializer(value)
        return Tensor(self, value)

    def op(
        self,
        op_type: str,
        *inputs: Any,
        domain: str = "",
        version: int = 1,
        outputs: int = 1,
        name: str | None = None,
        **attributes: Any,
    ) -> Any:
        """Append a node.

        Parameters
        ----------
        inputs
            Tensors of this network, arrays or numbers (which become constants of the first tensor's type), or None
            for an absent optional input.
        domain, version
            Domain of a plugin's operator and its opset version.
        outputs
            Number of outputs.
        attributes
            The node's attributes.

        Returns
        -------
        Tensor or tuple of Tensor
            One for one output, else a tuple.
        """
        values = [None if x is None else self._tensor(x, inputs).value for x in inputs]
        name = name or self._fresh(op_type)
        node = ir.node(op_type, values, attributes or None, domain=domain, num_outputs=outputs, name=name)
        for i, value in enumerate(node.outputs):
            value.name = f"{name}_out" if outputs == 1 else f"{name}_out{i}"
        self.model.graph.opset_imports.setdefault(domain, version)
        self.model.graph.append(node)
        results = tuple(Tensor(self, v) for v in node.outputs)
        return results[0] if outputs == 1 else results

    def output(self, tensor: Tensor, name: str | None = None) -> None:
        """Make ``tensor`` an output of the graph, under ``name``."""
        if name:
            tensor.value.name = name
        self.model.graph.outputs.append(tensor.value)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the network as an ONNX file."""
        ir.save(self.model, path)

    def _tensor(self, value: Any, inputs: Sequence[Any]) -> Tensor:
        if isinstance(value, Tensor):
            if value._network is not self:
                raise InvalidModelError(f"tensor '{value.name}' belongs to another network")
            return value
        if isinstance(value, np.ndarray):
            return self.constant(value)
        first = next((x for x in inputs if isinstance(x, Tensor) and x.value.dtype is not None), None)
        dtype = numpy_dtype("float32") if first is None else first.value.dtype.numpy()  # type: ignore[union-attr]  # asked above
        return self.constant(np.asarray(value, dtype))

    def _fresh(self, stem: str) -> str:
        self._count += 1
        return f"{stem}_{self._count}"


def _data_type(dtype: str) -> ir.DataType:
    name = {"float32": "FLOAT", "float64": "DOUBLE"}.get(dtype, dtype.upper())
    try:
        return ir.DataType[name]
    except KeyError as error:
        raise InvalidModelError(
            f"'{dtype}' is no ONNX element type; use a name such as float32, float16, int64"
        ) from error
