"""What every family of CUDA kernels takes of a GPU, as compiled here: ``python tests/kernel_resources.py`` writes the table.

The table, ``tests/host/kernel_resources.json``, is committed, one line for each kernel: a diff of it shows what a change
did to each of them. ``tests/host/test_kernel_resources.py`` holds it.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
from gpu.record import SOURCES
from kernel_calls import CALLS, TACTICS, Call
from sass import NOP, before_wait, kinds, opcodes, static_shared
from tactician.builtin_kernels.cuda import tensor_map
from tactician.builtin_kernels.cuda.compiler import KernelSource, compile_cubin
from tactician.builtin_kernels.cuda.device import ARCHITECTURES, CompileOnlyDevice
from tactician.builtin_kernels.cuda.im2col import Im2col
from tactician.builtin_kernels.cuda.tensor import DeviceTensor
from tactician.signature import TensorType
from tactician.tactics.tactic import Tactic, format_fields

TABLE = Path(__file__).with_name("host") / "kernel_resources.json"
HOW_TO_RENEW = "if that is what you want, run `python tests/kernel_resources.py` and commit the file"
LEAST_SHARED = 101376
"""Bytes of shared memory that a block can have on every architecture from sm_80 on."""


class KernelRow(msgspec.Struct, frozen=True, omit_defaults=True):
    """One kernel; sizes in bytes, registers, spills and stack per thread, and what is zero left out.

    Parameters
    ----------
    source
        The ``.cu`` file that it is of.
    fields
        Of the tactic that has it compiled.
    threads
        Of a block.
    instructions
        Without those that fill up.
    kinds
        Counts of instructions, by name.
    """

    source: str
    fields: str
    threads: int
    registers: int
    instructions: int
    static_shared: int = 0
    dynamic_shared: int = 0
    stack: int = 0
    spill_stores: int = 0
    spill_loads: int = 0
    kinds: dict[str, int] = {}


class Table(msgspec.Struct, frozen=True):
    """The whole file: the version of NVRTC, then the rows by call and by ``architecture kernel``."""

    nvrtc: str
    calls: dict[str, dict[str, KernelRow]]


@dataclass(frozen=True)
class CompiledKernel:
    """A row with its name, and what the compiler had to say."""

    name: str
    row: KernelRow
    warnings: tuple[str, ...]
    too_early: tuple[str, ...] | None
    """Accesses to memory before the kernel waits for those ahead of it (sm_90a); None where it does not wait."""


@dataclass
class RecordedKernel:
    """Stands for a loaded kernel, and writes down how it is launched."""

    source: KernelSource
    threads: int = 0
    dynamic_shared: int = 0
    registers = 0

    def launch(self, stream: Any, grid: Any, block: Any, *args: Any, shared_bytes: int = 0) -> None:
        """Take note of a launch."""
        self.threads = block if isinstance(block, int) else math.prod(block)
        self.dynamic_shared = shared_bytes


class RecordingDevice(CompileOnlyDevice):
    """A GPU that is not there and loads no kernel; one that the target doesn't know looks like a small one of sm_80."""

    def __init__(self, arch: str) -> None:
        super().__init__(arch if arch in ARCHITECTURES else ARCHITECTURES[0])
        self.kernels: list[RecordedKernel] = []
        if arch not in ARCHITECTURES:
            sm = int(arch.removeprefix("sm_"))
            self.facts = dict(self.facts) | {
                "arch": arch,
                "sm": sm,
                "compute_capability": f"{sm // 10}.{sm % 10}",
                "shared_bytes_per_block": LEAST_SHARED,
            }

    def compile(self, source: Any) -> RecordedKernel:
        """Keep ``source`` and return what stands for its kernel."""
        self.kernels.append(RecordedKernel(source))
        return self.kernels[-1]


def nvrtc_version() -> str:
    """Return the version of the compiler's package: figures are of one version only."""
    return version("nvidia-cuda-nvrtc")


def newest_architecture() -> str:
    """Return the newest architecture that the installed NVRTC compiles for."""
    from cuda.bindings import nvrtc

    status, found = nvrtc.nvrtcGetSupportedArchs()
    assert int(status) == 0, status
    return f"sm_{max(found)}"


def first_accepted(call: Call, device: RecordingDevice) -> Tactic | None:
    """Return the first candidate that does not decline, if there is one."""
    candidates = TACTICS[call.tactic].candidates(call.signature, device)
    return next((t for t in candidates if t.decline(call.signature, device) is None), None)


def compile_call(call: Call, arch: str) -> list[CompiledKernel]:
    """Compile the kernels of the first candidate for ``call``; none, where all decline."""
    device = RecordingDevice(arch)
    tactic = first_accepted(call, device)
    if tactic is None:
        return []
    _launch(tactic, call, device)
    seen: Counter[str] = Counter()
    return [_compiled(kernel, format_fields(tactic), arch, seen) for kernel in device.kernels]


def read_table(path: Path = TABLE) -> Table:
    """Return the committed table."""
    return msgspec.json.decode(path.read_bytes(), type=Table)


def write_table(calls: dict[str, dict[str, KernelRow]], path: Path = TABLE) -> None:
    """Write the rows of ``calls``, one a line."""
    blocks = []
    for call, rows in sorted(calls.items()):
        lines = [f"  {_text(name)}: {_text(row)}" for name, row in rows.items()]
        blocks.append(f" {_text(call)}: {{\n" + ",\n".join(lines) + "}")
    head = f'{{"nvrtc": {_text(nvrtc_version())}, "calls": {{\n'
    path.write_text(head + ",\n".join(blocks) + "}}\n", encoding="utf-8")


def _launch(tactic: Tactic, call: Call, device: RecordingDevice) -> None:
    """Prepare and launch ``tactic`` on tensors that are nowhere; only a driver could make their maps."""

    def tensor(of: TensorType | None) -> DeviceTensor | None:
        return None if of is None else DeviceTensor(0, of.dims, of.dtype)

    nbytes = tactic.workspace(call.signature, device)
    workspace = DeviceTensor(0, (nbytes,), "uint8") if nbytes else None
    inputs, outputs = (
        [tensor(t) for t in types] for types in (call.signature.inputs, call.signature.outputs)
    )
    with mock.patch.object(tensor_map, "_encode"), mock.patch.object(Im2col, "_encode"):
        tactic.prepare(call.signature, device)(inputs, outputs, workspace, None)


def _compiled(kernel: RecordedKernel, fields: str, arch: str, seen: Counter[str]) -> CompiledKernel:
    source = kernel.source
    cubin, resources = compile_cubin(source, arch, report=True)
    assert resources is not None
    found = opcodes(cubin)
    row = KernelRow(
        ", ".join(
            p.name for p in sorted(SOURCES.glob("*.cu")) if p.read_text(encoding="utf-8") in source.text
        ),
        fields,
        kernel.threads,
        resources.registers,
        found.total() - found[NOP],
        static_shared(cubin, source.name),
        kernel.dynamic_shared,
        resources.stack,
        resources.spill_stores,
        resources.spill_loads,
        kinds(found),
    )
    ahead = before_wait(cubin) if arch == "sm_90a" else None
    early = None if ahead is None else tuple(ahead)
    seen[source.name] += 1
    again = f" {seen[source.name]}" if seen[source.name] > 1 else ""
    return CompiledKernel(f"{arch} {source.name}{again}", row, resources.warnings, early)


def _text(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def main() -> None:
    """Compile every call for every architecture and write the table."""
    architectures = (*ARCHITECTURES, newest_architecture())
    write_table(
        {
            str(call): {
                kernel.name: kernel.row for arch in architectures for kernel in compile_call(call, arch)
            }
            for call in CALLS
        }
    )


if __name__ == "__main__":
    main()
