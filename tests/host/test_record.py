"""Every kernel source has run on a GPU as it stands: the committed record says so."""

from pathlib import Path

import pytest
from gpu.record import (
    HOW_TO_RENEW,
    RECORD,
    Record,
    RecordEntry,
    Recorder,
    kernel_sources,
    problems,
    read_record,
    source_digest,
    write_record,
)

ENVIRONMENT = ("GPU", "580.0", {"cuda-core": "1.2.2"}, "2026-11-20")


def test_every_kernel_source_ran_on_a_gpu_as_it_stands():
    assert RECORD.exists(), f"{RECORD.name} is missing: no kernel has run on a GPU; {HOW_TO_RENEW}"
    found = problems(read_record(RECORD))
    assert not found, "\n".join([*found, HOW_TO_RENEW])


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    folder = tmp_path / "cuda"
    folder.mkdir()
    (folder / "common.cuh").write_text("// shared\n")
    (folder / "softmax.cu").write_text("// kernel\n")
    (folder / "softmax.py").write_text('SOURCE = read_source("common.cuh", "softmax.cu")\nTACTICS = []\n')
    (folder / "gemm.py").write_text('SOURCE = read_source("common.cuh")\nTACTICS = []\n')
    (folder / "device.py").write_text("class Device: ...\n")
    return folder


def record_of(sources: Path, *modules: str) -> Record:
    recorder = Recorder(sources)
    for module in modules:
        recorder.passed(f"tactician.builtin_kernels.cuda.{module}", 1e-7)
    path = sources.parent / "record.json"
    write_record(path, *ENVIRONMENT, recorder.entries())
    return read_record(path)


def test_a_whole_run_leaves_no_problem(sources):
    record = record_of(sources, "softmax", "gemm")
    assert sorted(record.sources) == [p.name for p in kernel_sources(sources)]
    assert problems(record, sources) == []
    assert record.sources["device.py"].tests_passed == 2  # shared by both
    assert record.sources["softmax.cu"].tests_passed == 1
    assert record.sources["softmax.cu"].gpu == "GPU"


def test_a_source_that_never_ran_is_named(sources):
    assert problems(record_of(sources, "gemm"), sources) == [
        "softmax.cu: never ran on a GPU",
        "softmax.py: never ran on a GPU",
    ]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ("softmax.cu", ["softmax.cu", "softmax.py"]),
        ("softmax.py", ["softmax.py"]),
        ("common.cuh", ["common.cuh", "gemm.py", "softmax.py"]),
    ],
)
def test_a_changed_source_is_named_with_what_includes_it(sources, changed, named):
    record = record_of(sources, "softmax", "gemm")
    with (sources / changed).open("a") as file:
        file.write("\n")
    found = problems(record, sources)
    assert [f.partition(":")[0] for f in found] == named
    assert all("changed since it ran on GPU on 2026-11-20" in f for f in found)


def test_a_failed_check_keeps_its_sources_out(sources):
    recorder = Recorder(sources)
    recorder.passed("gemm", 1e-7)
    recorder.passed("softmax", 1e-7)
    recorder.failed("softmax")
    assert [e.source for e in recorder.entries()] == ["gemm.py"]  # what both went through is in doubt too


def test_worst_error_is_kept(sources):
    recorder = Recorder(sources)
    for error in (1e-7, 3e-4, 2e-6):
        recorder.passed("softmax", error)
    entry = {e.source: e for e in recorder.entries()}["softmax.cu"]
    assert entry == RecordEntry("softmax.cu", source_digest(sources / "softmax.cu"), 3, 3e-4)


def test_a_partial_run_keeps_the_entries_of_the_other_sources(sources, tmp_path):
    names = [p.name for p in kernel_sources()[:2]]
    path = tmp_path / "record.json"
    write_record(path, *ENVIRONMENT, [RecordEntry(name, "0" * 64, 1, 0.0) for name in names])
    write_record(path, "other GPU", *ENVIRONMENT[1:], [RecordEntry(names[1], "1" * 64, 2, 0.0)])
    runs = read_record(path).sources
    assert (runs[names[0]].gpu, runs[names[1]].gpu) == ("GPU", "other GPU")


def test_an_entry_without_a_source_is_named(sources):
    record = record_of(sources, "softmax", "gemm")
    (sources / "gemm.py").unlink()
    assert problems(record, sources) == ["gemm.py: recorded, but there is no such source"]


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": 2, "sources": {}}'])
def test_a_damaged_record_is_an_error(tmp_path, text):
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"record\.json"):
        read_record(path)
