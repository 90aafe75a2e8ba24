"""Calls that the tests make: signatures of MatMul and Gemm without values."""

from __future__ import annotations

import numpy as np
from tactician import OpSignature, TensorType

SHAPES = {
    "projection": ("MatMul", (1, 128, 768), (768, 768)),
    "widening": ("MatMul", (1, 128, 768), (768, 3072)),
    "narrowing": ("MatMul", (1, 128, 3072), (3072, 768)),
    "scores": ("MatMul", (1, 12, 128, 64), (1, 12, 64, 128)),
    "context": ("MatMul", (1, 12, 128, 128), (1, 12, 128, 64)),
    "classifier": ("Gemm", (8, 2048), (1000, 2048), (1000,), {"transB": 1}),
    "square": ("MatMul", (4096, 4096), (4096, 4096)),
    "odd": ("Gemm", (77, 51), (51, 33), (77, 1), {"alpha": 0.5, "beta": -2.0}),
    "vector": ("MatMul", (300,), (300, 5)),
}
"""The products of BERT-base at sequence 128, and others: operator, shapes, attributes."""


def call(op, *shapes, dtype="float16", version=13):
    """Return the signature of ``op``; a dict among the shapes holds attributes."""
    attributes = [s for s in shapes if isinstance(s, dict)]
    types = [TensorType(dtype, s) for s in shapes if not isinstance(s, dict)]
    items = tuple(sorted(attributes[0].items())) if attributes else ()
    output = TensorType(dtype, result_shape(op, types, dict(items)))
    return OpSignature(f"ai.onnx::{op}", version, items, tuple(types), (output,), (None,) * len(types))


def result_shape(op, types, attributes):
    """Return the shape of the product, or () where there is none or it is not known."""
    if not all(t.is_static for t in types):
        return None
    a, b = (t.dims for t in types[:2])
    if op == "Gemm":
        return (a[bool(attributes.get("transA"))], b[not attributes.get("transB")])
    try:
        outer = np.broadcast_shapes(a[:-2], b[:-2])
    except ValueError:
        return ()
    return (*outer, *a[-2:-1], *(b[-1:] if len(b) > 1 else ()))


def transposed(array, attributes, name):
    return array.T if attributes.get(name) else array


def exact(signature, inputs):
    """Return the result in float64."""
    a, b, *c = (x.astype(np.float64) for x in inputs)
    if signature.op_type == "MatMul":
        return a @ b
    attributes = dict(signature.attributes)
    product = transposed(a, attributes, "transA") @ transposed(b, attributes, "transB")
    product *= np.float32(attributes.get("alpha", 1.0))
    return product + np.float32(attributes.get("beta", 1.0)) * c[0] if c else product
