"""The copies of the tensor memory accelerator in NumPy, and channels-last convolutions by ONNX's evaluator."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx.reference
from conv_nhwc_cases import ConvCase, signature_of
from tactician.builtin_kernels.cuda.conv_problem import ConvProblem
from tactician.builtin_kernels.cuda.conv_wgmma import nhwc_problem
from tactician.builtin_kernels.cuda.im2col import Im2col
from tactician.builtin_kernels.nhwc import infer_conv
from tactician.signature import OpSignature

Array = np.ndarray[Any, Any]


def im2col(
    x: Array, walk: Im2col, start: tuple[int, ...], offsets: tuple[int, int], extent: tuple[int, int]
) -> Array:
    """Return the ``extent`` [pixels, channels] that a copy of TMA's im2col mode brings, as the PTX manual has it.

    ``start`` is (channel, w, h, image), ``offsets`` are (along w, along h).
    """
    images, height, width = x.shape[:3]
    pixels, columns = extent
    c, w, h, n = start
    (low_h, low_w), (high_h, high_w) = walk.lower, walk.upper
    rows = np.zeros((pixels, columns), x.dtype)
    for row in rows:
        at_w, at_h = w + offsets[0], h + offsets[1]
        if 0 <= n < images and 0 <= at_h < height and 0 <= at_w < width:
            found = x[n, at_h, at_w, c : c + columns]
            row[: len(found)] = found
        w += walk.strides[1]
        if w > width - 1 + high_w:
            w, h = low_w, h + walk.strides[0]
        if h > height - 1 + high_h:
            h, n = low_h, n + 1
    return rows


def tiled(tensor: Array, at: tuple[int, ...], box: tuple[int, ...]) -> Array:
    """Return the box of a tiled copy: ``at`` has the innermost dimension first; zero outside."""
    result = np.zeros(box)
    part = tensor[tuple(slice(a, a + b) for a, b in zip(at[::-1], box, strict=True))]
    result[tuple(slice(0, e) for e in part.shape)] = part
    return result


def standard(case: ConvCase, inputs: list[Array]) -> Array:
    """Return what ONNX's evaluator makes of a case in float64, channels last."""
    names = ["x", "w", "b"][: len(inputs)]
    node = onnx.helper.make_node("Conv", names, ["y"], **case.attributes)
    values = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.DOUBLE, None) for n in (*names, "y")]
    graph = onnx.helper.make_graph([node], "g", values[:-1], values[-1:])
    moved = [np.moveaxis(a, -1, 1) if a.ndim > 1 else a for a in inputs]
    feeds = {n: a.astype(np.float64) for n, a in zip(names, moved, strict=True)}
    (y,) = onnx.reference.ReferenceEvaluator(onnx.helper.make_model(graph)).run(None, feeds)
    return np.moveaxis(np.asarray(y), 1, -1)


def problem_of(case: ConvCase) -> tuple[OpSignature, ConvProblem]:
    """Return the signature and the problem of a case."""
    (out,) = infer_conv(signature_of(case, (1, 1, 1, 1)))
    signature = signature_of(case, out.dims)
    problem = nhwc_problem(signature)
    assert isinstance(problem, ConvProblem), problem
    return signature, problem
