"""Every family of CUDA kernels compiles for old and new GPUs, to the instructions and the resources that are written down."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

pytest.importorskip("cuda.bindings.nvrtc", reason="the compiler's package is not installed")

from gpu.record import SOURCES
from kernel_calls import CALLS, TACTICS, Call
from kernel_resources import (
    HOW_TO_RENEW,
    TABLE,
    CompiledKernel,
    KernelRow,
    compile_call,
    newest_architecture,
    nvrtc_version,
    read_table,
    write_table,
)
from sass import READ_FROM

NEWEST = "newest"
"""Stands for whatever architecture the installed NVRTC knows last."""


def differences(call: Call, arch: str, compiled: list[CompiledKernel]) -> list[str]:
    """Return, in words, in what the kernels of ``call`` on ``arch`` differ from the table's."""
    rows = read_table().calls.get(str(call), {})
    old = {name: row for name, row in rows.items() if name.startswith(f"{arch} ")}
    new = {kernel.name: kernel.row for kernel in compiled}
    return [
        f"{call}, {name}: {words}"
        for name in {**old, **new}
        for words in changes(old.get(name), new.get(name))
    ]


def changes(old: KernelRow | None, new: KernelRow | None) -> list[str]:
    """Return the figures of a kernel that changed."""
    if old is None or new is None:
        return ["is not in the table" if old is None else "is in the table, but no longer compiled"]
    before, after = (figures(row) for row in (old, new))
    names = dict.fromkeys([*before, *after])
    return [
        f"{n} {before.get(n, 0)} → {after.get(n, 0)}" for n in names if before.get(n, 0) != after.get(n, 0)
    ]


def figures(row: KernelRow) -> dict[str, int | str]:
    """Return the figures of a row by name, the counts of instructions among them."""
    counts: dict[str, int | str] = {**row.kinds}
    return {n: v for n, v in msgspec.structs.asdict(row).items() if n != "kinds"} | counts


def check_code(call: Call, arch: str, compiled: list[CompiledKernel]) -> None:
    """Assert what holds whatever the compiler's version: no spills, no warnings, and the instructions that must be there."""
    for kernel in compiled:
        row, said = kernel.row, f"{call}, {kernel.name}: {kernel.row}"
        assert row.spill_stores == row.spill_loads == row.stack == 0, said
        assert not kernel.warnings, f"{said}: {kernel.warnings}"
        # launched before those ahead of it have ended, it would read what they have not written yet
        assert not kernel.too_early, f"{said}: {kernel.too_early} before it waits"
        assert (kernel.too_early is not None) == (arch == "sm_90a"), f"{said}: calls await_predecessors()?"
        assert row.threads > 0, f"{said}: was never launched"
    if arch in READ_FROM:
        found = {kind for kernel in compiled for kind in kernel.row.kinds}
        assert not found & {"LDL", "STL"}, f"{call} on {arch}: local memory is used"
        missing = sorted(set(call.instructions) - found)
        assert not missing, f"{call} on {arch}: no {', '.join(missing)} among {', '.join(sorted(found))}"


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a", NEWEST])
@pytest.mark.parametrize("call", [pytest.param(c, id=f"{i}-{c.tactic}") for i, c in enumerate(CALLS)])
def test_compiles_to_what_the_table_says(call: Call, arch: str) -> None:
    target = newest_architecture() if arch == NEWEST else arch
    compiled = compile_call(call, target)
    assert bool(compiled) == (call.only in ("", target)), f"{call} on {target}: {len(compiled)} kernels"
    if compiled:
        check_code(call, target, compiled)
    table = read_table()
    if table.nvrtc != nvrtc_version():
        pytest.skip(
            f"the table was written with NVRTC {table.nvrtc}, not {nvrtc_version()}: figures can't be compared"
        )
    found = differences(call, target, compiled)
    assert not found, "\n".join([*found, HOW_TO_RENEW])


def test_every_family_is_in_the_table() -> None:
    calls = read_table().calls
    assert list(calls) == sorted(map(str, CALLS)), HOW_TO_RENEW
    named = {call.partition(":")[0] for call in calls}
    assert named == TACTICS.keys(), f"give every tactic a call in tests/kernel_calls.py; {HOW_TO_RENEW}"
    compiled = {name for rows in calls.values() for row in rows.values() for name in row.source.split(", ")}
    sources = {path.name for path in SOURCES.glob("*.cu")}
    assert compiled == sources, f"give every kernel a call in tests/kernel_calls.py; {HOW_TO_RENEW}"


def test_only_kernels_by_wgmma_are_for_one_architecture() -> None:
    special = {call.tactic for call in CALLS if call.only}
    assert special == {"gemm_wgmma", "gemm_wgmma8bit", "conv_wgmma", "attention_wgmma"}
    assert {call.only for call in CALLS} == {"", "sm_90a"}
    assert not special & {call.tactic for call in CALLS if not call.only}


def test_a_change_is_named_with_both_figures() -> None:
    call, rows = CALLS[0], read_table().calls[str(CALLS[0])]
    name, row = next(iter(rows.items()))
    arch, _, _ = name.partition(" ")
    fewer = msgspec.structs.replace(row, registers=row.registers - 1, kinds={**row.kinds, "LDL": 3})
    assert differences(call, arch, [CompiledKernel(name, row, (), None)]) == []
    assert differences(call, arch, [CompiledKernel(name, fewer, (), None)]) == [
        f"{call}, {name}: registers {row.registers} → {row.registers - 1}",
        f"{call}, {name}: LDL 0 → 3",
    ]
    assert differences(call, arch, []) == [f"{call}, {name}: is in the table, but no longer compiled"]
    assert differences(call, "sm_1", [CompiledKernel("sm_1 k", row, (), None)]) == [
        f"{call}, sm_1 k: is not in the table"
    ]
    with pytest.raises(AssertionError, match="local memory"):
        check_code(call, arch, [CompiledKernel(name, fewer, (), None)])
    with pytest.raises(AssertionError, match="unknown"):
        check_code(call, arch, [CompiledKernel(name, row, ("warning: unknown",), None)])
    with pytest.raises(AssertionError, match="no HGMMA"):
        check_code(replace(call, instructions=("HGMMA",)), arch, [CompiledKernel(name, row, (), None)])


def test_the_table_is_as_it_is_written(tmp_path: Path) -> None:
    """One line for each kernel, so that a diff names those that changed; small enough to be read."""
    table, path = read_table(), tmp_path / "table.json"
    write_table(table.calls, path)
    assert read_table(path).calls == table.calls
    assert (
        path.read_text(encoding="utf-8").splitlines()[1:]
        == TABLE.read_text(encoding="utf-8").splitlines()[1:]
    )
    assert TABLE.read_text(encoding="utf-8").count('"registers"') == sum(map(len, table.calls.values()))
    assert TABLE.stat().st_size < 60_000
