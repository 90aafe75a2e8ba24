"""Every kernel source has run on a GPU as it stands: the committed record says so."""

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import gpu.tally
import pytest
from gpu.record import (
    HOW_TO_RENEW,
    RECORD,
    Record,
    RecordEntry,
    all_sources,
    checked_module,
    digest_of_all,
    entries,
    example_packages,
    kernel_sources,
    problems,
    read_record,
    source_digest,
    used_sources,
    write_record,
)

ENVIRONMENT = ("GPU", "580.0", {"nvrtc": "13.0.88"}, "2026-11-20")


@dataclass
class Tally:
    checks: dict[str, int]
    worst: dict[str, tuple[float, float]] = field(default_factory=dict)
    failures: dict[str, list[str]] = field(default_factory=dict)


def test_every_kernel_source_ran_on_a_gpu_as_it_stands():
    assert RECORD.exists(), f"{RECORD.name} is missing: no kernel has run on a GPU; {HOW_TO_RENEW}"
    found = problems(read_record(RECORD))
    assert not found, "\n".join([*found, HOW_TO_RENEW])


def test_every_kernel_source_can_be_reached_by_a_check():
    modules = [p.stem for p in kernel_sources() if "\nTACTICS" in p.read_text(encoding="utf-8")]
    reached = set().union(*(used_sources(m) for m in modules))
    assert modules
    assert {p.name for p in kernel_sources()} - reached == set()


def test_the_kernels_of_the_examples_are_held_to_it_too():
    packages = example_packages()
    assert set(packages) == {
        "tactician_pointwise_conv",
        "tactician_rms_norm",
        "tactician_scan",
        "tactician_triton",
    }
    names = set(all_sources())
    assert {"softmax.cu", "tactician-scan/tactician_scan.py"} <= names
    assert "tactician-pointwise-conv/tactician_pointwise_conv/mma_tiles.cu" in names
    assert "tactician-triton/tactician_triton/kernels.py" in names


@pytest.mark.parametrize(
    ("module", "counted"),
    [
        ("tactician.builtin_kernels.cuda.softmax", "softmax"),
        ("tactician_pointwise_conv.ffma", "tactician_pointwise_conv"),
        ("tactician_plugin_tactician_scan", "tactician_scan"),
    ],
)
def test_what_a_check_is_counted_for(module, counted):
    assert checked_module(type("Tactic", (), {"__module__": module})) == counted


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    folder = tmp_path / "cuda"
    folder.mkdir()
    (folder / "common.cuh").write_text("// shared\n")
    (folder / "softmax.cu").write_text("// kernel\n")
    (folder / "softmax.py").write_text('SOURCE = read_source("common.cuh", "softmax.cu")\n')
    (folder / "gemm.py").write_text(
        "from tactician.builtin_kernels.cuda.tiles import TILES\n"
        "from tactician.builtin_kernels.cuda import (\n    swizzle,\n    unknown,\n)\n"
        'SOURCE = read_source("common.cuh")\n'
    )
    (folder / "tiles.py").write_text("TILES = ()\n")
    (folder / "swizzle.py").write_text("SWIZZLES = ()\n")
    (folder / "__init__.py").write_text("")
    (folder / "target.py").write_text("from tactician.builtin_kernels.cuda.device import CudaDevice\n")
    (folder / "device.py").write_text("class CudaDevice: ...\n")
    return folder


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    """Return a folder with an example that brings a kernel, and one that brings none."""
    package = tmp_path / "examples" / "tactician-acme" / "tactician_acme"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("KernelSource(read('k.cu'))\n")
    (package / "k.cu").write_text("// kernel\n")
    (tmp_path / "examples" / "tactician-plain").mkdir()
    (tmp_path / "examples" / "tactician-plain" / "tactician_plain.py").write_text("pass\n")
    return tmp_path / "examples"


def record_of(sources: Path, tally: Tally, examples: Path | None = None) -> Record:
    path = sources.parent / "record.json"
    write_record(path, *ENVIRONMENT, entries(tally, sources, examples or sources))
    return read_record(path)


def test_an_example_is_recorded_by_the_checks_of_its_package(sources, examples):
    run = Tally({"softmax": 1, "gemm": 1, "tactician_acme": 5})
    record = record_of(sources, run, examples)
    names = [f"tactician-acme/tactician_acme/{name}" for name in ("__init__.py", "k.cu")]
    assert [record.sources[name].tests_passed for name in names] == [5, 5]
    assert problems(record, sources, examples) == []
    with (examples / names[1]).open("a") as file:
        file.write("\n")
    # the module names the kernel, so it has changed with it
    assert [f.partition(":")[0] for f in problems(record, sources, examples)] == names
    never = record_of(sources, Tally({"softmax": 1, "gemm": 1}), examples)
    assert len([f for f in problems(never, sources, examples) if "tactician-acme" in f]) == 2


def test_a_whole_run_leaves_no_problem(sources):
    record = record_of(sources, Tally({"softmax": 3, "gemm": 4}))
    assert sorted(record.sources) == [p.name for p in kernel_sources(sources)]
    assert problems(record, sources, sources) == []
    passed = {name: run.tests_passed for name, run in record.sources.items()}
    assert passed["device.py"] == passed["common.cuh"] == 7
    assert passed["softmax.cu"] == passed["softmax.py"] == 3
    assert passed["gemm.py"] == passed["tiles.py"] == passed["swizzle.py"] == 4
    assert record.sources["softmax.cu"].gpu == "GPU"


def test_a_source_that_never_ran_is_named(sources):
    found = problems(record_of(sources, Tally({"gemm": 1})), sources, sources)
    assert [f.partition(":")[0] for f in found] == ["softmax.cu", "softmax.py"]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ("softmax.cu", ["softmax.cu", "softmax.py"]),
        ("softmax.py", ["softmax.py"]),
        ("common.cuh", ["common.cuh", "gemm.py", "softmax.py"]),
    ],
)
def test_a_changed_source_is_named_with_what_includes_it(sources, changed, named):
    record = record_of(sources, Tally({"softmax": 1, "gemm": 1}))
    with (sources / changed).open("a") as file:
        file.write("\n")
    found = problems(record, sources, sources)
    assert [f.partition(":")[0] for f in found] == named
    assert all("changed since it ran on GPU on 2026-11-20" in f for f in found)


def test_a_failed_check_keeps_what_it_went_through_out(sources):
    tally = Tally({"softmax": 1, "gemm": 1}, failures={"softmax": ["softmax(): wrong"]})
    assert [e.source for e in entries(tally, sources, sources)] == ["gemm.py", "swizzle.py", "tiles.py"]


def test_the_error_nearest_to_its_tolerance_is_kept(sources):
    tally = Tally({"softmax": 2, "gemm": 3}, {"softmax": (1e-7, 1e-6), "gemm": (1e-4, 1e-2)})
    found = {e.source: e for e in entries(tally, sources, sources)}
    assert found["common.cuh"] == RecordEntry(
        "common.cuh", source_digest(sources / "common.cuh"), 5, worst_error=1e-7, tolerance=1e-6
    )
    assert found["tiles.py"].worst_error == 1e-4


def test_a_partial_run_keeps_the_entries_of_the_other_sources(tmp_path):
    names = [p.name for p in kernel_sources()[:2]]
    path = tmp_path / "record.json"
    write_record(path, *ENVIRONMENT, [RecordEntry(name, "0" * 64, 1, 0.0, 1e-6) for name in names])
    write_record(path, "other GPU", *ENVIRONMENT[1:], [RecordEntry(names[1], "1" * 64, 2, None, None)])
    runs = read_record(path).sources
    assert (runs[names[0]].gpu, runs[names[1]].gpu) == ("GPU", "other GPU")


def test_an_entry_without_a_source_is_named(sources):
    record = record_of(sources, Tally({"softmax": 1, "gemm": 1}))
    (sources / "gemm.py").unlink()
    assert problems(record, sources, sources) == ["gemm.py: recorded, but there is no such source"]


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": 2, "sources": {}}'])
def test_a_damaged_record_is_an_error(tmp_path, text):
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"record\.json"):
        read_record(path)


@dataclass
class Gpu:
    name: str = "GPU"
    facts: dict[str, str] = field(default_factory=lambda: {"driver": "580.0"})

    def fingerprint(self) -> dict[str, str]:
        return {"nvrtc": "13.0.88", "cublas": "", "device": "GPU"}


def candidate_of(module: str) -> SimpleNamespace:
    tactic = type("Softmax", (), {"__module__": f"tactician.builtin_kernels.cuda.{module}"})()
    return SimpleNamespace(id=f"builtin.{module}()", tactic=tactic)


def test_a_run_that_was_killed_leaves_what_its_processes_saw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = tmp_path / "record.json"
    for worker, error in (("gw0", 1e-4), ("gw1", 3e-4)):
        monkeypatch.setenv("PYTEST_XDIST_WORKER", worker)
        tally = gpu.tally.Tally(gpu.tally.Part.of(record, Gpu()))
        for _ in range(2):
            tally.add(candidate_of("softmax"), error, 1e-3, None)
            tally.keep()  # and then it is killed
    assert gpu.tally.merge_parts(record, "2026-11-27") == 2
    run = read_record(record).sources["softmax.cu"]
    assert (run.tests_passed, run.worst_error, run.tolerance) == (4, 3e-4, 1e-3)
    assert (run.gpu, run.driver, run.versions, run.date) == (
        "GPU",
        "580.0",
        {"nvrtc": "13.0.88"},
        "2026-11-27",
    )
    assert gpu.tally.merge_parts(record) == 0


def test_failures_keep_a_source_out_of_the_record(tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    tally = gpu.tally.Tally(gpu.tally.Part.of(record, Gpu()))
    tally.add(candidate_of("softmax"), 1e-4, 1e-3, None)
    tally.add(candidate_of("softmax"), 1.0, 1e-3, "wrong")
    tally.keep()
    assert gpu.tally.merge_parts(record) == 1
    assert "softmax.cu" not in read_record(record).sources


def test_what_ran_of_other_sources_is_not_taken_for_these(tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    tally = gpu.tally.Tally(gpu.tally.Part.of(record, Gpu()))
    tally.add(candidate_of("softmax"), 1e-4, 1e-3, None)
    tally.keep()
    (part,) = tmp_path.iterdir()
    part.write_text(part.read_text().replace(digest_of_all(), "0" * 64))
    assert gpu.tally.merge_parts(record) == 0
    assert not record.exists()
    assert list(tmp_path.iterdir()) == []
