"""The example with a rewrite rule: its own tests pass, its CUDA source compiles and computes, the kit accepts it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from packages import ROOT, run
from signatures import make_signature
from tactician.config import BuilderConfig
from tactician.plugins.manager import load_plugins
from tactician.signature import OpSignature
from tactician.tactics.registry import Candidate
from tactician.testing import check_plugin

EXAMPLE = ROOT / "examples" / "tactician-rms-norm"
PLUGIN = EXAMPLE / "tactician_rms_norm.py"
BOUNDS = {"float32": 1e-6, "float16": 5e-4}


def call(*shape: int, dtype: str = "float32", epsilon: float = 1e-5) -> tuple[OpSignature, list[Any]]:
    """Return a call of the operator with its inputs."""
    rng = np.random.default_rng(shape[-1])
    inputs = [rng.standard_normal(s).astype(dtype) for s in (shape, shape[-1:])]
    return make_signature("rms_norm::RmsNorm", inputs, {"epsilon": epsilon}), inputs


def accepted(signature: OpSignature, device: Any) -> list[Candidate]:
    plugins = load_plugins(BuilderConfig(plugins=("builtin", str(PLUGIN))))
    found, _ = plugins.registry.candidates(signature, device)
    return [c for c in found if c.plugin.name == PLUGIN.stem]


@pytest.fixture(autouse=True)
def _loaded() -> None:
    load_plugins(BuilderConfig(plugins=("builtin", str(PLUGIN))))


def test_its_own_tests_pass() -> None:
    arguments = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
    assert re.search(r"\d+ passed", run(sys.executable, *arguments, cwd=EXAMPLE))


def test_the_kit_accepts_it() -> None:
    def signatures() -> list[OpSignature]:
        rng = np.random.default_rng(0)
        x, scale = (rng.standard_normal(shape).astype(np.float32) for shape in ((3, 5, 17), (17,)))
        return [make_signature("rms_norm::RmsNorm", [x, scale], {"epsilon": 1e-5})]

    assert [r for r in check_plugin(str(PLUGIN), signatures=signatures) if not r.ok] == []


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_the_cuda_kernel_compiles_without_spills(
    compile_device: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, arch: str, dtype: str
) -> None:
    from tactician.builtin_kernels.cuda.compiler import compile_cubin

    device, sources = compile_device(arch), []
    monkeypatch.setattr(type(device), "compile", lambda self, source: sources.append(source))
    signature, _ = call(3, 4096, dtype=dtype)
    candidates = accepted(signature, device)
    assert len(candidates) == 9
    for candidate in candidates:
        candidate.tactic.prepare(signature, device)
    for source in sources:
        cubin, resources = compile_cubin(source, arch, report=True)
        assert cubin
        assert resources is not None
        assert resources.spill_stores == resources.spill_loads == resources.stack == 0, (
            f"{source}: {resources}"
        )


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (2, 3, 40), (2, 1000), (1, 4096)])
def test_the_cuda_kernel_computes_the_norm(shape: tuple[int, ...], dtype: str) -> None:
    pytest.importorskip("cuda.bindings.nvrtc", reason="the compiler's package is not installed")
    from ptx_device import PtxDevice, run_tactic

    device = PtxDevice()
    for epsilon in (1e-5, 0.5):
        signature, (x, scale) = call(*shape, dtype=dtype, epsilon=epsilon)
        wide = x.astype(np.float64)
        root = np.sqrt((wide**2).mean(axis=-1, keepdims=True) + np.float64(np.float32(epsilon)))
        wanted = wide / root * scale.astype(np.float64)
        candidates = accepted(signature, device)
        assert candidates
        for candidate in candidates:
            (y,) = run_tactic(device, candidate.tactic, signature, [x, scale])
            assert y is not None
            error = np.linalg.norm(y.astype(np.float64) - wanted) / np.linalg.norm(wanted)
            assert error < BOUNDS[dtype], f"{candidate.id}: {error:.1e}"


@pytest.mark.parametrize("dtype", ["float", "float16"])
@pytest.mark.parametrize(
    "steps", ["y = Add (n, full)", "a = Mul (row, n) y = Add (a, full)", "a = Mul (n, x) b = Add (a, row) y = Mul (b, full)"]
)  # fmt: skip
def test_the_cuda_kernel_computes_what_follows(steps: str, dtype: str) -> None:
    pytest.importorskip("cuda.bindings.nvrtc", reason="the compiler's package is not installed")
    import onnx
    from ptx_device import PtxDevice, run_tactic
    from tactician.plugins.reference import reference_for
    from tactician.testing import fused_signatures

    device = PtxDevice()
    (form,) = load_plugins(BuilderConfig(plugins=("builtin", str(PLUGIN)))).registry.forms("cpu")[-1:]
    model = onnx.parser.parse_model(f"""
        <ir_version: 9, opset_import: ["" : 18, "rms_norm" : 1]>
        g ({dtype}[3, 40] x, {dtype}[40] scale, {dtype}[3, 40] full, {dtype}[1, 40] row) => ({dtype}[3, 40] y)
        {{ n = rms_norm.RmsNorm (x, scale) {steps} }}""")
    *_, signature = fused_signatures(model, form)
    rng = np.random.default_rng(1)
    inputs = [rng.standard_normal(t.dims).astype(t.numpy_dtype) for t in signature.inputs if t is not None]
    (wanted,) = reference_for(signature)([x.astype(np.float64) for x in inputs])
    candidates = accepted(signature, device)
    assert candidates
    for candidate in candidates:
        (y,) = run_tactic(device, candidate.tactic, signature, inputs)
        assert y is not None
        error = np.linalg.norm(y.astype(np.float64) - wanted) / np.linalg.norm(wanted)
        assert error < BOUNDS["float32" if dtype == "float" else dtype], f"{candidate.id}: {error:.1e}"
