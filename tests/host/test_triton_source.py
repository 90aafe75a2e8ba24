"""Triton kernels: named without being imported, compiled without a GPU, run from an engine without Triton."""

from __future__ import annotations

import sys
import textwrap
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from tactician import KernelBinary, TritonSource
from tactician.errors import TacticError
from tactician.plugins.target import Artifacts
from tactician.plugins.triton_source import CompiledKernel, TritonKernel

KERNELS = """
import triton
import triton.language as tl
from scaling import scaled


@triton.jit
def relu(x, y, n, factor, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + i, mask=i < n)
    tl.store(y + i, scaled(tl.maximum(value, 0.0), factor), mask=i < n)


@triton.jit
def through_descriptor(x, n, BLOCK: tl.constexpr):
    rows = tl.make_tensor_descriptor(x, shape=[n, BLOCK], strides=[BLOCK, 1], block_shape=[BLOCK, BLOCK])
    rows.store([0, 0], rows.load([0, 0]) * 2)


@triton.jit
def nonsense(x):
    tl.store(x, tl.no_such_function())


def plain(x):
    return x
"""
SCALING = """
import triton


@triton.jit
def scaled(value, factor):
    return value * factor
"""
SIGNATURE = (("x", "*fp32"), ("y", "*fp32"), ("n", "i32"), ("factor", "fp32"))


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Return the name of a module of kernels, which lies in a folder of its own with a helper."""
    name = f"kernels_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(KERNELS)
    (tmp_path / "scaling.py").write_text(SCALING)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "scaling", raising=False)
    yield name
    for imported in (name, "scaling"):
        sys.modules.pop(imported, None)


@pytest.fixture
def source(module):
    return TritonSource(module, "relu", SIGNATURE, (("BLOCK", 256),))


@pytest.fixture
def no_triton(monkeypatch):
    """Make importing Triton fail."""
    for name in [n for n in sys.modules if n.partition(".")[0] == "triton"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)


class FakeDevice:
    """Remembers what is loaded and launched."""

    name = "fake"

    def __init__(self, stored: dict[str, bytes] | None = None) -> None:
        self.facts = {"arch": "sm_90a", "sm": 90, "shared_bytes_per_block": 232448}
        self.artifacts = Artifacts(stored)
        self.launches: list[tuple[Any, ...]] = []

    def compile(self, source: KernelBinary) -> Any:
        self.loaded = source
        return self

    def launch(self, *args: Any, shared_bytes: int) -> None:
        self.launches.append((*args, shared_bytes))


def cubin_head() -> bytes:
    head = bytearray(b"\x7fELF" + bytes(60))
    head[8], head[18], head[49] = 8, 190, 90
    return bytes(head)


def stored(source: TritonSource, **changes: Any) -> dict[str, bytes]:
    """Return the artifacts of an engine that holds ``source`` for sm_90a."""
    fields = {"shared_bytes": 4096, "num_warps": 8, "hidden": 2, "triton": "3.6.0"} | changes
    compiled = CompiledKernel(cubin_head(), "relu_kernel", **fields)
    return {source.key("sm_90a"): msgspec.msgpack.encode(compiled)}


class TestWithoutTriton:
    @pytest.fixture(autouse=True)
    def _no_triton(self, no_triton):
        pass

    def test_the_key_depends_on_all_that_the_kernel_does(self, source, module, tmp_path):
        keys = {
            source.key("sm_90a"),
            source.key("sm_80"),
            replace(source, function="plain").key("sm_90a"),
            replace(source, constants=(("BLOCK", 512),)).key("sm_90a"),
            replace(source, signature=(*SIGNATURE[:2], ("n", "i32:16"), SIGNATURE[3])).key("sm_90a"),
            replace(source, num_warps=8).key("sm_90a"),
            replace(source, num_stages=2).key("sm_90a"),
            replace(source, maxnreg=64).key("sm_90a"),
        }
        assert len(keys) == 8
        before = source.key("sm_90a")
        (tmp_path / "unrelated.py").write_text("x = 1\n")
        assert source.key("sm_90a") == before
        (tmp_path / "scaling.py").write_text(SCALING + "\n")  # what it calls, in another file
        helped = source.key("sm_90a")
        (tmp_path / f"{module}.py").write_text(KERNELS + "\n")
        assert len({before, helped, source.key("sm_90a")}) == 3
        assert module not in sys.modules

    def test_a_path_and_a_name_are_the_same_kernel(self, source, module, tmp_path):
        by_path = replace(source, module=tmp_path / f"{module}.py")
        assert by_path.key("sm_80") == source.key("sm_80")
        assert replace(source, module=str(tmp_path / f"{module}.py")).key("sm_80") == source.key("sm_80")

    @pytest.mark.parametrize("name", ["no_such_module", "no_such_package.kernels", "sys"])
    def test_a_module_that_is_not_there_is_named(self, source, name):
        with pytest.raises(TacticError, match=f"module '{name}' of function 'relu' can't be found"):
            replace(source, module=name).key("sm_80")

    def test_a_file_that_is_no_python_is_named(self, source, module, tmp_path):
        (tmp_path / f"{module}.py").write_text("def broken(:\n")
        with pytest.raises(TacticError, match=rf"function 'relu': its source '.*{module}\.py' can't be read"):
            source.key("sm_80")
        with pytest.raises(TacticError, match=r"none\.py' can't be read"):
            replace(source, module=tmp_path / "none.py").key("sm_80")

    def test_what_an_engine_holds_is_loaded_and_launched(self, source, module):
        device = FakeDevice(stored(source))
        kernel = source.load(device)
        assert device.loaded == KernelBinary(cubin_head(), "relu_kernel")
        kernel.launch("stream", 7, "x", None, 100, np.float32(0.5))
        ((stream, grid, block, x, y, n, factor, *hidden, shared_bytes),) = device.launches
        assert (stream, grid, block, x, y, hidden, shared_bytes) == (
            "stream",
            7,
            256,
            "x",
            None,
            [None, None],
            4096,
        )
        assert (n, type(n), factor, type(factor)) == (100, np.int32, 0.5, np.float32)
        assert module not in sys.modules

    def test_what_it_does_not_hold_needs_triton(self, source):
        with pytest.raises(
            TacticError, match=r"'relu' of .*\(BLOCK=256\) has to be compiled, and Triton can't be"
        ):
            source.load(FakeDevice())

    def test_too_much_shared_memory_is_an_error(self, source):
        with pytest.raises(
            TacticError, match="takes 300000 bytes of shared memory for a block, fake has 232448"
        ):
            source.load(FakeDevice(stored(source, shared_bytes=300000)))

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (("x", "y", 1), "takes x, y, n, factor; the launch passes 3 arguments"),
            (("x", "y", 1, 2.0, 3), "the launch passes 5 arguments"),
            (("x", "y", np.int64(1), 2.0), r"argument 'n' is int32; the launch passes .*1"),
            (("x", "y", "n", 2.0), "argument 'n' is int32; the launch passes 'n'"),
            (("x", 5, 1, 2.0), "argument 'y' is a tensor; the launch passes 5"),
        ],
    )
    def test_arguments_are_checked(self, source, arguments, words):
        device = FakeDevice(stored(source))
        kernel = source.load(device)
        with pytest.raises(TacticError, match=words):
            kernel.launch("stream", 1, *arguments)
        assert device.launches == []


@pytest.fixture
def triton(monkeypatch, tmp_path_factory):
    triton = pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
    return triton


class TestWithTriton:
    @pytest.fixture(autouse=True)
    def _triton(self, triton):
        pass

    @pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
    def test_it_compiles_without_a_gpu(self, compile_device, source, arch, triton):
        device = compile_device(arch)
        kernel = device.compile(source)
        assert isinstance(kernel, TritonKernel)
        assert kernel.threads == 128
        ((key, data),) = device.artifacts.used().items()
        compiled = msgspec.msgpack.decode(data, type=CompiledKernel)
        assert key == source.key(arch)
        assert KernelBinary(compiled.cubin, compiled.name).sm == int(arch[3:5])
        assert (compiled.name, compiled.triton) == ("relu", triton.__version__)
        with pytest.raises(TacticError, match="compile-only device can't launch"):
            kernel.launch(None, 1, None, None, 1, 1.0)

    def test_it_compiles_once(self, compile_device, source, request):
        first, second = compile_device("sm_90a"), compile_device("sm_90a")
        first.compile(source)
        second.artifacts = Artifacts(first.artifacts.used())
        request.getfixturevalue("no_triton")
        second.compile(source)
        assert second.artifacts.used() == first.artifacts.used()

    def test_a_file_is_imported_from_its_path(self, compile_device, tmp_path):
        path = tmp_path / "copy_kernel.py"
        path.write_text(
            textwrap.dedent("""
                import triton
                import triton.language as tl

                @triton.jit
                def copy(x, y, BLOCK: tl.constexpr):
                    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
                    tl.store(y + i, tl.load(x + i))
            """)
        )
        source = TritonSource(path, "copy", (("x", "*bf16"), ("y", "*bf16")), (("BLOCK", 1024),), num_warps=8)
        assert compile_device("sm_90a").compile(source).threads == 256
        assert "copy_kernel" not in sys.modules

    def test_what_is_known_of_arguments_is_used(self, source):
        """Tensors are aligned, and so is a row of a known multiple: loads are of 16 bytes."""
        pytest.importorskip("triton")
        text = ptx_of(replace(source, signature=(*SIGNATURE[:2], ("n", "i32:16"), SIGNATURE[3])))
        assert "ld.global.v" in text
        text = ptx_of(replace(source, signature=(("x", "*fp32:4"), ("y", "*fp32:4"), *SIGNATURE[2:])))
        assert "ld.global.v" not in text

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"function": "none"}, "'none' is None, no function under @triton.jit"),
            ({"function": "plain"}, "'plain' is <function plain .*no function under @triton.jit"),
            (
                {"constants": ()},
                "has the arguments x, y, n, factor, BLOCK; signature x, y, n, factor and constants",
            ),
            ({"signature": (SIGNATURE[1], SIGNATURE[0], *SIGNATURE[2:])}, "signature y, x, n, factor and"),
            ({"signature": (("x", "fp16"), *SIGNATURE[1:])}, "argument 'x' has type 'fp16'; write"),
            (
                {"signature": (("x", "tensordesc<fp16>"), *SIGNATURE[1:])},
                "argument 'x' has type 'tensordesc<fp16>'",
            ),
            (
                {"signature": (("x", "*no_such_type"), *SIGNATURE[1:])},
                "does not compile for sm_90 with Triton",
            ),
            (
                {"function": "nonsense", "signature": SIGNATURE[:1], "constants": ()},
                "does not compile for sm_90",
            ),
            (
                {
                    "function": "through_descriptor",
                    "signature": (SIGNATURE[0], SIGNATURE[2]),
                    "constants": (("BLOCK", 32),),
                },
                r"needs \d+ bytes of global scratch memory",
            ),
        ],
    )
    def test_what_can_not_be_compiled_is_explained(self, compile_device, source, changes, words):
        with pytest.raises(TacticError, match=f"(?s)Triton kernel '.*{words}"):
            compile_device("sm_90a").compile(replace(source, **changes))

    def test_a_module_that_does_not_import_is_named(self, compile_device, source, tmp_path, module):
        (tmp_path / f"{module}.py").write_text("import no_such_module\n")
        with pytest.raises(TacticError, match=f"module '{module}' .* can't be imported: ModuleNotFoundError"):
            compile_device("sm_90a").compile(source)


def ptx_of(source: TritonSource) -> str:
    """Return the PTX that Triton makes of ``source``."""
    import triton

    texts = []
    compile = triton.compile
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton, "compile", lambda *a, **k: texts.append(compile(*a, **k)) or texts[-1])
        source.compile(90)
    return texts[0].asm["ptx"]
