"""The record of the last GPU run: which kernel sources ran on which GPU, with what result.

``tests/gpu`` writes it to ``tests/gpu/record.json``, which is committed; ``tests/host/test_record.py`` fails where a
source has changed since, so that nothing lands that never ran on a GPU.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

FORMAT = 1
ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "builtin_kernels" / "cuda"
RECORD = Path(__file__).with_name("record.json")
HOW_TO_RENEW = (
    "run `python -m pytest tests/gpu` on a machine with an NVIDIA GPU and commit tests/gpu/record.json"
)


class RecordEntry(msgspec.Struct, frozen=True):
    """What ran of one source file.

    Parameters
    ----------
    source
        File name within ``builtin_kernels/cuda``.
    sha256
        ``source_digest`` of the file as it ran.
    tests_passed
        Checks of candidates against the reference that this source took part in and that passed.
    worst_error
        Largest relative error ‖out − ref‖ / ‖ref‖ among them.
    """

    source: str
    sha256: str
    tests_passed: int
    worst_error: float


class RecordedRun(msgspec.Struct, frozen=True):
    """An entry with where and when it was made; ``versions`` by package name."""

    sha256: str
    tests_passed: int
    worst_error: float
    gpu: str
    driver: str
    versions: dict[str, str]
    date: str


class Record(msgspec.Struct, frozen=True):
    """The whole file."""

    format: int
    sources: dict[str, RecordedRun]


class Recorder:
    """Collects results of checks while the GPU tests run, and makes entries of them.

    A check of a tactic counts for the module that defines it, for the device code that this module reads, and for
    every module without tactics of its own (device, compiler …), which all checks go through.
    """

    def __init__(self, sources: Path = SOURCES) -> None:
        self._sources = sources
        self._errors: dict[str, list[float]] = {}
        self._failed: set[str] = set()

    def passed(self, module: str, error: float) -> None:
        """Count a passed check of a tactic that ``module`` (a dotted name) defines; ``error`` as in ``RecordEntry``."""
        for name in self._credited(module):
            self._errors.setdefault(name, []).append(error)

    def failed(self, module: str) -> None:
        """Keep what a failed check touched out of the record."""
        self._failed.update(self._credited(module))

    def entries(self) -> list[RecordEntry]:
        """Return an entry for every source that was checked and never failed."""
        return [
            RecordEntry(name, source_digest(self._sources / name), len(errors), max(errors))
            for name, errors in sorted(self._errors.items())
            if name not in self._failed
        ]

    def _credited(self, module: str) -> set[str]:
        own = self._sources / f"{module.rpartition('.')[2]}.py"
        shared = {
            p.name for p in self._sources.glob("*.py") if "TACTICS" not in p.read_text(encoding="utf-8")
        }
        return {own.name, *(p.name for p in device_code(own)), *shared}


def kernel_sources(folder: Path = SOURCES) -> list[Path]:
    """Return every file that the record must cover."""
    return sorted(p for p in folder.iterdir() if p.suffix in (".cu", ".cuh", ".py"))


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


def write_record(
    path: Path, gpu: str, driver: str, versions: Mapping[str, str], date: str, entries: Iterable[RecordEntry]
) -> None:
    """Write ``entries`` to the record at ``path``; sources that did not run keep their entry, if they still exist."""
    sources = dict(read_record(path).sources) if path.exists() else {}
    kept = {p.name for p in kernel_sources()}
    for e in entries:
        run = RecordedRun(
            e.sha256, e.tests_passed, e.worst_error, gpu, driver, dict(sorted(versions.items())), date
        )
        sources[e.source] = run
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
        raise ValueError(f"{path} is no record of a GPU run: {error}") from error
    if record.format != FORMAT:
        raise ValueError(f"{path} has format {record.format}, not {FORMAT}; {HOW_TO_RENEW}")
    return record


def problems(record: Record, folder: Path = SOURCES) -> list[str]:
    """Return, in words, every source that the record does not vouch for, and every entry without a source."""
    found = []
    sources = kernel_sources(folder)
    for path in sources:
        run = record.sources.get(path.name)
        if run is None:
            found.append(f"{path.name}: never ran on a GPU")
        elif run.sha256 != source_digest(path):
            found.append(f"{path.name}: changed since it ran on {run.gpu} on {run.date}")
        elif run.tests_passed < 1:
            found.append(f"{path.name}: no test passed on {run.gpu} on {run.date}")
    known = {path.name for path in sources}
    found += [
        f"{name}: recorded, but there is no such source"
        for name in sorted(record.sources)
        if name not in known
    ]
    return found
