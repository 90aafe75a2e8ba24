"""A small transformer whose batch and rows are open, two optimization profiles for it, and what it should compute."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper
from tactician import OptimizationProfile, Session

Feeds = dict[str, Any]

NODES = """
    [q] q = MatMul (x, wq) [k] k = MatMul (x, wk) [v] v = MatMul (x, wv)
    [t] kt = Transpose <perm = [0, 2, 1]> (k) [a] a = MatMul (q, kt) [u] u = Unsqueeze (m, one) [am] am = Add (a, u)
    [p] p = Softmax <axis = -1> (am) [c] c = MatMul (p, v) [h] h = MatMul (c, w1) [r] r = Relu (h)
    [o] o = MatMul (r, w2) [e] e = Add (o, b)
    [s] s = Shape <start = 0, end = 1> (x) [j] j = Concat <axis = 0> (s, minus) [y] y = Reshape (e, j)
"""
SMALL = OptimizationProfile({"x": ((1, 1, 16), (2, 4, 16), (4, 8, 16)), "m": ((1, 1), (2, 4), (4, 8))})
LARGE = OptimizationProfile({"x": ((1, 6, 16), (3, 12, 16), (5, 24, 16)), "m": ((1, 6), (3, 12), (5, 24))})


def model(seed: int = 1) -> onnx.ModelProto:
    """Return the network: attention with a mask, two layers, and a reshape that follows the batch."""
    proto = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 20]> g (float[b, s, 16] x, float[b, s] m) => (float[b, n] y) {{ {NODES} }}'
    )
    rng = np.random.default_rng(seed)
    shapes = {"wq": (16, 16), "wk": (16, 16), "wv": (16, 16), "w1": (16, 32), "w2": (32, 8), "b": (8,)}
    arrays: dict[str, Any] = {n: rng.standard_normal(s).astype(np.float32) / 4 for n, s in shapes.items()}
    arrays |= {"one": np.array([1]), "minus": np.array([-1])}
    proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in arrays.items())
    return proto


def feeds(batch: int, rows: int, seed: int = 0) -> Feeds:
    """Return random inputs."""
    rng = np.random.default_rng([batch, rows, seed])
    shapes = {"x": (batch, rows, 16), "m": (batch, rows)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def expected(values: Feeds, proto: onnx.ModelProto | None = None) -> Any:
    """Return what ONNX Runtime computes."""
    runtime = onnxruntime.InferenceSession(
        (proto or model()).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return runtime.run(None, values)[0]


def is_right(
    session: Session, values: Feeds, proto: onnx.ModelProto | None = None, tolerance: float = 1e-5
) -> bool:
    """Return whether a session computes what ONNX Runtime does, up to a relative error."""
    got, wanted = session.run(values)["y"], expected(values, proto)
    return bool(np.linalg.norm(got - wanted) <= tolerance * np.linalg.norm(wanted))
