"""Measures BlasScan beside ONNX Runtime's CumSum and NumPy's: the table of the README.

python examples/tactician-scan/measure.py
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import numpy as np
import onnxruntime
from onnx import TensorProto, helper
from tactician import OpSignature, TensorType
from tactician.signature import make_constant
from tactician_scan import CUM_SUM, BlasScan

SHAPES = ((1, 4096), (1, 50257), (32, 16000), (100, 64000))
ROUNDS = 15


def main() -> None:
    print(
        f"onnxruntime {onnxruntime.__version__}, numpy {np.__version__}, {len(os.sched_getaffinity(0))} cores"
    )
    print("| rows × columns | ONNX Runtime | NumPy | blas_scan, block 32 | error: ONNX Runtime | blas_scan |")
    print("|---|---|---|---|---|---|")
    for shape in SHAPES:
        x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        results = [np.empty_like(x) for _ in range(3)]
        makers = (onnxruntime_call, numpy_call, blas_scan_call)
        seconds = race(
            [make(x, y) for make, y in zip(makers, results, strict=True)], calls=max(2, 2_000_000 // x.size)
        )
        times = " | ".join(f"{s * 1e6:.0f} us" for s in seconds)
        print(
            f"| {shape[0]} × {shape[1]} | {times} | {error(results[0], x):.0e} | {error(results[2], x):.0e} |"
        )


def race(calls_of: list[Callable[[], object]], calls: int) -> list[float]:
    """Return the median seconds of each, taken in turns."""
    seconds = np.empty((ROUNDS, len(calls_of)))
    for i in range(ROUNDS):
        for j, call in enumerate(calls_of):
            call()
            start = time.perf_counter()
            for _ in range(calls):
                call()
            seconds[i, j] = (time.perf_counter() - start) / calls
    return [float(s) for s in np.median(seconds, axis=0)]


def onnxruntime_call(x: np.ndarray, y: np.ndarray) -> Callable[[], object]:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("CumSum", ["x", "axis"], ["y"])],
        "cumsum",
        [value("x", TensorProto.FLOAT, x.shape)],
        [value("y", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor("axis", TensorProto.INT64, [], [-1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)
    binding = session.io_binding()
    binding.bind_cpu_input("x", x)
    binding.bind_output("y", "cpu", 0, np.float32, y.shape, y.ctypes.data)
    return lambda: session.run_with_iobinding(binding)


def numpy_call(x: np.ndarray, y: np.ndarray) -> Callable[[], object]:
    return lambda: np.add.accumulate(x, axis=-1, out=y)


def blas_scan_call(x: np.ndarray, y: np.ndarray) -> Callable[[], object]:
    kind, axis = TensorType("float32", x.shape), np.array(-1)
    types = (kind, TensorType("int64", ()))
    signature = OpSignature(CUM_SUM, 14, (), types, (kind,), (None, make_constant(axis)))
    tactic = BlasScan(block=32)
    workspace = np.empty(tactic.workspace(signature, None), np.uint8)
    launch = tactic.prepare(signature, None)
    return lambda: launch([x, axis], [y], workspace, None)


def error(y: np.ndarray, x: np.ndarray) -> float:
    """Return ‖y − exact‖ / ‖exact‖."""
    exact = np.cumsum(x.astype(np.float64), axis=-1)
    return float(np.linalg.norm(y - exact) / np.linalg.norm(exact))


if __name__ == "__main__":
    main()
