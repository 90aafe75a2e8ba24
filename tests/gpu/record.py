"""The record of the last GPU run: which kernel sources ran on which GPU, with what result.

``tests/gpu`` writes it to ``tests/gpu/record.json``, which is committed; ``tests/host/test_record.py`` fails
where a source has changed since, so that nothing lands that never ran on a GPU.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

FORMAT = 1
ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "builtin_kernels" / "cuda"
EXAMPLES = ROOT / "examples"
RECORD = Path(__file__).with_name("record.json")
HOW_TO_RENEW = (
    "on a machine with an NVIDIA GPU, run "
    "`TACTICIAN_RECORD=tests/gpu/record.json python -m pytest tests/gpu` and commit the file"
)
EVERY_CHECK = ("__init__", "target")
"""Modules that every check goes through, with all that they import: device, compiler, timer …"""
KERNEL_MARKS = ("KernelSource(", "TritonSource(")
"""What stands in the text of a package that brings kernels."""


class RecordEntry(msgspec.Struct, frozen=True):
    """What ran of one source file.

    Parameters
    ----------
    source
        File name within ``builtin_kernels/cuda``, or path within ``examples``.
    sha256
        ``source_digest`` of the file as it ran.
    tests_passed
        Checks of candidates against the reference that this source took part in and that passed.
    worst_error, tolerance
        Relative error ‖out − ref‖ / ‖ref‖ of the check that came nearest to its tolerance, and that
        tolerance; None where all outputs have to be equal.
    """

    source: str
    sha256: str
    tests_passed: int
    worst_error: float | None
    tolerance: float | None


class RecordedRun(msgspec.Struct, frozen=True, omit_defaults=True):
    """An entry with where and when it was made; ``versions`` by package name.

    ``note`` says how it was made where the tests have not written it themselves at the end of a run.
    """

    sha256: str
    tests_passed: int
    worst_error: float | None
    tolerance: float | None
    gpu: str
    driver: str
    versions: dict[str, str]
    date: str
    note: str = ""


class Record(msgspec.Struct, frozen=True):
    """The whole file."""

    format: int
    sources: dict[str, RecordedRun]


class Tally(Protocol):
    """Results of checks by kernel module: their number, the worst error with its tolerance, and failures."""

    checks: Mapping[str, int]
    worst: Mapping[str, tuple[float, float]]
    failures: Mapping[str, Sequence[str]]


def entries(tally: Tally, folder: Path = SOURCES, examples: Path = EXAMPLES) -> list[RecordEntry]:
    """Return an entry for every source that took part in a check and in none that failed."""
    packages = example_packages(examples)
    parts = {m: set(packages[m]) if m in packages else used_sources(m, folder) for m in tally.checks}
    failed = {name for module in tally.failures if tally.failures[module] for name in parts[module]}
    found = []
    for name, path in all_sources(folder, examples).items():
        modules = [module for module in sorted(parts) if name in parts[module]]
        if modules and name not in failed:
            worst = max(
                (tally.worst[m] for m in modules if m in tally.worst), key=_nearness, default=(None, None)
            )
            passed = sum(tally.checks[m] for m in modules)
            found.append(RecordEntry(name, source_digest(path), passed, *worst))
    return found


def write_record(
    path: Path, gpu: str, driver: str, versions: Mapping[str, str], date: str, entries: Iterable[RecordEntry]
) -> None:
    """Write ``entries`` to the record at ``path``.

    Sources that did not run keep the entry that they have, as long as they exist.
    """
    sources = dict(read_record(path).sources) if path.exists() else {}
    kept = set(all_sources())
    where = gpu, driver, dict(sorted(versions.items())), date
    for e in entries:
        sources[e.source] = RecordedRun(e.sha256, e.tests_passed, e.worst_error, e.tolerance, *where)
        kept.add(e.source)
    record = Record(FORMAT, {name: sources[name] for name in sorted(sources) if name in kept})
    path.write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")


def read_record(path: Path) -> Record:
    """Read a record.

    Raises
    ------
    ValueError
        If the file is no record, or of another format.
    """
    try:
        record = msgspec.json.decode(path.read_bytes(), type=Record)
    except msgspec.MsgspecError as error:
        raise ValueError(f"{path} is no record of a GPU run: {error}; {HOW_TO_RENEW}") from error
    if record.format != FORMAT:
        raise ValueError(f"{path} has format {record.format}, not {FORMAT}; {HOW_TO_RENEW}")
    return record


def problems(record: Record, folder: Path = SOURCES, examples: Path = EXAMPLES) -> list[str]:
    """Return, in words, every source that the record does not vouch for, and every entry without a source."""
    found = []
    sources = all_sources(folder, examples)
    for name, path in sources.items():
        run = record.sources.get(name)
        if run is None:
            found.append(f"{name}: never ran on a GPU without a failure")
        elif run.sha256 != source_digest(path):
            found.append(f"{name}: changed since it ran on {run.gpu} on {run.date}")
        elif run.tests_passed < 1:
            found.append(f"{name}: no test passed on {run.gpu} on {run.date}")
    gone = sorted(record.sources.keys() - sources.keys())
    found += [f"{name}: recorded, but there is no such source" for name in gone]
    return found


def digest_of_all() -> str:
    """Return one digest of all sources as they stand."""
    digests = [f"{name} {source_digest(path)}" for name, path in sorted(all_sources().items())]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def all_sources(folder: Path = SOURCES, examples: Path = EXAMPLES) -> dict[str, Path]:
    """Return every file that the record must cover, by the name that it has there."""
    found = {path.name: path for path in kernel_sources(folder)}
    for files in example_packages(examples).values():
        found |= files
    return found


def kernel_sources(folder: Path = SOURCES) -> list[Path]:
    """Return the files of the built-in kernels."""
    return sorted(p for p in folder.iterdir() if p.suffix in (".cu", ".cuh", ".py"))


def example_packages(examples: Path = EXAMPLES) -> dict[str, dict[str, Path]]:
    """Return the files of every example that brings kernels for GPUs, by its module and then by path within ``examples``.

    A check of one of its tactics goes through all of them.
    """
    packages: dict[str, dict[str, Path]] = {}
    for module in sorted(examples.glob("tactician-*/tactician_*")):
        inner = module.iterdir() if module.is_dir() else [module]
        paths = [p for p in sorted(inner) if p.suffix in (".cu", ".cuh", ".py")]
        text = "".join(p.read_text(encoding="utf-8") for p in paths if p.suffix == ".py")
        if any(mark in text for mark in KERNEL_MARKS):
            packages[module.stem] = {p.relative_to(examples).as_posix(): p for p in paths}
    return packages


def checked_module(tactic: type) -> str:
    """Return what a check of ``tactic`` is counted for: the module of a built-in kernel, or the package of a plugin."""
    if tactic.__module__.startswith("tactician.builtin_kernels."):
        return tactic.__module__.rpartition(".")[2]
    return tactic.__module__.partition(".")[0].removeprefix("tactician_plugin_")


def used_sources(module: str, folder: Path = SOURCES) -> set[str]:
    """Return the names of all sources that a check of a tactic of ``module`` goes through."""
    found: set[str] = set()
    left = {f"{name}.py" for name in (module, *EVERY_CHECK)}
    while left:
        path = folder / left.pop()
        found.add(path.name)
        if path.suffix == ".py":
            left |= {p.name for p in (*imported_modules(path), *device_code(path))} - found
    return found


def imported_modules(module: Path) -> list[Path]:
    """Return the modules of the same folder that a module's text imports."""
    text = module.read_text(encoding="utf-8")
    names = re.findall(r"builtin_kernels\.cuda\.(\w+)", text)
    for several, one_line in re.findall(r"builtin_kernels\.cuda import (?:\(([\w,\s]+)\)|([\w, ]+))", text):
        names += re.findall(r"\w+", several or one_line)
    return [path for name in names if (path := module.with_name(f"{name}.py")).is_file()]


def device_code(module: Path) -> list[Path]:
    """Return the ``.cu`` and ``.cuh`` files that a module's text names."""
    names = set(re.findall(r"[\"']([\w.]+\.cuh?)[\"']", module.read_text(encoding="utf-8")))
    return sorted(module.parent / name for name in names if (module.parent / name).is_file())


def source_digest(path: Path) -> str:
    """Return the SHA-256 of a file; of a module, with the device code that it reads.

    So a change of a shared header asks for a new run of every kernel that includes it.
    """
    digest = hashlib.sha256(path.read_bytes())
    if path.suffix == ".py":
        for code in device_code(path):
            digest.update(code.name.encode() + b"\0" + code.read_bytes())
    return digest.hexdigest()


def _nearness(worst: tuple[float, float]) -> float:
    return worst[0] / worst[1]
