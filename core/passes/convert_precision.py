"""Precision: float32 tensors become float16 or bfloat16, with casts where an operator or the caller keeps float32."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from fnmatch import fnmatchcase

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common
from tactician.errors import ShapeError, UnknownOpError
from tactician.network import constant
from tactician.node_inference import infer_node

logger = logging.getLogger(__name__)

KINDS = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
"""Element types by the name of the precision."""

SENSITIVE = frozenset(
    ("CumSum", "Exp", "Pow", "Range", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceProd",
     "ReduceSum", "ReduceSumSquare", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
)  # fmt: skip
"""Operators whose results can be far larger than their operands, or whose steps are too fine for 16 bits."""

PRODUCTS = frozenset(("Attention", "Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul"))
"""Operators that are worth a cast of their operands, whatever these come of."""

BOUNDLESS = 1e30
"""Numbers from here on stand for no bound, as masks have them: the largest number of the narrower type stands for it too."""


class ConvertPrecision(ir.passes.InPlacePass):
    """Let operators of float32 work in 16 bits. Inputs and outputs of the network keep their types; kernels sum in float32.

    Kept in float32 are operators that are ``SENSITIVE`` and, but for ``PRODUCTS``, what is computed of them alone: the mean of
    squares has the range of the squares. So are operators that have no form of 16 bits, that have subgraphs or are a
    plugin's, casts from a type of 16 bits, operators with a constant that is too large, and what a rule keeps.

    Parameters
    ----------
    precision
        ``"fp16"`` or ``"bf16"``.
    rules
        Node globs with ``"fp32"`` or the precision, the last that matches a node wins, over all but what can't be
        converted.
    """

    name = "convert_precision"

    def __init__(self, precision: str, rules: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__()
        self._kind, self._rules = KINDS[precision], rules

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run on ``model`` in place."""
        converter, modified = _Converter(model, self._kind), False
        for node in list(model.graph):
            if self._is_wanted(node, converter) and converter.convert(node):
                modified = True
            else:
                converter.keep(node)
        converter.finish()
        if modified:
            common.RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=modified)

    def _is_wanted(self, node: ir.Node, converter: _Converter) -> bool:
        ruled = next((p for glob, p in reversed(self._rules) if fnmatchcase(node.name or "", glob)), None)
        if ruled is not None:
            return ruled != "fp32"
        return node.op_type not in SENSITIVE and (
            node.op_type in PRODUCTS or not converter.comes_of_wide(node)
        )


class _Converter:
    """Walks the graph in order and knows, of each value that has both forms, the narrow one and the wide one."""

    def __init__(self, model: ir.Model, kind: ir.DataType) -> None:
        self._graph, self._kind = model.graph, kind
        self._opset = model.graph.opset_imports.get("", 0)
        self._made: set[ir.Value] = set()
        """Values that were float32 and are narrow now."""
        self._narrow: dict[ir.Value, ir.Value] = {}
        self._wide: dict[ir.Value, ir.Value] = {}

    def convert(self, node: ir.Node) -> bool:
        """Let ``node`` work in 16 bits if it can, and return whether it does."""
        allowed = self._allowed(node)
        places = [i for i, v in enumerate(node.inputs) if v is not None and allowed[i : i + 1] == [True]]
        places = [i for i in places if self._is_float(node.inputs[i])]
        is_cast = node.op_type == "Cast" and _cast_type(node) == ir.DataType.FLOAT
        if not allowed or not (places or is_cast) or any(self._overflows(node.inputs[i]) for i in places):
            return False
        old, types = list(node.inputs), [(v.type, v.shape) for v in node.outputs]
        self.keep(node, except_for=places)
        for i in places:
            value = node.inputs[i]
            assert value is not None
            node.replace_input_with(i, self._narrowed(value, node))
        if is_cast:
            node.attributes["to"] = ir.AttrInt64("to", int(self._kind))
        if self._infers(node):
            self._made.update(v for v in node.outputs if v.dtype == self._kind)
            return True
        for i, value in enumerate(old):
            node.replace_input_with(i, value)
        for value, (kind, shape) in zip(node.outputs, types, strict=True):
            value.type, value.shape = kind, shape
        return False

    def comes_of_wide(self, node: ir.Node) -> bool:
        """Return whether all numbers that ``node`` reads and that are computed are of nodes that stayed as they were."""
        floats = [v for v in node.inputs if v is not None and self._is_float(v) and v.const_value is None]
        return bool(floats) and all(v.producer() is not None and v not in self._made for v in floats)

    def keep(self, node: ir.Node, except_for: Sequence[int] = ()) -> None:
        """Let ``node`` read float32, as before."""
        for i, value in enumerate(node.inputs):
            if value in self._made and i not in except_for:
                node.replace_input_with(i, self._widened(value, node))

    def finish(self) -> None:
        """Give the network's outputs their type back."""
        for i, value in enumerate(self._graph.outputs):
            if value in self._made:
                name, value.name = value.name, f"{value.name}_narrow"
                wide = self._widened(value, None)
                if wide.is_graph_output():
                    wide = self._cast(value, ir.DataType.FLOAT, None)
                wide.name = name
                self._graph.outputs[i] = wide

    def _allowed(self, node: ir.Node) -> list[bool]:
        """Return for each input whether the operator takes 16 bits there; nothing for what stays as it is."""
        if node.domain not in ("", "ai.onnx") or any(_is_graph(a) for a in node.attributes.values()):
            return []
        if node.op_type == "Cast" and not self._casts_from_other(node):
            return []
        if not all(isinstance(v.type, ir.TensorType) for v in (*node.inputs, *node.outputs) if v and v.type):
            return []  # sequences and optionals can't be cast
        if any(use.node.graph is not self._graph for v in node.outputs for use in v.uses()):
            return []  # a branch or a loop's body reads it
        try:
            schema = onnx.defs.get_schema(node.op_type, self._opset, "")
        except onnx.defs.SchemaError:
            return []
        formal = list(schema.inputs)
        wanted = {ir.DataType.FLOAT16: "tensor(float16)", ir.DataType.BFLOAT16: "tensor(bfloat16)"}[
            self._kind
        ]
        return (
            [wanted in formal[min(i, len(formal) - 1)].types for i in range(len(node.inputs))]
            if formal
            else []
        )

    def _casts_from_other(self, node: ir.Node) -> bool:
        """Return whether a Cast to float32 comes from integers: one from 16 bits is meant to be precise."""
        source = node.inputs[0]
        return source is not None and source.dtype is not None and not source.dtype.is_floating_point()

    def _is_float(self, value: ir.Value | None) -> bool:
        return value is not None and (value in self._made or value.dtype == ir.DataType.FLOAT)

    def _overflows(self, value: ir.Value | None) -> bool:
        """Return whether a constant has numbers that the narrower type can't tell from infinity."""
        tensor = None if value is None or value.is_graph_input() else value.const_value
        if tensor is None or self._kind == ir.DataType.BFLOAT16:
            return False
        size = np.abs(np.asarray(tensor.numpy(), np.float32))
        finite = size[np.isfinite(size) & (size < BOUNDLESS)]
        return finite.size > 0 and float(finite.max()) > float(np.finfo(np.float16).max)

    def _narrowed(self, value: ir.Value, reader: ir.Node) -> ir.Value:
        if value in self._made:
            return value
        if value not in self._narrow:
            constant = None if value.is_graph_input() else value.const_value
            self._narrow[value] = (
                self._cast(value, self._kind, reader) if constant is None else self._constant(value, constant)
            )
        return self._narrow[value]

    def _widened(self, value: ir.Value, reader: ir.Node | None) -> ir.Value:
        if value not in self._wide:
            self._wide[value] = self._cast(value, ir.DataType.FLOAT, reader)
        return self._wide[value]

    def _cast(self, value: ir.Value, to: ir.DataType, reader: ir.Node | None) -> ir.Value:
        """Return ``value`` in another type, computed before ``reader`` or at the end."""
        name = f"{value.name}_{to.name.lower()}"
        node = ir.node("Cast", [value], {"to": int(to)}, num_outputs=1, name=name)
        made = node.outputs[0]
        made.name, made.type, made.shape = name, ir.TensorType(to), value.shape
        if reader is None:
            self._graph.append(node)
        else:
            self._graph.insert_before(reader, node)
        return made

    def _constant(self, value: ir.Value, tensor: ir.TensorProtocol) -> ir.Value:
        dtype = self._kind.numpy()
        array = np.asarray(tensor.numpy(), np.float32)
        # what stands for no bound stays finite: a sum with it is not to become NaN
        most = float(np.finfo(np.float16).max) if self._kind == ir.DataType.FLOAT16 else np.inf
        bounded = np.where(np.isinf(array), array, np.clip(array, -most, most)).astype(dtype)
        return constant(bounded, f"{value.name}_{self._kind.name.lower()}", self._graph)

    def _infers(self, node: ir.Node) -> bool:
        try:
            infer_node(node, self._opset)
        except (ShapeError, UnknownOpError) as error:
            logger.debug("%s stays in float32: %s", node.name, error)
            return False
        return True


def _cast_type(node: ir.Node) -> ir.DataType | None:
    to = node.attributes.get("to")
    return None if to is None else ir.DataType(to.as_int())


def _is_graph(attribute: ir.Attr) -> bool:
    return attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
