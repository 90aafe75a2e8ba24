"""Kernels that come compiled: cubin, fatbin and PTX are told apart, checked, assembled once, and kept in the engine."""

from __future__ import annotations

import struct
from importlib.resources import files

import pytest
from tactician import KernelBinary, KernelSource
from tactician.errors import TacticError
from tactician.plugins.target import Artifacts

SOURCE = 'extern "C" __global__ void twice(float* x) { x[threadIdx.x] *= 2.0f; }'
PTX = """//
// with a comment before it
.version 7.0
.target sm_80
.address_size 64
.visible .entry twice(.param .u64 x)
{
    .reg .b64 %rd<3>;
    .reg .f32 %f<3>;
    ld.param.u64 %rd1, [x];
    cvta.to.global.u64 %rd2, %rd1;
    ld.global.f32 %f1, [%rd2];
    add.f32 %f2, %f1, %f1;
    st.global.f32 [%rd2], %f2;
    ret;
}
"""
FATBIN = b"\x50\xed\x55\xba\x01\x00\x10\x00" + bytes(8)


def elf(abi: int, flags: int, machine: int = 190) -> bytes:
    """Return the head of an ELF file, as far as anybody looks at it."""
    head = bytearray(b"\x7fELF" + bytes(60))
    head[8] = abi
    struct.pack_into("<H", head, 18, machine)
    struct.pack_into("<I", head, 48, flags)
    return bytes(head)


@pytest.fixture(params=["sm_80", "sm_90a"])
def arch(request):
    return request.param


@pytest.fixture
def cubin(compile_device, arch):
    """Return a cubin by NVRTC."""
    device = compile_device(arch)
    device.compile(KernelSource(SOURCE, "twice"))
    (cubin,) = device.artifacts.used().values()
    return cubin


def test_a_real_cubin_says_what_it_is_for(cubin, arch):
    binary = KernelBinary(cubin, "twice")
    assert (binary.form, binary.sm) == ("cubin", int(arch[3:5]))


@pytest.mark.parametrize(
    ("code", "form", "sm"),
    [
        (elf(7, 0x560556), "cubin", 86),  # as CUDA 12 writes it
        (elf(8, 0x6007802), "cubin", 120),  # as CUDA 13 does
        (FATBIN, "fatbin", None),
        (PTX.encode(), "ptx", None),
        (PTX.encode() + b"\0", "ptx", None),
    ],
)
def test_forms_are_told_apart(code, form, sm):
    binary = KernelBinary(code, "k")
    assert (binary.form, binary.sm) == (form, sm)


@pytest.mark.parametrize(
    "code", [b"", b"\x7fELF", elf(0, 0, machine=62), SOURCE.encode(), b".version only", bytes(100)]
)
def test_anything_else_is_refused(code):
    with pytest.raises(TacticError, match=r"kernel 'k' is no cubin, fatbin or PTX: it has \d+ bytes"):
        KernelBinary(code, "k")


@pytest.mark.parametrize(
    ("there", "here", "runs"),
    [
        (80, "sm_80", True),
        (80, "sm_86", True),
        (86, "sm_80", False),
        (80, "sm_90a", False),
        (90, "sm_90a", True),
        (90, "sm_100", False),
        (120, "sm_120", True),
    ],
)
def test_a_cubin_runs_on_its_own_family(there, here, runs):
    binary = KernelBinary(elf(8, there << 8), "k")
    if runs:
        binary.require(here)
    else:
        with pytest.raises(TacticError, match=f"'k' is for sm_{there}, and the device is {here}"):
            binary.require(here)


def test_the_wrong_architecture_is_named_when_it_is_compiled(compile_device, cubin, arch):
    other = {"sm_80": "sm_90a", "sm_90a": "sm_80"}[arch]
    with pytest.raises(TacticError, match=f"is for sm_{arch[3:5]}, and the device is {other}"):
        compile_device(other).compile(KernelBinary(cubin, "twice"))


def test_a_cubin_is_loaded_as_it_is(compile_device, cubin, arch):
    device = compile_device(arch)
    device.compile(KernelBinary(cubin, "twice"))
    assert device.artifacts.used() == {}  # the plugin has it, the engine need not


def test_files_and_resources_are_read(tmp_path, monkeypatch):
    package = tmp_path / "shipped_kernels"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "twice.ptx").write_text(PTX)
    monkeypatch.syspath_prepend(str(tmp_path))
    wanted = KernelBinary(PTX.encode(), "twice")
    path = package / "twice.ptx"
    for file in (str(path), path, files("shipped_kernels") / "twice.ptx"):
        assert KernelBinary.from_file(file, "twice") == wanted
    with pytest.raises(TacticError, match=r"kernel 'twice' can't be read from '.*none\.ptx'"):
        KernelBinary.from_file(package / "none.ptx", "twice")


def test_the_key_tells_kernels_and_architectures_apart():
    binary = KernelBinary(PTX.encode(), "twice")
    others = [
        KernelBinary(PTX.encode(), "thrice").key("sm_80"),
        KernelBinary(PTX.encode() + b"\n", "twice").key("sm_80"),
        binary.key("sm_90a"),
    ]
    assert len({binary.key("sm_80"), *others}) == 4
    assert binary.key("sm_80") == KernelBinary(PTX.encode(), "twice").key("sm_80")


class TestPtx:
    """Assembled without a GPU, by nvJitLink."""

    @pytest.fixture(autouse=True)
    def _assembler(self):
        pytest.importorskip("cuda.core")
        try:
            from cuda.bindings import nvjitlink

            nvjitlink.version()
        except Exception as error:
            pytest.skip(f"nvJitLink is not installed: {error}")

    def test_it_becomes_a_cubin_in_the_artifacts(self, compile_device, arch):
        device = compile_device(arch)
        binary = KernelBinary(PTX.encode(), "twice")
        device.compile(binary)
        ((key, cubin),) = device.artifacts.used().items()
        assert key == binary.key(arch)
        assert KernelBinary(cubin, "twice").sm == int(arch[3:5])

    def test_it_is_assembled_once(self, compile_device, arch, monkeypatch):
        first, second = compile_device(arch), compile_device(arch)
        first.compile(KernelBinary(PTX.encode(), "twice"))
        second.artifacts = Artifacts(first.artifacts.used())
        monkeypatch.setattr("cuda.core.Program", None)  # whoever compiles fails
        second.compile(KernelBinary(PTX.encode(), "twice"))
        assert second.artifacts.used() == first.artifacts.used()

    def test_the_assembler_is_heard(self, compile_device, arch):
        bad = KernelBinary(PTX.replace("add.f32", "sum.f32").encode(), "twice")
        with pytest.raises(TacticError, match=rf"(?s)PTX of kernel 'twice'.*for {arch}.*'sum'"):
            compile_device(arch).compile(bad)


def test_without_an_assembler_it_says_what_to_install(compile_device, monkeypatch):
    def broken(*arguments):
        raise RuntimeError("no linker")

    monkeypatch.setattr("cuda.core.Program", broken)
    with pytest.raises(TacticError, match=r"for sm_80: no linker; .* needs the package nvidia-nvjitlink"):
        compile_device("sm_80").compile(KernelBinary(PTX.encode(), "twice"))


def test_another_language_brings_its_own_way_to_load(compile_device):
    class Language:
        def load(self, device):
            code = device.artifacts.get("key of the language", lambda: b"compiled")
            return (code, device.facts["arch"])

    device = compile_device("sm_80")
    assert device.compile(Language()) == (b"compiled", "sm_80")
    assert device.artifacts.used() == {"key of the language": b"compiled"}
