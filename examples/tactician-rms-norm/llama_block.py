"""The model that the example runs: decoder blocks as in LLaMA (Touvron et al., 2023), without rotary embedding, as ONNX.

    h = x + attention(norm(x));  y = h + silu(norm(h) G) * (norm(h) U) D,  and a last norm after all blocks

Each norm is written out as exporters write it, in one of ``FORMS``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FORMS = ("pow_div", "mul_div", "reciprocal", "one_over", "commuted", "positive_axis")
"""Ways in which the same normalisation is written."""
EPSILON = 1e-5
OPSET = 18


class Writer:
    """Collects nodes and constants of a graph; every method returns the name of what it adds.

    Parameters
    ----------
    dtype
        float32 or float16. Norms of half-precision models are computed in single precision, as exporters have it.
    opset
        Before 18, ReduceMean has its axes as an attribute.
    """

    def __init__(self, dtype: str = "float32", opset: int = OPSET, seed: int = 0) -> None:
        self.dtype = np.dtype(dtype)
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(seed)

    def node(self, op: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Add a node."""
        name = name or f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def constant(self, value: Any, dtype: Any = None) -> str:
        """Add a constant, of the model's type unless another is given."""
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(value, dtype or self.dtype), name))
        return name

    def weight(self, *shape: int) -> str:
        """Add a random matrix that keeps the variance of what it is multiplied with."""
        return self.constant(self._random.standard_normal(shape) / math.sqrt(shape[0]))

    def norm(self, x: str, columns: int, name: str, form: str = "pow_div", rank: int = 3) -> str:
        """Add a normalisation of the rows of ``x``, written as ``form`` says; its last node is called ``name``."""
        half = self.dtype == np.float16
        wide = self.node("Cast", x, to=TensorProto.FLOAT) if half else x
        number = self.constant if not half else lambda value: self.constant(value, np.float32)
        square = self.node("Mul", wide, wide) if form == "mul_div" else self.node("Pow", wide, number(2.0))
        axis = rank - 1 if form == "positive_axis" else -1
        if self.opset < 18:
            mean = self.node("ReduceMean", square, axes=[axis], keepdims=1)
        else:
            mean = self.node("ReduceMean", square, self.constant([axis], np.int64), keepdims=1)
        operands = [mean, number(EPSILON)]
        root = self.node("Sqrt", self.node("Add", *(operands[::-1] if form == "commuted" else operands)))
        if form in ("reciprocal", "commuted"):
            pair = [wide, self.node("Reciprocal", root)]
            normal = self.node("Mul", *(pair[::-1] if form == "commuted" else pair))
        elif form == "one_over":
            normal = self.node("Mul", wide, self.node("Div", number(1.0), root))
        else:
            normal = self.node("Div", wide, root)
        if half:
            normal = self.node("Cast", normal, to=TensorProto.FLOAT16)
        scale = self.constant(1 + 0.1 * self._random.standard_normal(columns))
        return self.node("Mul", *((scale, normal) if form == "commuted" else (normal, scale)), name=name)

    def model(
        self, output: str, shape: Sequence[int | str], outputs: Sequence[int | str] | None = None
    ) -> onnx.ModelProto:
        """Return the model with input ``x`` of ``shape`` and one output, ``y``."""
        kind = helper.np_dtype_to_tensor_dtype(self.dtype)
        self.nodes.append(helper.make_node("Identity", [output], ["y"], name="result"))
        graph = helper.make_graph(
            self.nodes,
            "llama_block",
            [helper.make_tensor_value_info("x", kind, shape)],
            [helper.make_tensor_value_info("y", kind, outputs or shape)],
            self.constants,
        )
        imports = [helper.make_opsetid("", self.opset)]
        model = helper.make_model(
            graph, opset_imports=imports, ir_version=9, producer_name="tactician example"
        )
        onnx.checker.check_model(model, full_check=True)
        return model


def llama_block(
    blocks: int = 2,
    width: int = 64,
    heads: int = 4,
    dtype: str = "float32",
    *,
    forms: Sequence[str] = ("pow_div",),
    opset: int = OPSET,
) -> onnx.ModelProto:
    """Return a model with ``2 * blocks + 1`` norms, written in ``forms`` in turn.

    Its input is ``x`` [batch, tokens, width], its output ``y`` is alike.
    """
    writer = Writer(dtype, opset)
    x = "x"
    for block in range(blocks):
        pre, post = (forms[(2 * block + i) % len(forms)] for i in range(2))
        h = writer.node(
            "Add", x, _attention(writer, writer.norm(x, width, f"norm_{block}_0", pre), width, heads)
        )
        x = writer.node(
            "Add", h, _feed_forward(writer, writer.norm(h, width, f"norm_{block}_1", post), width)
        )
    last = writer.norm(x, width, "norm_last", forms[2 * blocks % len(forms)])
    return writer.model(last, ["batch", "tokens", width])


def one_norm(
    form: str, dtype: str = "float32", opset: int = OPSET, shape: Sequence[int | str] = ("n", 5, 24)
) -> onnx.ModelProto:
    """Return a model that is one norm."""
    writer = Writer(dtype, opset)
    return writer.model(writer.norm("x", int(shape[-1]), "norm", form, len(shape)), shape)


def _attention(writer: Writer, x: str, width: int, heads: int) -> str:
    split = writer.constant([0, 0, heads, width // heads], np.int64)
    query, key, value = (
        writer.node(
            "Transpose",
            writer.node("Reshape", writer.node("MatMul", x, writer.weight(width, width)), split),
            perm=order,
        )
        for order in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])
    )
    scores = writer.node("Mul", writer.node("MatMul", query, key), writer.constant(math.sqrt(heads / width)))
    context = writer.node("MatMul", writer.node("Softmax", scores, axis=-1), value)
    merged = writer.node(
        "Reshape",
        writer.node("Transpose", context, perm=[0, 2, 1, 3]),
        writer.constant([0, 0, width], np.int64),
    )
    return writer.node("MatMul", merged, writer.weight(width, width))


def _feed_forward(writer: Writer, x: str, width: int) -> str:
    gate, up = (writer.node("MatMul", x, writer.weight(width, 2 * width)) for _ in range(2))
    silu = writer.node("Mul", gate, writer.node("Sigmoid", gate))
    return writer.node("MatMul", writer.node("Mul", silu, up), writer.weight(2 * width, width))
