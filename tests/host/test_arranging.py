"""Quantised networks planned for a Hopper GPU that is not there: what fuses, with weights as real models store them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import numpy_helper
from tactician import passes
from tactician.arranging import arrange_quantised
from tactician.config import BuilderConfig
from tactician.importer import import_model
from tactician.network import signatures
from tactician.plugins.manager import Plugins, load_plugins
from tactician.regions import apply, propose

pytest.importorskip("cuda.core", reason="the compiler's package is not installed")

CONFIG = BuilderConfig(target="cuda", plugins=("builtin",))
M, K, N = 4, 64, 96


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return load_plugins(CONFIG)


def model(inputs: str, outputs: str, body: str, **weights: np.ndarray[Any, Any]) -> onnx.ModelProto:
    """Return a network; weights are constants by name."""
    text = f'<ir_version: 11, opset_import: ["": 23]> g ({inputs}) => ({outputs}) {{ {body} }}'
    made = onnx.parser.parse_model(text)
    made.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    return made


def quantised(*shape: int, dtype: Any = np.int8) -> np.ndarray[Any, Any]:
    """Return random weights."""
    return np.random.default_rng(3).integers(-100, 100, shape).astype(dtype)


SCALE = np.float32(0.02)
ENCODER = {
    "s": SCALE, "w1": quantised(K, N), "s1": np.linspace(0.01, 0.02, N, dtype=np.float32), "z1": np.zeros(N, np.int8),
    "w2": quantised(K, N), "s2": SCALE, "z": np.int8(0), "bias": quantised(N, dtype=np.int32), "sb": np.float32(4e-4),
}  # fmt: skip
TWO_PRODUCTS = """
    q = QuantizeLinear(a, s, z)  x = DequantizeLinear(q, s, z)
    d1 = DequantizeLinear<axis = 1>(w1, s1, z1)  p1 = MatMul(x, d1)  b1 = DequantizeLinear(bias, sb)  y1 = Add(p1, b1)
    d2 = DequantizeLinear(w2, s2, z)  p2 = MatMul(x, d2)  y2 = Relu(p2)"""


def planned(made: onnx.ModelProto, plugins: Plugins, device: Any, *, fuse: bool = True) -> Any:
    """Return the network as it is arranged, with the largest region that holds each product in its place."""
    network = import_model(made, {}, plugins.ops)
    passes.run(network, passes.pipeline(CONFIG))
    arrange_quantised(network, plugins, device, CONFIG, 0)
    regions = [r for r in propose(network, plugins.registry, device) if fuse and _product(r)]
    best = {_product(r): r for r in sorted(regions, key=lambda r: len(r.nodes))}
    apply(network, best.values())
    return network


def _product(region: Any) -> str:
    return next((n.name for n in region.nodes if "MatMul" in n.op_type or n.op_type == "Gemm"), "")


def test_products_take_everything_in(plugins: Plugins, compile_device: Callable[[str], Any]) -> None:
    made = model(
        f"float[2, {M}, {K}] a", f"float[2, {M}, {N}] y1, float[2, {M}, {N}] y2", TWO_PRODUCTS, **ENCODER
    )
    network = planned(made, plugins, compile_device("sm_90a"))
    calls = [str(call) for call in signatures(network).values()]
    left = sorted(call.partition("(")[0] for call in calls)
    # two fused calls, whose names of fused functions end in hashes, and what quantises their operand once
    assert len(left) == 3, calls
    assert left[0] == "QuantizeLinear"
    products = [node for node in network.graph if node.domain == "tactician.fused"]
    kinds = [[n.op_type for n in network.functions[p.op_identifier()]] for p in products]
    assert [sorted(k) for k in kinds] == [
        ["Add", "DequantizeLinear", "DequantizeLinear", "MatMul", "Transpose"],
        ["DequantizeLinear", "DequantizeLinear", "MatMul", "Relu", "Transpose"],
    ]
    stored = {
        v.name: v.shape.numpy() for v in network.graph.initializers.values() if v.shape and len(v.shape) == 2
    }
    assert set(stored.values()) == {(N, K)}


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("fuse", [False, True])
def test_results_are_the_same(
    plugins: Plugins, compile_device: Callable[[str], Any], arch: str, fuse: bool
) -> None:
    made = model(
        f"float[2, {M}, {K}] a", f"float[2, {M}, {N}] y1, float[2, {M}, {N}] y2", TWO_PRODUCTS, **ENCODER
    )
    network = planned(made, plugins, compile_device(arch), fuse=fuse)
    a = np.random.default_rng(1).standard_normal((2, M, K)).astype(np.float32)
    feeds = {"a": a}
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    wanted, found = (
        onnxruntime.InferenceSession(m.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(
            None, feeds
        )
        for m in (made, ir.serde.serialize_model(network))
    )
    for mine, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)


def test_what_no_kernel_takes_stays_as_it_is(plugins: Plugins, compile_device: Callable[[str], Any]) -> None:
    made = model(f"float[{M}, {K}] a", f"float[{M}, {N}] y1, float[{M}, {N}] y2", TWO_PRODUCTS, **ENCODER)
    network = planned(made, plugins, compile_device("sm_80"), fuse=False)
    kinds = sorted(node.op_type for node in network.graph)
    assert kinds.count("DequantizeLinear") == 3, kinds
    assert "Transpose" not in kinds
    assert network.graph.initializers["w1"].shape == (K, N)


def test_weights_with_scales_along_k_are_not_turned(
    plugins: Plugins, compile_device: Callable[[str], Any]
) -> None:
    body = "x = DequantizeLinear(q, s)  d = DequantizeLinear<axis = 0>(w, sk)  y = MatMul(x, d)"
    weights = {"s": SCALE, "w": quantised(K, N), "sk": np.full(K, SCALE)}
    network = planned(
        model(f"int8[{M}, {K}] q", f"float[{M}, {N}] y", body, **weights), plugins, compile_device("sm_90a")
    )
    assert [node.op_type for node in network.graph] == ["DequantizeLinear", "DequantizeLinear", "MatMul"]


@pytest.mark.parametrize("body", [
    "y = MatMulInteger(q, w, z, z)",
    "x = DequantizeLinear(q, s, z)  d = DequantizeLinear(w, s, z)  y = Gemm(x, d)",
])  # fmt: skip
def test_other_products_are_turned_too(
    plugins: Plugins, compile_device: Callable[[str], Any], body: str
) -> None:
    kind = "int32" if "Integer" in body else "float"
    weights = {"w": quantised(K, N), "z": np.int8(0)} | ({} if kind == "int32" else {"s": SCALE})
    made = model(f"int8[{M}, {K}] q", f"{kind}[{M}, {N}] y", body, **weights)
    (node,) = planned(made, plugins, compile_device("sm_90a")).graph
    assert node.domain == "tactician.fused"
