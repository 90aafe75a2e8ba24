"""The kernels of the example plugins are right on a GPU, every candidate, and serve whole models."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
import tactician
from packages import ROOT
from signatures import make_signature
from tactician.config import BuilderConfig
from tactician.plugins.manager import load_plugins
from tactician.tactics.registry import PluginRef, Registry
from tactician.testing import fused_signatures

pytestmark = pytest.mark.gpu

EXAMPLES = ROOT / "examples"
SCAN, RMS_NORM = EXAMPLES / "tactician-scan", EXAMPLES / "tactician-rms-norm"
SCAN_CONFIG = {"target": "cuda", "plugins": (str(SCAN / "tactician_scan.py"),)}
HALF = (np.float16, ml_dtypes.bfloat16)


@pytest.fixture
def check_example(
    check_with: Callable[[Registry], Any], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], Any]]:
    """Return a function that takes the module of an example and returns one that checks all of its candidates."""

    def make(distribution: str) -> Any:
        monkeypatch.syspath_prepend(str(EXAMPLES / distribution))
        module = importlib.import_module(distribution.replace("-", "_"))
        registry = Registry()
        for tactic in module.tactics():
            registry.add(PluginRef(distribution, "0", "0"), tactic)
        return check_with(registry)

    yield make
    for name in [
        n for n in sys.modules if n.startswith(("tactician_pointwise", "tactician_triton", "tactician_scan"))
    ]:
        del sys.modules[name]


@pytest.mark.parametrize("reverse", [0, 1])
@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("shape", [(1,), (1, 31), (3, 5, 257), (2, 1024), (7, 4097), (1, 100_003)], ids=str)
def test_scan(check_example, shape, exclusive, reverse):
    inputs = [np.random.default_rng(0).standard_normal(shape).astype(np.float32), np.array(len(shape) - 1)]
    attributes = {"exclusive": exclusive, "reverse": reverse}
    check_example("tactician-scan")(make_signature("CumSum", inputs, attributes, constants={1}), inputs)


def test_the_synthesizer_runs_with_it(monkeypatch):
    monkeypatch.syspath_prepend(str(SCAN))
    from synthesizer import exact, note, synthesizer

    inputs = note()
    shapes = {name: array.shape for name, array in inputs.items()}
    rules = (("phases", "tactician_scan.block_scan(threads=256, items=4)"),)
    config = BuilderConfig(**SCAN_CONFIG, shapes=shapes, tactic_rules=rules)
    engine = tactician.build(synthesizer(), config)
    sys.modules.pop("synthesizer")
    assert any(step.tactic == rules[0][1] and step.target == "cuda" for step in engine.plan.steps)
    audio = tactician.Session(engine, plugins=load_plugins(config)).run(inputs)["audio"]
    reference = exact(inputs)
    assert np.linalg.norm(audio - reference) <= 1e-3 * np.linalg.norm(reference)


CONVOLUTIONS = [
    # batch, channels, filters, height, width, stride
    (1, 64, 256, 56, 56, 1),
    (1, 1024, 256, 14, 14, 1),
    (1, 512, 2048, 7, 7, 1),
    (1, 2048, 512, 7, 7, 1),
    (1, 1024, 2048, 14, 14, 2),
    (3, 17, 33, 9, 5, 1),
    (2, 40, 24, 13, 7, 2),
    (1, 1, 1, 1, 1, 1),
    (2, 128, 64, 8, 8, 2),
]


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_pointwise_conv(check_example, case, dtype, bias):
    batch, channels, filters, height, width, stride = case
    rng = np.random.default_rng(1)
    inputs = [
        rng.standard_normal((batch, channels, height, width)),
        rng.standard_normal((filters, channels, 1, 1)) / np.sqrt(channels),
        rng.standard_normal(filters),
    ]
    inputs = [x.astype(dtype) for x in inputs[: 3 if bias else 2]]
    signature = make_signature("Conv", inputs, {"kernel_shape": [1, 1], "strides": [stride, stride]})
    ran = check_example("tactician-pointwise-conv")(signature, inputs)
    assert {name.partition("(")[0].rpartition(".")[2] for name in ran} >= (
        {"ffma_tiles"} if dtype == np.float32 else {"ffma_tiles", "mma_tiles"}
    )


def test_pointwise_conv_splits_in_both_ways(device, check_example):
    """The cases above hold what each kernel file is for: parts in a cluster, and parts that add_parts.cu adds up."""
    rng = np.random.default_rng(2)
    inputs = [rng.standard_normal(s).astype(np.float32) for s in ((1, 1024, 14, 14), (2048, 1024, 1, 1))]
    signature = make_signature("Conv", inputs, {"kernel_shape": [1, 1], "strides": [2, 2]})
    ran = check_example("tactician-pointwise-conv")(signature, inputs)
    split = [name for name in ran if "split_k=1," not in name]
    assert any("cluster=False" in name for name in split)
    assert any("cluster=True" in name for name in split) == (int(device.facts["sm"]) >= 90)


PRODUCTS = [
    ("MatMul", ((1, 128, 768), (768, 768)), {}),
    ("MatMul", ((1, 128, 3072), (3072, 768)), {}),
    ("MatMul", ((1, 12, 128, 64), (1, 12, 64, 128)), {}),
    ("MatMul", ((5, 33, 70), (70, 17)), {}),
    ("MatMul", ((300,), (300, 5)), {}),
    ("Gemm", ((8, 2048), (1000, 2048), (1000,)), {"transB": 1}),
    ("Gemm", ((51, 77), (33, 51), (77, 1)), {"alpha": 0.5, "beta": -2.0, "transA": 1, "transB": 1}),
]


@pytest.mark.parametrize("dtype", HALF, ids=["float16", "bfloat16"])
@pytest.mark.parametrize("case", PRODUCTS, ids=str)
def test_triton_gemm(check_example, case, dtype):
    pytest.importorskip("triton", reason="Triton is not installed")
    op, shapes, attributes = case
    rng = np.random.default_rng(3)
    inputs = [(rng.standard_normal(s) / np.sqrt(s[-1] if len(s) > 1 else 1)).astype(dtype) for s in shapes]
    check_example("tactician-triton")(make_signature(op, inputs, attributes), inputs)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(
    "shape", [(1, 1), (3, 5, 17), (2, 128, 768), (7, 4096), (1, 3, 4100), (1, 100_000)], ids=str
)
def test_rms_norm(check_with, shape, dtype):
    plugins = load_plugins(BuilderConfig(plugins=("builtin", str(RMS_NORM / "tactician_rms_norm.py"))))
    registry = Registry()
    for ref, tactic in plugins.registry:
        if ref.name == "tactician_rms_norm":
            registry.add(ref, tactic)
    rng = np.random.default_rng(4)
    inputs = [rng.standard_normal(s).astype(dtype) for s in (shape, shape[-1:])]
    check_with(registry)(make_signature("rms_norm::RmsNorm", inputs, {"epsilon": 1e-5}), inputs)


FOLLOWERS = [
    "y = Add (n, full)",
    "m = Mul (row, n) y = Add (m, full)",
    "a = Mul (n, full) b = Add (row, a) y = Mul (b, x)",
]


@pytest.mark.parametrize("dtype", ["float", "float16"])
@pytest.mark.parametrize("steps", FOLLOWERS)
@pytest.mark.parametrize("shape", [(3, 17), (128, 768), (2, 4096)], ids=str)
def test_rms_norm_with_what_follows(check_with, shape, steps, dtype):
    plugins = load_plugins(BuilderConfig(plugins=("builtin", str(RMS_NORM / "tactician_rms_norm.py"))))
    registry = Registry()
    for ref, tactic in plugins.registry:
        if ref.name == "tactician_rms_norm" and tactic.target == "cuda":
            registry.add(ref, tactic)
    (form,) = registry.forms("cuda")
    rows, columns = shape
    full = f"{dtype}[{rows}, {columns}]"
    model = onnx.parser.parse_model(f"""
        <ir_version: 9, opset_import: ["" : 18, "rms_norm" : 1]>
        g ({full} x, {dtype}[{columns}] scale, {full} full, {dtype}[1, {columns}] row) => ({full} y)
        {{ n = rms_norm.RmsNorm (x, scale) {steps} }}""")
    *_, signature = fused_signatures(model, form)
    rng = np.random.default_rng(5)
    inputs = [rng.standard_normal(t.dims).astype(t.numpy_dtype) for t in signature.inputs]
    assert check_with(registry)(signature, inputs)
