"""Whole models for tests and benchmarks, made without a training framework: known shapes, random weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 20
_TYPES = {
    "float32": (TensorProto.FLOAT, np.dtype(np.float32)),
    "float16": (TensorProto.FLOAT16, np.dtype(np.float16)),
    "bfloat16": (TensorProto.BFLOAT16, np.dtype(ml_dtypes.bfloat16)),
    "float64": (TensorProto.DOUBLE, np.dtype(np.float64)),
}


class GraphWriter:
    """Collects the nodes and weights of one graph; every method returns the name of what it adds."""

    def __init__(self, dtype: str, seed: int = 0) -> None:
        self.elem_type, self.dtype = _TYPES[dtype]
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(seed)

    def node(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        output = f"{op.lower()}_{len(self.nodes)}_output"
        name = f"/{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output], name=name, **attributes))
        return output

    def random(self, *shape: int, scale: float = 1.0, shift: float = 0.0) -> str:
        return self.constant((self._random.standard_normal(shape) * scale + shift).astype(self.dtype))

    def constant(self, array: np.ndarray[Any, Any]) -> str:
        name = f"weight_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def scalar(self, value: float) -> str:
        return self.constant(np.array(value, self.dtype))

    def model(
        self, name: str, inputs: dict[str, tuple[int, ...]], outputs: dict[str, tuple[int, ...]]
    ) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            name,
            [helper.make_tensor_value_info(n, self.elem_type, s) for n, s in inputs.items()],
            [helper.make_tensor_value_info(n, self.elem_type, s) for n, s in outputs.items()],
            self.weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
        onnx.checker.check_model(model)
        return model


def resnet50(
    batch: int = 1,
    dtype: str = "float32",
    *,
    image: int = 224,
    width: int = 64,
    blocks: Sequence[int] = (3, 4, 6, 3),
    classes: int = 1000,
    batch_norm: bool = False,
    seed: int = 0,
) -> onnx.ModelProto:
    """Return ResNet-50 v1.5: input ``image`` [batch, 3, image, image], output ``logits`` [batch, classes].

    ``batch_norm`` keeps a BatchNormalization after each convolution, as before folding. Smaller ``image``,
    ``width`` and ``blocks`` make a quick model of the same structure.
    """
    writer = GraphWriter(dtype, seed)

    def conv(x: str, channels: int, filters: int, kernel: int, stride: int, gain: float) -> str:
        scale = gain / math.sqrt(channels * kernel * kernel)
        weights = [writer.random(filters, channels, kernel, kernel, scale=scale)]
        if not batch_norm:
            weights.append(writer.random(filters, scale=0.1))
        pads, strides = [kernel // 2] * 4, [stride] * 2
        y = writer.node(
            "Conv",
            [x, *weights],
            kernel_shape=[kernel] * 2,
            pads=pads,
            strides=strides,
            dilations=[1, 1],
            group=1,
        )
        return normalize(y, filters) if batch_norm else y

    def normalize(x: str, filters: int) -> str:
        scale, shift = writer.random(filters, scale=0.1, shift=1.0), writer.random(filters, scale=0.1)
        variance = writer.constant(
            np.random.default_rng(seed).uniform(0.5, 2.0, filters).astype(writer.dtype)
        )
        return writer.node(
            "BatchNormalization", [x, scale, shift, writer.random(filters, scale=0.1), variance]
        )

    x = writer.node("Relu", [conv("image", 3, width, 7, 2, math.sqrt(2))])
    x = writer.node("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    channels = width
    for stage, count in enumerate(blocks):
        middle = width << stage
        for block in range(count):
            stride = 2 if stage and not block else 1
            y = writer.node("Relu", [conv(x, channels, middle, 1, 1, math.sqrt(2))])
            y = writer.node("Relu", [conv(y, middle, middle, 3, stride, math.sqrt(2))])
            # a small last convolution keeps the sum over the blocks from growing, as trained networks do
            y = conv(y, middle, 4 * middle, 1, 1, 0.5)
            shortcut = x if block else conv(x, channels, 4 * middle, 1, stride, 1.0)
            x = writer.node("Relu", [writer.node("Add", [y, shortcut])])
            channels = 4 * middle
    x = writer.node("Flatten", [writer.node("GlobalAveragePool", [x])], axis=1)
    weight, bias = (
        writer.random(classes, channels, scale=1 / math.sqrt(channels)),
        writer.random(classes, scale=0.1),
    )
    logits = writer.node("Gemm", [x, weight, bias], transB=1)
    writer.nodes[-1].output[0] = "logits"
    assert logits
    return writer.model("resnet50", {"image": (batch, 3, image, image)}, {"logits": (batch, classes)})


def bert_encoder(
    layers: int = 12,
    hidden: int = 768,
    heads: int = 12,
    seq: int = 128,
    batch: int = 1,
    dtype: str = "float32",
    *,
    seed: int = 0,
) -> onnx.ModelProto:
    """Return a BERT encoder, post-norm: ``hidden_states`` [batch, seq, hidden] to ``output``, alike.

    ``mask`` [batch, 1, 1, seq] is added to the attention scores. Nodes are as torch exports them: MatMul and
    Add, Reshape and Transpose, Softmax, LayerNormalization, and Gelu written out with Erf.
    """
    writer = GraphWriter(dtype, seed)

    def linear(x: str, size_in: int, size_out: int) -> str:
        product = writer.node("MatMul", [x, writer.random(size_in, size_out, scale=1 / math.sqrt(size_in))])
        return writer.node("Add", [product, writer.random(size_out, scale=0.1)])

    def normalize(x: str) -> str:
        scale, shift = writer.random(hidden, scale=0.1, shift=1.0), writer.random(hidden, scale=0.1)
        return writer.node("LayerNormalization", [x, scale, shift], axis=-1, epsilon=1e-12)

    def split_heads(x: str, order: list[int]) -> str:
        return writer.node("Transpose", [writer.node("Reshape", [x, split])], perm=order)

    def attention(x: str) -> str:
        query, key, value = (linear(x, hidden, hidden) for _ in range(3))
        scores = writer.node("MatMul", [split_heads(query, [0, 2, 1, 3]), split_heads(key, [0, 2, 3, 1])])
        scores = writer.node("Add", [writer.node("Div", [scores, root]), "mask"])
        context = writer.node(
            "MatMul", [writer.node("Softmax", [scores], axis=-1), split_heads(value, [0, 2, 1, 3])]
        )
        merged = writer.node("Reshape", [writer.node("Transpose", [context], perm=[0, 2, 1, 3]), merge])
        return linear(merged, hidden, hidden)

    def gelu(x: str) -> str:
        inner = writer.node("Add", [writer.node("Erf", [writer.node("Div", [x, root_two])]), one])
        return writer.node("Mul", [writer.node("Mul", [x, inner]), half])

    split = writer.constant(np.array([batch, seq, heads, hidden // heads], np.int64))
    merge = writer.constant(np.array([batch, seq, hidden], np.int64))
    root, root_two = writer.scalar(math.sqrt(hidden // heads)), writer.scalar(math.sqrt(2))
    one, half = writer.scalar(1.0), writer.scalar(0.5)
    x = "hidden_states"
    for _ in range(layers):
        x = normalize(writer.node("Add", [x, attention(x)]))
        x = normalize(
            writer.node("Add", [x, linear(gelu(linear(x, hidden, 4 * hidden)), 4 * hidden, hidden)])
        )
    writer.nodes[-1].output[0] = "output"
    shape = (batch, seq, hidden)
    return writer.model("bert", {"hidden_states": shape, "mask": (batch, 1, 1, seq)}, {"output": shape})
