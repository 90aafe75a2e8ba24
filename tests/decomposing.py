"""Calls that are decomposed for a target of few operators, and compared with what they were."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from tactician import passes
from tactician.config import BuilderConfig
from tactician.decompositions.rules import RULES
from tactician.decompositions.stage import Decomposer
from tactician.importer import import_model
from tactician.network import signatures
from tactician.signature import OpSignature

CONFIG = BuilderConfig()
Feeds = Mapping[str, Any]
Accepts = Callable[[OpSignature], bool]


def is_basic(call: OpSignature) -> bool:
    """Return whether a target of the operators that decompositions are made of would take the call."""
    if call.op_type == "BatchNormalization":
        return not call.attribute("training_mode", 0)
    if call.op_type in ("Pad", "Slice"):
        return call.known(1) is not None
    if call.op_type == "CumSum" or call.op_type.startswith("Reduce"):
        return len(call.inputs) < 2 or call.known(1) is not None
    return call.op_type not in RULES


def model(
    op_type: str,
    inputs: Feeds,
    constants: Feeds | None = None,
    outputs: int = 1,
    opset: int = 21,
    shape: Any = None,
    **attributes: Any,
) -> onnx.ModelProto:
    """Return a model of one node; ``None`` among the inputs is absent, ``shape`` that of the first output."""
    feeds = {**inputs, **(constants or {})}
    node = helper.make_node(
        op_type,
        ["" if v is None else k for k, v in feeds.items()],
        [f"y{i}" for i in range(outputs)],
        "it",
        **attributes,
    )
    values = [
        helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(np.asarray(v).dtype), np.shape(v))
        for k, v in inputs.items()
        if v is not None
    ]
    results = [helper.make_empty_tensor_value_info(name) for name in node.output]
    if shape is not None:
        results[0] = helper.make_tensor_value_info("y0", values[0].type.tensor_type.elem_type, shape)
    weights = [
        numpy_helper.from_array(np.asarray(v), k) for k, v in (constants or {}).items() if v is not None
    ]
    graph = helper.make_graph([node], "g", values, results, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def decomposed(proto: onnx.ModelProto, accepts: Accepts = is_basic) -> tuple[ir.Model, int]:
    """Return the network after the stage, and how many nodes were decomposed."""
    network = import_model(proto)
    passes.run(network, passes.pipeline(CONFIG))
    count = Decomposer(accepts, CONFIG, {}).run(network)
    if count:
        onnx.checker.check_model(ir.serde.serialize_model(network))
        assert all(accepts(call) for call in signatures(network).values())
    return network, count


def run_reference(proto: onnx.ModelProto, feeds: Feeds) -> list[Any]:
    """Run a model by ONNX's reference."""
    with np.errstate(all="ignore"):  # infinities in masks, and where what is computed is not chosen
        return list(ReferenceEvaluator(proto).run(None, _given(proto, feeds)))


def run_onnxruntime(proto: onnx.ModelProto, feeds: Feeds) -> list[Any]:
    """Run a model by ONNX Runtime, as it is written."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, _given(proto, feeds)))


def _given(proto: onnx.ModelProto, feeds: Feeds) -> dict[str, Any]:
    return {v.name: np.asarray(feeds[v.name]) for v in proto.graph.input}


def check(
    proto: onnx.ModelProto,
    feeds: Feeds,
    wanted: Any,
    run: Callable[..., list[Any]] = run_onnxruntime,
    rtol: float = 1e-5,
    atol: float = 1e-6,
) -> ir.Model:
    """Decompose the one node of ``proto``; hold its results against ``wanted``: arrays, or what runs models."""
    network, count = decomposed(proto)
    assert count == 1
    results = run(ir.serde.serialize_model(network), feeds)
    expected = wanted(proto, feeds) if callable(wanted) else wanted
    for got, want in zip(results, expected, strict=True):
        assert got.dtype == np.asarray(want).dtype
        np.testing.assert_allclose(got, want, rtol=rtol, atol=atol)
    return network
