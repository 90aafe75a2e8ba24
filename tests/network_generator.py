"""Random networks of what transformers are made of, in the spellings that exporters use, valid by construction."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper


class NetworkGenerator:
    """Adds nodes to one graph; values are [batch, rows, hidden] between the pieces.

    Parameters
    ----------
    seed
        Of sizes, pieces and weights.
    """

    def __init__(self, seed: int) -> None:
        self._choice, self._weights = random.Random(seed), np.random.default_rng(seed)
        self.batch, self.rows, self.heads = (
            self._choice.choice(sizes) for sizes in ((1, 2), (1, 4, 5), (1, 2, 3))
        )
        self.size = self._choice.choice((4, 8))
        self.hidden = self.heads * self.size
        self.shape = (self.batch, self.rows, self.hidden)
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, Any] = {}
        self._shapes: dict[str, tuple[int, ...]] = {"x": self.shape}

    def model(self) -> onnx.ModelProto:
        """Return a network of some pieces, with up to three of its values as outputs."""
        pieces: list[Callable[[str], Any]] = [
            self._linear, self._linear, self._sum, self._unary, self._norm, self._attention, self._attention, self._split,
            self._rms_norm, self._rotated, self._convolution,
        ]  # fmt: skip
        for _ in range(self._choice.randint(4, 16)):
            self._choice.choice(pieces)(self._any())
        made = [name for name in self._shapes if name != "x"]
        outputs = list(dict.fromkeys([made[-1], *self._choice.choices(made, k=self._choice.randint(0, 2))]))
        infos = {
            n: helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, self._shapes[n])
            for n in ["x", *outputs]
        }
        initializers = [numpy_helper.from_array(a, n) for n, a in self._constants.items()]
        graph = helper.make_graph(self._nodes, "g", [infos["x"]], [infos[o] for o in outputs], initializers)
        opset = helper.make_opsetid("", self._choice.choice((18, 20, 21)))
        model = helper.make_model(graph, opset_imports=[opset], ir_version=9)
        onnx.checker.check_model(model, full_check=True)
        return model

    def _any(self) -> str:
        return self._choice.choice([n for n, s in self._shapes.items() if s == self.shape])

    def _maybe(self, chance: float = 0.5) -> bool:
        return self._choice.random() < chance

    def _node(self, op: str, inputs: list[str], shape: tuple[int, ...], **attributes: Any) -> str:
        name = f"v{len(self._shapes)}"
        self._nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        self._shapes[name] = shape
        return name

    def _constant(self, array: Any) -> str:
        name = f"c{len(self._constants)}"
        self._constants[name] = np.asarray(array)
        return name

    def _weight(self, *shape: int) -> str:
        return self._constant(0.5 * self._weights.standard_normal(shape).astype(np.float32))

    def _number(self, value: float) -> str:
        return self._constant(np.float32(value))

    def _reshape(self, value: str, *shape: int) -> str:
        return self._node("Reshape", [value, self._constant(np.array(shape))], shape)

    def _linear(self, value: str) -> str:
        product = self._node("MatMul", [value, self._weight(self.hidden, self.hidden)], self.shape)
        if self._maybe(0.6):
            operands = [product, self._weight(self.hidden)]
            product = self._node("Add", operands if self._maybe() else operands[::-1], self.shape)
        return product

    def _sum(self, value: str) -> str:
        return self._node("Add", [value, self._any()], self.shape)

    def _unary(self, value: str) -> str:
        return self._node(self._choice.choice(("Relu", "Tanh", "Neg")), [value], self.shape)

    def _norm(self, value: str) -> str:
        return self._node(
            "LayerNormalization",
            [value, self._weight(self.hidden), self._weight(self.hidden)],
            self.shape,
            axis=-1,
        )

    def _rms_norm(self, value: str) -> str:
        row = (*self.shape[:2], 1)
        squares = self._node("Pow", [value, self._number(2)], self.shape)
        mean = self._node("ReduceMean", [squares, self._constant(np.array([-1]))], row)
        root = self._node("Sqrt", [self._node("Add", [mean, self._number(1e-5)], row)], row)
        return self._node(
            "Mul", [self._node("Div", [value, root], self.shape), self._weight(self.hidden)], self.shape
        )

    def _split(self, value: str) -> None:
        wide = (*self.shape[:2], 3 * self.hidden)
        product = self._node("MatMul", [value, self._weight(self.hidden, wide[2])], wide)
        if self._maybe():
            product = self._node("Add", [product, self._weight(wide[2])], wide)
        names = [f"v{len(self._shapes)}_{i}" for i in range(3)]
        self._nodes.append(helper.make_node("Split", [product], names, name=names[0], axis=-1, num_outputs=3))
        self._shapes.update(dict.fromkeys(names, self.shape))

    def _rotated(self, value: str) -> str:
        heads = self._of_heads(value, [0, 2, 1, 3])
        shape = self._shapes[heads]
        turned = self._node(
            "Neg", [self._node("Mul", [heads, self._weight(self.rows, self.size)], shape)], shape
        )
        return self._joined(turned)

    def _convolution(self, value: str) -> str:
        shape = (self.batch, self.hidden, self.rows)
        channels = self._node("Transpose", [value], shape, perm=[0, 2, 1])
        weights = [self._weight(self.hidden, self.hidden, 1), self._weight(self.hidden)]
        made = self._node("Relu", [self._node("Conv", [channels, *weights], shape)], shape)
        return self._node("Transpose", [made], self.shape, perm=[0, 2, 1])

    def _of_heads(self, value: str, order: list[int]) -> str:
        split = (self.batch, self.rows, self.heads, self.size)
        return self._node(
            "Transpose", [self._reshape(value, *split)], tuple(split[i] for i in order), perm=order
        )

    def _joined(self, value: str) -> str:
        split = (self.batch, self.rows, self.heads, self.size)
        return self._reshape(self._node("Transpose", [value], split, perm=[0, 2, 1, 3]), *self.shape)

    def _attention(self, value: str) -> str:
        heads = (self.batch, self.heads, self.rows, self.size)
        scores = (*heads[:3], self.rows)
        q, v = self._of_heads(value, [0, 2, 1, 3]), self._of_heads(self._any(), [0, 2, 1, 3])
        if self._maybe():
            k = self._of_heads(self._any(), [0, 2, 3, 1])
        else:
            k = self._of_heads(self._any(), [0, 2, 1, 3])
            k = self._node("Transpose", [k], (*heads[:2], self.size, self.rows), perm=[0, 1, 3, 2])
        if self._maybe(0.4):
            q = self._node("Mul", [q, self._number(0.5)], heads)
        s = self._node("MatMul", [q, k], scores)
        if self._maybe():
            s = self._node("Div", [s, self._number(2)], scores)
        if self._maybe(0.4):
            later = np.where(np.tril(np.ones((self.rows, self.rows))), 0, -np.inf).astype(np.float32)
            s = self._node("Add", [s, self._constant(later)], scores)
        made = self._node("MatMul", [self._node("Softmax", [s], scores, axis=-1), v], heads)
        if self._maybe(0.6):
            return self._joined(made)
        split = (self.batch, self.rows, self.heads, self.size)
        flat = (self.batch * self.rows, self.hidden)
        rows = self._reshape(self._node("Transpose", [made], split, perm=[0, 2, 1, 3]), *flat)
        rows = self._node(
            "Gemm", [rows, self._weight(self.hidden, self.hidden), self._weight(self.hidden)], flat
        )
        return self._reshape(rows, *self.shape)
