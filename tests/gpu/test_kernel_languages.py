"""Tactics in other languages than CUDA C++: torch, CuPy, Numba, shipped binaries and Triton compete and run in engines."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
import tactician
from onnx.reference import ReferenceEvaluator
from packages import ROOT
from signatures import make_signature
from tactician.errors import TacticError
from tactician.plugins.kernel_binary import KernelBinary
from tactician.plugins.kernel_source import KernelSource
from tactician.plugins.manager import load_plugins
from tactician.plugins.reference import reference_for
from tactician.tactics.admission import admit
from tactician.tactics.record import Outcome
from tactician.tactics.registry import PluginRef, Registry

# what other libraries warn of when they are imported or first used is not ours
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]

SHAPE = (64, 1023)
EXAMPLE = ROOT / "examples" / "tactician-triton"

HEAD = """
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tactician
from tactician import Tactic, hookimpl


@dataclass(frozen=True)
class Other(Tactic):
    op = "ai.onnx::{op}"
    target = "cuda"

    def decline(self, signature, device):
        return None if signature.inputs[0].dtype == "float32" else "float32 only"

    def prepare(self, signature, device):
        dims, size = signature.inputs[0].dims, signature.inputs[0].size
{prepare}
        return launch


@hookimpl
def tactics():
    return [Other]
"""

TORCH = """
        import torch

        # the first call loads code, which can't happen while a graph is captured
        torch.tanh(torch.zeros(dims, device="cuda"), out=torch.zeros(dims, device="cuda"))
        torch.cuda.synchronize()

        def launch(inputs, outputs, workspace, stream):
            with torch.cuda.stream(torch.cuda.ExternalStream(int(stream.handle))):
                torch.tanh(torch.from_dlpack(inputs[0]), out=torch.from_dlpack(outputs[0]))
"""

CUPY_ELEMENTWISE = """
        import cupy

        tanh = cupy.ElementwiseKernel("float32 x", "float32 y", "y = tanhf(x)", "other_tanh")
        tanh(cupy.zeros(dims, np.float32), cupy.zeros(dims, np.float32))
        cupy.cuda.runtime.deviceSynchronize()

        def launch(inputs, outputs, workspace, stream):
            with cupy.cuda.ExternalStream(int(stream.handle)):
                tanh(cupy.asarray(inputs[0]), cupy.asarray(outputs[0]))
"""

CUPY_RAW = """
        import cupy

        source = '''
        extern "C" __global__ void other_tanh(const float* x, float* y, int n) {{
            const int i = blockIdx.x * blockDim.x + threadIdx.x;
            if (i < n) y[i] = tanhf(x[i]);
        }}
        '''
        tanh = cupy.RawKernel(source, "other_tanh")
        arguments = (cupy.zeros(dims, np.float32), cupy.zeros(dims, np.float32), np.int32(size))
        tanh((-(-size // 256),), (256,), arguments)
        cupy.cuda.runtime.deviceSynchronize()

        def launch(inputs, outputs, workspace, stream):
            arguments = (cupy.asarray(inputs[0]), cupy.asarray(outputs[0]), np.int32(size))
            with cupy.cuda.ExternalStream(int(stream.handle)):
                tanh((-(-size // 256),), (256,), arguments)
"""

NUMBA = """
        import math

        if not hasattr(np, "row_stack"):  # numba-cuda asks for it while it compiles; NumPy 2.5 has it no more
            np.row_stack = np.vstack
        from numba import cuda

        @cuda.jit("void(float32[::1], float32[::1])")
        def tanh(x, y):
            i = cuda.grid(1)
            if i < x.size:
                y[i] = math.tanh(x[i])

        blocks = -(-size // 256)
        tanh[blocks, 256](cuda.device_array(size, np.float32), cuda.device_array(size, np.float32))
        cuda.synchronize()

        def launch(inputs, outputs, workspace, stream):
            x, y = (cuda.as_cuda_array(tensor).reshape(size) for tensor in (inputs[0], outputs[0]))
            tanh[blocks, 256, cuda.external_stream(int(stream.handle))](x, y)
"""

BINARY = """
        binary = tactician.KernelBinary.from_file(Path(__file__).with_name("{file}"), "other_tanh")
        kernel = device.compile(binary)

        def launch(inputs, outputs, workspace, stream):
            kernel.launch(stream, -(-size // 256), 256, inputs[0], outputs[0], np.int32(size))
"""
CUDA_SOURCE = """
extern "C" __global__ void other_tanh(const float* x, float* y, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = tanhf(x[i]);
}
"""

TRITON = """
        source = tactician.TritonSource(
            Path(__file__).with_name("triton_kernels.py"),
            "hard_swish",
            (("x", "*fp32"), ("y", "*fp32"), ("n", "i32"), ("alpha", "fp32"), ("beta", "fp32")),
            (("BLOCK", 1024),),
            num_warps=8,
        )
        kernel = device.compile(source)

        def launch(inputs, outputs, workspace, stream):
            scale = np.float32(1 / 6), np.float32(0.5)
            kernel.launch(stream, -(-size // 1024), inputs[0], outputs[0], np.int32(size), *scale)
"""
TRITON_KERNELS = """
import triton
import triton.language as tl


@triton.jit
def hard_swish(x, y, n, alpha, beta, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + i, mask=i < n, other=0.0)
    factor = tl.maximum(value * alpha + beta, 0.0, propagate_nan=tl.PropagateNan.ALL)
    factor = tl.minimum(factor, 1.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(y + i, value * factor, mask=i < n)
"""

RUN_ELSEWHERE = """
import json, sys

import numpy as np

sys.modules["triton"] = None  # whoever imports it fails
import cuda.core
import tactician

cuda.core.Program = cuda.core.Linker = None  # whoever compiles fails
engine, plugin, feeds = sys.argv[1:]
session = tactician.Session(engine, plugins=[plugin])
(output,) = session.run(dict(np.load(feeds))).values()
print(json.dumps(output.tolist()))
"""


@dataclass(frozen=True)
class Built:
    """An engine of one node, with what it was built from."""

    engine: tactician.Engine
    config: tactician.BuilderConfig
    plugin: Path
    model: onnx.ModelProto

    def feeds(self) -> dict[str, Any]:
        rng = np.random.default_rng(5)
        types = {i.name: i.type.tensor_type for i in self.model.graph.input}
        return {
            name: rng.standard_normal([d.dim_value for d in t.shape.dim]).astype(
                onnx.helper.tensor_dtype_to_np_dtype(t.elem_type)
            )
            for name, t in types.items()
        }

    def run(self) -> np.ndarray[Any, Any]:
        session = tactician.Session(self.engine, plugins=load_plugins(self.config))
        (first,) = session.run(self.feeds()).values()
        (second,) = session.run(self.feeds()).values()
        assert np.array_equal(first, second)
        return first

    def run_elsewhere(self, folder: Path) -> np.ndarray[Any, Any]:
        """Run the saved engine in a process that can neither compile nor import Triton."""
        self.engine.save(folder / "m.tactician")
        np.savez(folder / "feeds.npz", **self.feeds())
        files = [folder / "m.tactician", self.plugin, folder / "feeds.npz"]
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", RUN_ELSEWHERE, *map(str, files)],
            capture_output=True,
            text=True,
            env=os.environ,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return np.array(json.loads(done.stdout))

    def exact(self) -> np.ndarray[Any, Any]:
        (wanted,) = ReferenceEvaluator(self.model).run(None, self.feeds())
        return wanted.astype(np.float64)


def build(folder: Path, plugin: Path, node: str, tactic: str, values: Sequence[str]) -> Built:
    """Build a model of one node, called ``middle``, with this tactic; it has to have passed all checks."""
    inputs, output = values
    model = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 20]> g ({inputs}) => ({output}) {{ [middle] {node} }}'
    )
    config = tactician.BuilderConfig(
        target="cuda",
        plugins=("builtin", str(plugin)),
        timing_cache=folder / "timing.sqlite",
        tactic_rules=(("middle", tactic),),
    )
    engine = tactician.build(model, config)
    (decision,) = [d for d in engine.report.decisions if "middle" in d.nodes]
    own = [c for c in decision.candidates if c.plugin == plugin.stem and c.outcome is not Outcome.DECLINED]
    bad = [c for c in own if c.outcome in (Outcome.WRONG, Outcome.FAILED)]
    assert own and not bad, bad
    assert all(c.timing is not None and c.error is not None for c in own), own
    assert decision.chosen.startswith(f"{plugin.stem}.")
    (step,) = [s for s in engine.plan.steps if s.node == "middle"]
    assert (step.target, step.tactic) == ("cuda", decision.chosen)
    return Built(engine, config, plugin, model)


def build_with(folder: Path, prepare: str, op: str = "Tanh", **names: str) -> Built:
    plugin = folder / "other.py"
    plugin.write_text(HEAD.format(op=op, prepare=prepare.format(**names)))
    shape = "float[{}, {}]".format(*SHAPE)
    return build(folder, plugin, f"y = {op}(x)", "other.*", (f"{shape} x", f"{shape} y"))


def relative(got: Any, wanted: Any) -> float:
    return float(np.linalg.norm(np.asarray(got, np.float64) - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize(
    ("package", "prepare"),
    [("torch", TORCH), ("cupy", CUPY_ELEMENTWISE), ("cupy", CUPY_RAW), ("numba_cuda", NUMBA)],
    ids=["torch", "cupy elementwise", "cupy raw", "numba"],
)
def test_code_of_another_library_is_a_tactic(device: Any, tmp_path: Path, package: str, prepare: str) -> None:
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    if package == "numba_cuda":
        skip_unless_numba_works()
    built = build_with(tmp_path, prepare)
    assert relative(built.run(), built.exact()) < 1e-6


def skip_unless_numba_works() -> None:
    """Skip where Numba was made for another NumPy: it then fails while it is imported."""
    try:
        importlib.import_module("numba.cuda")
    except Exception as error:
        pytest.skip(f"numba.cuda can't be imported: {type(error).__name__}: {error}")


@pytest.mark.parametrize("form", ["cubin", "ptx", "fatbin"])
def test_a_shipped_binary_is_a_tactic(device: Any, tmp_path: Path, form: str) -> None:
    (tmp_path / f"tanh.{form}").write_bytes(binary_code(form, str(device.facts["arch"])))
    built = build_with(tmp_path, BINARY, file=f"tanh.{form}")
    # the plugin has cubin and fatbin; what was made of PTX is in the engine
    assert len(built.engine.artifacts) == (form == "ptx")
    assert relative(built.run(), built.exact()) < 1e-6
    assert relative(built.run_elsewhere(tmp_path), built.exact()) < 1e-6


def binary_code(form: str, arch: str) -> bytes:
    """Return the kernel as NVRTC compiles it and, for a fatbin, nvFatbin packs it."""
    from cuda.core import Program, ProgramOptions

    target, kind = ("compute_80", "ptx") if form == "ptx" else (arch, "cubin")
    code = bytes(Program(CUDA_SOURCE, "c++", ProgramOptions(std="c++17", arch=target)).compile(kind).code)
    return packed(code, arch.removeprefix("sm_")) if form == "fatbin" else code


def packed(cubin: bytes, arch: str) -> bytes:
    try:
        from cuda.bindings import nvfatbin

        handle = nvfatbin.create(["-64"], 1)
    except Exception as error:
        pytest.skip(f"nvFatbin is not installed: {error}")
    nvfatbin.add_cubin(handle, cubin, len(cubin), arch, "other_tanh")
    buffer = bytearray(nvfatbin.size(handle))
    nvfatbin.get(handle, buffer)
    nvfatbin.destroy(handle)
    return bytes(buffer)


def test_what_a_binary_lacks_is_named(device: Any) -> None:
    cubin = binary_code("cubin", str(device.facts["arch"]))
    with pytest.raises(TacticError, match="kernel 'no_such_kernel' can't be loaded on"):
        device.compile(KernelBinary(cubin, "no_such_kernel"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other = binary_code("cubin", "sm_120")
    with pytest.raises(TacticError, match=f"is for sm_120, and the device is {device.facts['arch']}"):
        device.compile(KernelBinary(other, "other_tanh"))
    # the device is as it was
    device.compile(KernelSource(CUDA_SOURCE, "other_tanh"))
    device.synchronize()


def test_a_triton_kernel_is_a_tactic(device: Any, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    (tmp_path / "triton_kernels.py").write_text(TRITON_KERNELS)
    built = build_with(tmp_path, TRITON, "HardSwish")
    assert len(built.engine.artifacts) == 1
    assert relative(built.run(), built.exact()) < 1e-6
    assert relative(built.run_elsewhere(tmp_path), built.exact()) < 1e-6


class TestTritonGemm:
    """The example package tactician-triton."""

    HALVES = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))

    @pytest.fixture(autouse=True)
    def _import(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("triton")
        monkeypatch.syspath_prepend(str(EXAMPLE))

    @pytest.mark.parametrize("dtype", HALVES, ids=str)
    @pytest.mark.parametrize(
        ("op", "shapes", "attributes"),
        [
            ("MatMul", [(1, 128, 768), (768, 768)], {}),
            ("MatMul", [(1, 128, 3072), (3072, 768)], {}),
            ("MatMul", [(1, 12, 128, 64), (1, 12, 64, 128)], {}),
            ("MatMul", [(1, 12, 128, 128), (1, 12, 128, 64)], {}),
            ("MatMul", [(5, 33, 77), (5, 77, 41)], {}),
            ("MatMul", [(40, 100), (6, 100, 72)], {}),
            ("MatMul", [(300,), (300, 9)], {}),
            ("Gemm", [(1, 2048), (1000, 2048), (1000,)], {"transB": 1}),
            ("Gemm", [(257, 130), (257, 190), (130, 1)], {"transA": 1, "alpha": 0.3, "beta": -1.7}),
            ("Gemm", [(513, 127), (95, 513), (127, 95)], {"transA": 1, "transB": 1}),
        ],
        ids=lambda value: str(value) if isinstance(value, list) else None,
    )
    def test_every_candidate_is_right(
        self, device: Any, op: str, shapes: list[tuple[int, ...]], attributes: dict[str, Any], dtype: Any
    ) -> None:
        from tactician_triton import TiledGemm

        rng = np.random.default_rng(len(shapes))
        inputs = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
        signature = make_signature(op, inputs, attributes)
        registry = Registry()
        registry.add(PluginRef("triton_gemm", "0", "0"), TiledGemm)
        accepted, refused = registry.candidates(signature, device)
        assert accepted and not refused, refused
        with ThreadPoolExecutor(8) as pool:  # the kernels are kept: checks compile nothing
            list(pool.map(lambda c: c.tactic.prepare(signature, device), accepted))
        for candidate in accepted:
            verdict = admit(candidate, signature, device, reference_for, [inputs])
            assert verdict.ok, f"{candidate.id} on {signature}: {verdict.reason}"

    @pytest.mark.parametrize("split", ["1", "[248]"])
    def test_an_engine_runs_without_triton(self, device: Any, tmp_path: Path, split: str) -> None:
        plugin = tmp_path / "tiled.py"  # the example itself may be installed beside it
        plugin.write_text(
            f"import sys\n\nsys.path.insert(0, {str(EXAMPLE)!r})\nfrom tactician_triton import tactics\n"
        )
        values = ("float16[1, 128, 768] a, float16[768, 768] b", "float16[1, 128, 768] y")
        rule = f"tiled.tiled_gemm(*split_k={split})"
        built = build(tmp_path, plugin, "y = MatMul(a, b)", rule, values)
        assert len(built.engine.artifacts) == (1 if split == "1" else 2)
        assert relative(built.run(), built.exact()) < 2e-3
        assert relative(built.run_elsewhere(tmp_path), built.exact()) < 2e-3
