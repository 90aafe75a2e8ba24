"""Writes docs/gpu-coverage.md: ONNX's node tests planned for a Hopper GPU, and which operators have no kernel in which.

    python docs/make_gpu_coverage.py [--processes N]

Nothing runs: each test's network is prepared as a build prepares it, and every node is asked for a kernel on a GPU that is
not there.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "gpu-coverage.md"
ARCHITECTURE = "sm_90a"
MOST_NAMED = 6
"""Tests that are named for an operator."""

# The operators that TensorRT's parser lists as supported (onnx-tensorrt, docs/operators.md).
TENSORRT = frozenset({
    "Abs", "Acos", "Acosh", "Add", "And", "ArgMax", "ArgMin", "Asin", "Asinh", "Atan", "Atanh", "AveragePool",
    "BatchNormalization", "Cast", "CastLike", "Ceil", "Celu", "Clip", "Concat", "Constant", "ConstantOfShape",
    "Conv", "ConvTranspose", "Cos", "Cosh", "CumSum", "DeformConv", "DepthToSpace", "DequantizeLinear", "Div",
    "Dropout", "Einsum", "Elu", "Equal", "Erf", "Exp", "Expand", "EyeLike", "Flatten", "Floor", "GRU", "Gather",
    "GatherElements", "GatherND", "Gelu", "Gemm", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "Greater",
    "GreaterOrEqual", "GridSample", "GroupNormalization", "HardSigmoid", "HardSwish", "Hardmax", "Identity", "If",
    "ImageScaler", "InstanceNormalization", "IsInf", "IsNaN", "LRN", "LSTM", "LayerNormalization", "LeakyRelu",
    "Less", "LessOrEqual", "Log", "LogSoftmax", "Loop", "LpNormalization", "LpPool", "MatMul", "Max", "MaxPool",
    "Mean", "MeanVarianceNormalization", "Min", "Mish", "Mod", "Mul", "Neg", "NonMaxSuppression", "NonZero", "Not",
    "OneHot", "Or", "PRelu", "Pad", "ParametricSoftplus", "Pow", "QuantizeLinear", "RNN", "RandomNormal",
    "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Range", "Reciprocal", "ReduceL1", "ReduceL2",
    "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum",
    "ReduceSumSquare", "Relu", "Reshape", "Resize", "ReverseSequence", "RoiAlign", "Round", "ScaledTanh", "Scan",
    "Scatter", "ScatterElements", "ScatterND", "Selu", "Shape", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Size",
    "Slice", "Softmax", "Softplus", "Softsign", "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tan",
    "Tanh", "ThresholdedRelu", "Tile", "TopK", "Transpose", "Trilu", "Unsqueeze", "Upsample", "Where", "Xor",
})  # fmt: skip


def planned(name: str) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Return a node test with its operators, and those of its prepared network that have no kernel."""
    from conformance import cases
    from tactician.config import BuilderConfig
    from tactician.importer import import_model
    from tactician.network import signatures
    from tactician.optimizing import optimise
    from tactician.views import view_nodes

    model = cases()[name].model()
    operators = tuple(sorted({node.op_type for node in model.graph.node}))
    config = BuilderConfig(target="cuda", plugins=("builtin",), without=("layouts", "merge_siblings", "fuse"))
    plugins, device = _environment()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            network = import_model(model, None, plugins.ops)
        except Exception as error:  # a model that can't be built on any target
            return name, operators, (type(error).__name__,)
        optimise(network, plugins, device, config, None, _nothing, lambda _: nullcontext())
    views = view_nodes(network, config)
    calls = {n: s for n, s in signatures(network).items() if n not in views}
    missing = {s.op_type for s in calls.values() if not plugins.registry.candidates(s, device)[0]}
    return name, operators, tuple(sorted(missing))


def page(found: Iterable[tuple[str, tuple[str, ...], tuple[str, ...]]]) -> str:
    """Return the page's text."""
    import onnx

    rows = list(found)
    known = [r for r in rows if set(r[1]) <= TENSORRT]
    counts = [(len(part), sum(not r[2] for r in part)) for part in (rows, known)]
    tests: Counter[str] = Counter()
    missing: dict[str, list[str]] = defaultdict(list)
    for name, operators, without in rows:
        tests.update(operators)
        for operator in without:
            missing[operator].append(name)
    lines = [
        "# What runs on the GPU",
        "",
        f"Made by `docs/make_gpu_coverage.py` with onnx {onnx.__version__}: every node test of ONNX's conformance suite, planned for "
        "compute",
        "capability 9.0 with the built-in plugin alone. A test counts where every node of its network has a kernel, or is a view; nothing",
        "runs. What has none runs on the CPU, with copies.",
        "",
        "| node tests | | every node has a kernel |",
        "|---|---|---|",
        f"| all | {counts[0][0]} | {counts[0][1]} ({100 * counts[0][1] / counts[0][0]:.1f} %) |",
        f"| on operators that TensorRT's parser knows | {counts[1][0]} | {counts[1][1]} ({100 * counts[1][1] / counts[1][0]:.1f} %) |",
        "",
        "## Without a kernel",
        "",
        "By operator of the prepared network. Where an operator has tests that pass too, the ones here differ in a type (8-bit and",
        "4-bit floats, strings, complex numbers), in an attribute, or in a shape that is known only at run time.",
        "",
        "| operator | tests without a kernel for it | of the tests that call it | TensorRT's parser knows it | among them |",
        "|---|---|---|---|---|",
    ]
    for operator, names in sorted(missing.items(), key=lambda item: (-len(item[1]), item[0])):
        shown = ", ".join(f"`{n}`" for n in names[:MOST_NAMED]) + (", …" if len(names) > MOST_NAMED else "")
        is_known = "yes" if operator in TENSORRT else ""
        lines.append(f"| {operator} | {len(names)} | {tests[operator] or ''} | {is_known} | {shown} |")
    return "\n".join(lines) + "\n"


def make_page(processes: int) -> str:
    """Plan all node tests and return the page's text."""
    sys.path.insert(0, str(ROOT / "tests"))
    from conformance import node_cases

    with ProcessPoolExecutor(processes, get_context("fork")) as pool:
        return page(pool.map(planned, node_cases(), chunksize=16))


@cache
def _environment() -> tuple[Any, Any]:
    from tactician.config import BuilderConfig
    from tactician.plugins.manager import load_plugins
    from tactician.testing import offline_device

    return load_plugins(BuilderConfig(plugins=("builtin",))), offline_device("cuda", ARCHITECTURE)


def _nothing(calls: Any, *rest: Any, **options: Any) -> dict[str, Any]:
    return {}


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--processes", type=int, default=2)
    PAGE.write_text(make_page(parser.parse_args().processes), encoding="utf-8")


if __name__ == "__main__":
    main()
