"""A network written in Python, for those who have no ONNX file: thin over onnx_ir."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from tactician.errors import InvalidModelError
from tactician.node_inference import data_type, infer_node
from tactician.signature import dtype_name, numpy_dtype

DEFAULT_OPSET = 21


class Tensor:
    """A value of a network under construction; ``+ - * / @`` and unary ``-`` append nodes."""

    __array_priority__ = 1000  # an array on the left leaves the operation to us

    def __init__(self, network: Network, value: ir.Value) -> None:
        self._network = network
        self.value = value

    @property
    def name(self) -> str:
        """The value's name."""
        return self.value.name or ""

    @property
    def shape(self) -> tuple[int | str | None, ...] | None:
        """The dimensions as far as they are known; None where not even the rank is."""
        shape = self.value.shape
        return None if shape is None else tuple(d if isinstance(d, int) else d.value for d in shape)

    @property
    def dtype(self) -> str | None:
        """The element type in NumPy's spelling, or None where it is not known."""
        return None if self.value.dtype is None else dtype_name(self.value.dtype.numpy())

    def __repr__(self) -> str:
        return f"Tensor('{self.name}', {self.dtype}, {self.shape})"

    def __add__(self, other: Any) -> Tensor:
        """Append Add."""
        return self._network._one("Add", self, other)

    def __radd__(self, other: Any) -> Tensor:
        """Append Add."""
        return self._network._one("Add", other, self)

    def __sub__(self, other: Any) -> Tensor:
        """Append Sub."""
        return self._network._one("Sub", self, other)

    def __rsub__(self, other: Any) -> Tensor:
        """Append Sub."""
        return self._network._one("Sub", other, self)

    def __mul__(self, other: Any) -> Tensor:
        """Append Mul."""
        return self._network._one("Mul", self, other)

    def __rmul__(self, other: Any) -> Tensor:
        """Append Mul."""
        return self._network._one("Mul", other, self)

    def __truediv__(self, other: Any) -> Tensor:
        """Append Div."""
        return self._network._one("Div", self, other)

    def __rtruediv__(self, other: Any) -> Tensor:
        """Append Div."""
        return self._network._one("Div", other, self)

    def __matmul__(self, other: Any) -> Tensor:
        """Append MatMul."""
        return self._network._one("MatMul", self, other)

    def __rmatmul__(self, other: Any) -> Tensor:
        """Append MatMul."""
        return self._network._one("MatMul", other, self)

    def __neg__(self) -> Tensor:
        """Append Neg."""
        return self._network._one("Neg", self)


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
    >>> y = net.op("Relu", x @ weights + bias)
    >>> net.output(y, "y")
    """

    def __init__(self, opset: int = DEFAULT_OPSET, name: str = "network") -> None:
        graph = ir.Graph([], [], nodes=[], opset_imports={"": opset}, name=name)
        self.model = ir.Model(graph, ir_version=10)
        """The network as onnx_ir holds it."""
        self._names: set[str] = set()

    def input(self, name: str, dtype: str, shape: Sequence[int | str | None]) -> Tensor:
        """Add a graph input of element type ``dtype`` (``"float32"``); dimensions are numbers or symbols.

        Raises
        ------
        InvalidModelError
            If the name is taken, or there is no such element type.
        """
        value = ir.Value(name=self._claim(name), shape=ir.Shape(shape), type=ir.TensorType(data_type(dtype)))
        self.model.graph.inputs.append(value)
        return Tensor(self, value)

    def constant(self, array: Any, name: str | None = None) -> Tensor:
        """Add a weight or another constant, anything that ``np.asarray`` takes; it is not copied.

        Raises
        ------
        InvalidModelError
            If the name is taken, or the array's type is none of ONNX's.
        """
        array = np.asarray(array)
        name = self._claim(name) if name else self._fresh("constant")
        tensor = ir.tensor(array, dtype=data_type(dtype_name(array.dtype)), name=name)
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
        """Append a node; the types of its outputs are inferred.

        Parameters
        ----------
        op_type
            The operator, ``"Conv"``.
        inputs
            Tensors of this network; arrays and numbers, which become constants (Python numbers of the first tensor's
            element type); None for an optional input that is left out.
        domain, version
            Domain of a plugin's operator, and its opset version; its types are inferred when the network is built.
        outputs
            Number of outputs.
        name
            Name of the node; by default the operator and a number.
        attributes
            The node's attributes.

        Returns
        -------
        Tensor or tuple of Tensor
            One for one output, else a tuple.

        Raises
        ------
        UnknownOpError
            If the standard operators of this opset have none of that name.
        ShapeError
            If the inputs do not fit together.
        InvalidModelError
            If an input is no tensor of this network, or an attribute's value is none that ONNX has.
        """
        name = self._claim(name) if name else self._fresh(op_type)
        values = [None if x is None else self._tensor(x, inputs).value for x in inputs]
        domain = "" if domain == "ai.onnx" else domain
        try:
            node = ir.node(op_type, values, attributes or None, domain=domain, num_outputs=outputs, name=name)
        except (TypeError, ValueError) as error:
            raise InvalidModelError(
                f"{op_type} '{name}': its attributes can't be written as ONNX: {error}"
            ) from error
        for i, value in enumerate(node.outputs):
            value.name = self._claim(f"{name}_out" if outputs == 1 else f"{name}_out{i}")
        self.model.graph.opset_imports.setdefault(domain, version)
        if not domain:
            infer_node(node, self.model.graph.opset_imports[""])
        self.model.graph.append(node)
        results = tuple(Tensor(self, v) for v in node.outputs)
        return results[0] if outputs == 1 else results

    def output(self, tensor: Tensor, name: str | None = None) -> None:
        """Make ``tensor`` an output of the network, under ``name``.

        Raises
        ------
        InvalidModelError
            If the name is taken or the tensor is another network's.
        """
        value = self._own(tensor).value
        inner = value.producer() is None or value.is_graph_output()
        if name and name != value.name and inner:  # an input, a constant or another output keeps its own name
            value = self._one("Identity", tensor).value
        if name and name != value.name:
            value.name = self._claim(name)
        self.model.graph.outputs.append(value)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the network as an ONNX file."""
        ir.save(self.model, path)

    def _one(self, op_type: str, *inputs: Any) -> Tensor:
        result = self.op(op_type, *inputs)
        assert isinstance(result, Tensor)  # op() has one output by default
        return result

    def _tensor(self, value: Any, inputs: Sequence[Any]) -> Tensor:
        if isinstance(value, Tensor):
            return self._own(value)
        if isinstance(value, np.ndarray | np.generic):
            return self.constant(value)
        first = next(
            (x.value.dtype for x in inputs if isinstance(x, Tensor) and x.value.dtype is not None), None
        )
        try:
            return self.constant(
                np.asarray(value, numpy_dtype("float32") if first is None else first.numpy())
            )
        except (TypeError, ValueError) as error:
            raise InvalidModelError(
                f"a {type(value).__name__} is no tensor; pass tensors of this network, arrays, numbers or None"
            ) from error

    def _own(self, tensor: Tensor) -> Tensor:
        if not isinstance(tensor, Tensor):
            raise InvalidModelError(f"a {type(tensor).__name__} is no tensor of a network")
        if tensor._network is not self:
            raise InvalidModelError(f"tensor '{tensor.name}' belongs to another network")
        return tensor

    def _claim(self, name: str) -> str:
        if name in self._names:
            raise InvalidModelError(f"the network has something called '{name}' already; choose another name")
        self._names.add(name)
        return name

    def _fresh(self, stem: str) -> str:
        count = 0
        while f"{stem}_{count}" in self._names or f"{stem}_{count}_out" in self._names:
            count += 1
        return self._claim(f"{stem}_{count}")
