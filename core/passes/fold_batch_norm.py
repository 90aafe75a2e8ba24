"""BatchNormalization after Conv, ConvTranspose or Gemm with constant weights is folded into these."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

Array = np.ndarray[Any, Any]


class FoldBatchNorm(ir.passes.InPlacePass):
    """y = gamma * (w x + b - mean) / sqrt(variance + epsilon) + beta becomes w' x + b'.

    Weights are computed in double precision and rounded once to their own type. The folded node keeps its name.
    """

    name = "fold_batch_norm"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run on ``model`` in place."""
        folded = False
        for node in list(model.graph):
            if node.op_type == "BatchNormalization" and node.domain == "":
                folded |= _fold(node, model.graph)
        return ir.passes.PassResult(model, modified=folded)


def _fold(norm: ir.Node, graph: ir.Graph) -> bool:
    if not _is_inference(norm):
        return False
    middle = norm.inputs[0]
    linear = None if middle is None else middle.producer()
    if middle is None or linear is None or linear.graph is not graph or not _is_linear(linear):
        return False
    if len(middle.uses()) != 1 or middle.is_graph_output():
        return False
    parameters = [_constant(v) for v in (*norm.inputs[1:5], *linear.inputs[1:3])]
    if len(parameters) < 5 or any(p is None for p in parameters):
        return False
    gamma, beta, mean, variance, weight, *rest = [_wide(p) for p in parameters if p is not None]
    epsilon = norm.attributes["epsilon"].as_float() if "epsilon" in norm.attributes else 1e-5
    scale = gamma / np.sqrt(variance + epsilon)
    scaled = _scale_weight(linear, weight, scale)
    if scaled is None or not np.isfinite(scale).all():
        return False
    bias = _number(linear, "beta", 1.0) * rest[0] if rest else np.zeros_like(mean)
    if bias.size not in (1, mean.size):
        return False  # a Gemm's bias may differ from row to row
    shifted = np.broadcast_to(bias.reshape(-1), mean.shape) - mean
    _replace(linear, norm, scaled, shifted * scale + beta, graph)
    return True


def _is_inference(norm: ir.Node) -> bool:
    training = norm.attributes.get("training_mode")
    extra = any(v.uses() or v.is_graph_output() for v in norm.outputs[1:])
    return (training is None or training.as_int() == 0) and not extra


def _is_linear(node: ir.Node) -> bool:
    if node.domain != "" or node.op_type not in ("Conv", "ConvTranspose", "Gemm") or len(node.outputs) != 1:
        return False
    if len(node.inputs) > 2 and node.inputs[2] is None:
        return False
    kind = node.inputs[1].dtype if len(node.inputs) > 1 and node.inputs[1] is not None else None
    return kind is not None and kind.is_floating_point()


def _scale_weight(node: ir.Node, weight: Array, scale: Array) -> Array | None:
    """Return ``weight`` with each output channel multiplied by its ``scale``; None where they do not fit."""
    match node.op_type:
        case "Conv":
            grouped = weight[None]
            axis = 1
        case "ConvTranspose":  # [in channels, out channels of one group, kernel …]
            groups = int(_number(node, "group", 1))
            grouped = weight.reshape(groups, -1, *weight.shape[1:])
            scale = scale.reshape(groups, 1, -1) if scale.size == groups * weight.shape[1] else scale
            if scale.ndim != 3:
                return None
            return np.asarray(
                (grouped * scale.reshape(*scale.shape, *[1] * (weight.ndim - 2))).reshape(weight.shape)
            )
        case _:
            grouped = weight[None]
            axis = 1 if _number(node, "transB", 0) else 2
    if grouped.shape[axis] != scale.size:
        return None
    shape = [1] * grouped.ndim
    shape[axis] = -1
    return np.asarray((grouped * scale.reshape(shape))[0])


def _replace(linear: ir.Node, norm: ir.Node, weight: Array, bias: Array, graph: ir.Graph) -> None:
    source = linear.inputs[1]
    if source is None or source.dtype is None:
        raise ValueError("asked before")
    dtype = source.dtype
    stem = linear.outputs[0].name
    new = [
        _initializer(f"{stem}/{part}", array, dtype, graph)
        for part, array in (("weight", weight), ("bias", bias))
    ]
    linear.resize_inputs(3)
    linear.replace_input_with(1, new[0])
    linear.replace_input_with(2, new[1])
    linear.attributes.pop("beta", None)
    result, output = linear.outputs[0], norm.outputs[0]
    for i, value in enumerate(graph.outputs):
        if value is output:
            graph.outputs[i] = result
    name, shape = output.name, output.shape
    output.replace_all_uses_with(result)
    graph.remove(norm, safe=True)
    output.name = f"{name}/folded"
    result.name = name
    result.shape = result.shape if shape is None else shape


def _initializer(name: str, array: Array, dtype: ir.DataType, graph: ir.Graph) -> ir.Value:
    while name in graph.initializers:
        name += "_"
    tensor = ir.Tensor(np.ascontiguousarray(array).astype(dtype.numpy()), dtype=dtype, name=name)
    value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(tensor.shape), const_value=tensor)
    graph.register_initializer(value)
    return value


def _constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    return None if value is None or value.is_graph_input() else value.const_value


def _wide(tensor: ir.TensorProtocol) -> Array:
    return np.asarray(tensor.numpy()).astype(np.float64)


def _number(node: ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    return default if attribute is None else float(attribute.value)
