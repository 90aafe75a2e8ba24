"""What a candidate does to the process that measures it, the build survives, and knows who it was."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tactician
from tactician import supervisor, worker_process
from tactician.config import BuilderConfig
from tactician.engine import Engine
from tactician.errors import BuildCancelledError, ConfigError, DeviceError, PluginError
from tactician.plugins.manager import load_plugins
from tactician.tactics.cache import TimingCache
from tactician.tactics.record import CandidateRecord, Outcome
from tactician.worker import Opening, Request
from tactician.worker_process import WorkerProcess

PLUGIN = """
import ctypes, os, sys, time
from dataclasses import dataclass
from typing import ClassVar
import numpy as np
from tactician import Tactic, hookimpl

BUILD = {build}


@dataclass(frozen=True)
class Bad(Tactic):
    op: ClassVar[str] = "ai.onnx::Neg"
    target: ClassVar[str] = "cpu"

    def decline(self, signature, device):
        return None if signature.is_static else "needs static shapes"

    def prepare(self, signature, device):
        {prepare}
        runs = 0

        def launch(inputs, outputs, workspace, stream):
            nonlocal runs
            runs += 1
            {run}
            np.negative(inputs[0], out=outputs[0])

        return launch


@dataclass(frozen=True)
class Good(Bad):
    def prepare(self, signature, device):
        {good}

        def launch(inputs, outputs, workspace, stream):
            np.negative(inputs[0], out=outputs[0])

        return launch


@dataclass(frozen=True)
class Raises(Bad):
    def prepare(self, signature, device):
        raise ValueError("no luck \\udcff")


@hookimpl
def tactics():
    return [Bad, Good, Raises]
"""
SEGFAULT = "ctypes.string_at(0)"
HANG = "ctypes.PyDLL(None).pause()"  # in native code, with Python's lock held
NOTHING = "pass"


def model() -> onnx.ModelProto:
    return onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 20]>\n'
        "g (float[64, 8] x) => (float[64, 8] y) { h = Relu(x)  [middle] n = Neg(h)  y = Abs(n) }"
    )


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Engine]:
    def run(prepare: str = NOTHING, run: str = NOTHING, good: str = NOTHING, **options: Any) -> Engine:
        path = tmp_path / "bad.py"
        path.write_text(
            PLUGIN.format(
                build=os.getpid(), prepare=prepare, good=good, run=run.replace("\n", "\n" + 12 * " ")
            )
        )
        options = {
            "target": "cpu",
            "isolate": True,
            "threads": 2,
            "plugins": (str(path), "builtin"),
            "timing_cache": tmp_path / "timing.sqlite",
            "candidate_timeout": 3.0,
            **options,
        }
        return tactician.build(model(), BuilderConfig(**options))

    return run


def record(engine: Engine, tactic: str = "bad.bad()") -> CandidateRecord:
    (decision,) = [d for d in engine.report.decisions if "middle" in d.nodes]
    return next(c for c in decision.candidates if c.tactic == tactic)


def check(engine: Engine) -> None:
    x = np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)
    plugins = load_plugins(BuilderConfig(plugins=("builtin",)))
    assert "bad" not in {p.name for p in engine.plan.plugins}
    got = tactician.Session(engine, plugins=plugins).run({"x": x})["y"]
    assert np.array_equal(got, np.maximum(x, 0))


def test_a_worker_finds_what_the_build_would(build: Callable[..., Engine], tmp_path: Path) -> None:
    apart = build()
    here = build(isolate=False, timing_cache=tmp_path / "other.sqlite")
    for one, other in zip(apart.report.decisions, here.report.decisions, strict=True):
        assert [c.tactic for c in one.candidates] == [c.tactic for c in other.candidates]
        timed = [[c.tactic for c in d.candidates if c.timing] for d in (one, other)]
        assert timed[0] == timed[1]
    assert record(apart).error == record(here).error
    again = build()
    assert all(c.cached for d in again.report.decisions for c in d.candidates if c.timing)


def test_one_worker_serves_all_stages_and_tells_where_its_time_went(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[WorkerProcess] = []
    asked: list[int] = []

    class Counted(WorkerProcess):
        def __init__(self, opening: Opening) -> None:
            started.append(self)
            super().__init__(opening)

        def begin(self, request: Request) -> None:
            asked.append(len(request.signatures))
            super().begin(request)

    monkeypatch.setattr(supervisor, "WorkerProcess", Counted)
    rng = np.random.default_rng(0)
    weights = {n: rng.standard_normal((64, 64)).astype(np.float32) for n in ("v", "w")}
    siblings = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 20]>\n'
        "g (float[64, 64] x) => (float[64, 64] y) { h = Relu(x)  a = MatMul(h, v)  b = MatMul(h, w)  y = Add(a, b) }"
    )
    siblings.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in weights.items())
    config = BuilderConfig(
        target="cpu", isolate=True, timing_cache=tmp_path / "timing.sqlite", plugins=("builtin",)
    )
    report = tactician.build(siblings, config).report
    assert len(started) == 1
    assert len(asked) == 2, "products beside their merged form, then what is left"
    assert {"ask", "compile", "check", "time", "ask (build)"} <= set(report.measuring)
    assert all(seconds >= 0 for seconds in report.measuring.values())
    assert report.measuring["check"] > 0
    again = tactician.build(siblings, config).report
    assert len(started) == 1, "over a full cache there is nothing to start a process for"
    assert [d.chosen for d in again.decisions] == [d.chosen for d in report.decisions]
    assert set(again.measuring) == {"ask (build)"}


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ({"run": SEGFAULT}, "SIGSEGV"),
        ({"prepare": SEGFAULT}, "SIGSEGV"),
        ({"run": "os._exit(7)"}, "exit code 7"),
        ({"run": HANG}, "did not end within 3 s"),
        # right whenever it is checked, and then no more: found while it is timed beside others
        ({"run": f"if runs > 12: {SEGFAULT}"}, "SIGSEGV"),
    ],
    ids=["run", "prepare", "exit", "hang", "race"],
)
def test_what_takes_the_process_down_is_left_out(
    build: Callable[..., Engine], code: dict[str, str], words: str
) -> None:
    engine = build(**code)
    bad = record(engine)
    assert bad.outcome is Outcome.FAILED
    assert words in bad.reason
    assert record(engine, "bad.good()").outcome in (Outcome.CHOSEN, Outcome.TIE, Outcome.SLOWER)
    assert record(engine, "bad.raises()").reason.startswith("prepare raised ValueError: no luck")
    if record(engine, "bad.good()").outcome is not Outcome.CHOSEN:
        check(engine)
    start = time.perf_counter()
    again = build(**code)
    assert time.perf_counter() - start < 3.0, "the cache remembers: nothing runs again"
    assert record(again).outcome is Outcome.FAILED
    assert record(again).cached


def test_what_hangs_is_blamed_and_not_what_is_prepared_beside_it(
    build: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With Python's lock held, the other one can't tell that it has ended long ago."""
    monkeypatch.setattr(worker_process, "PREPARE_MULTIPLE", 1)
    engine = build(prepare=f"time.sleep(0.2); {HANG}", good="time.sleep(0.5)")
    assert "did not end within 3 s (prepare)" in record(engine).reason
    assert record(engine, "bad.good()").outcome in (Outcome.CHOSEN, Outcome.TIE, Outcome.SLOWER)


def test_what_a_worker_started_ends_with_it(
    build: Callable[..., Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_process, "PREPARE_MULTIPLE", 1)
    started = tmp_path / "compiler"
    compiler = (
        "import subprocess; child = subprocess.Popen(['sleep', '1000']); "
        f"open({str(started)!r}, 'a').write(str(child.pid) + chr(10)); child.wait()"
    )
    assert record(build(prepare=compiler)).outcome is Outcome.FAILED
    compilers = [int(line) for line in started.read_text().split()]
    assert len(compilers) == 2
    wait_for(lambda: all(not Path(f"/proc/{p}").exists() or is_zombie(p) for p in compilers))


def test_who_was_too_slow_for_one_limit_is_tried_with_a_larger_one(build: Callable[..., Engine]) -> None:
    slow = "time.sleep(1.5)"
    assert "did not end within 1 s" in record(build(run=slow, candidate_timeout=1.0)).reason
    assert record(build(run=slow, candidate_timeout=0.9)).cached
    assert record(build(run=slow, candidate_timeout=30.0)).outcome is Outcome.SLOWER


def test_an_accident_is_no_verdict(build: Callable[..., Engine], tmp_path: Path) -> None:
    """What crashes once is asked again in a new process."""
    flag = tmp_path / "crashed"
    once = f"if not os.path.exists({str(flag)!r}): open({str(flag)!r}, 'w').close(); {SEGFAULT}"
    assert record(build(run=once)).outcome in (Outcome.CHOSEN, Outcome.TIE, Outcome.SLOWER)
    assert flag.exists()


def test_without_a_cache_it_is_found_out_all_the_same(build: Callable[..., Engine], tmp_path: Path) -> None:
    assert record(build(run=SEGFAULT, use_timing_cache=False)).outcome is Outcome.FAILED
    assert not (tmp_path / "timing.sqlite").exists()


def test_a_worker_that_fails_by_itself_ends_the_build(build: Callable[..., Engine], tmp_path: Path) -> None:
    dies = "import os\nif os.getpid() != BUILD: print('out of luck', flush=True) or os._exit(3)"
    path = tmp_path / "dies.py"
    path.write_text(
        f"BUILD = {os.getpid()}\n{dies}\n"
        + PLUGIN.format(build=0, prepare=NOTHING, good=NOTHING, run=NOTHING)
    )
    # the second worker finds out what ended the first
    with pytest.raises(PluginError, match=r"'dies' .* is quarantined: importing it took down a process"):
        build(plugins=(str(path), "builtin"))


def test_a_worker_that_ends_for_no_reason_that_is_found_ends_the_build(
    build: Callable[..., Engine], tmp_path: Path
) -> None:
    # what its hooks do is no candidate's doing, and it is imported by then
    path = tmp_path / "dies.py"
    hook = "@hookimpl\ndef ops():\n    if os.getpid() != BUILD: print('out of luck', flush=True) or os._exit(3)\n    return []\n"
    text = PLUGIN.format(build=os.getpid(), prepare=NOTHING, good=NOTHING, run=NOTHING)
    path.write_text(f"{text}\n{hook}")
    with pytest.raises(DeviceError, match=r"exit code 3.*no candidate to blame: out of luck.*--no-isolate"):
        build(plugins=(str(path), "builtin"))


def test_cancelling_ends_the_worker_and_keeps_what_was_measured(
    build: Callable[..., Engine], tmp_path: Path
) -> None:
    workers = []

    def watch(progress: Any) -> None:
        if progress.phase == "measure" and progress.done == 2:
            workers.extend(children())
            raise KeyboardInterrupt

    path = tmp_path / "bad.py"
    path.write_text(PLUGIN.format(build=0, prepare=NOTHING, good=NOTHING, run=NOTHING))
    config = BuilderConfig(
        target="cpu", isolate=True, timing_cache=tmp_path / "timing.sqlite", plugins=(str(path), "builtin")
    )
    with pytest.raises(BuildCancelledError, match="goes on from there"):
        tactician.build(model(), config, progress=watch)
    assert workers
    assert not set(workers) & set(children())
    assert TimingCache(tmp_path / "timing.sqlite").info().signatures >= 2


def children() -> list[int]:
    """Return the processes that this one has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid() and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def test_a_worker_dies_with_its_build(tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    started = tmp_path / "started"
    hang = f"open({str(started)!r}, 'w').write(str(os.getpid())); {HANG}"
    path.write_text(PLUGIN.format(build=0, prepare=NOTHING, good=NOTHING, run=hang))
    (tmp_path / "m.onnx").write_bytes(model().SerializeToString())
    script = textwrap.dedent(f"""
        import tactician
        config = tactician.BuilderConfig(
            target="cpu", isolate=True, use_timing_cache=False, plugins=({str(path)!r},)
        )
        tactician.build({str(tmp_path / "m.onnx")!r}, config)
    """)
    build = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    wait_for(lambda: started.exists() and started.read_text() != "")
    worker = int(started.read_text())
    os.kill(worker, 0)
    build.kill()
    build.wait()
    wait_for(lambda: not Path(f"/proc/{worker}").exists() or is_zombie(worker))


def is_zombie(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_what_another_process_can_not_have_is_an_error(build: Callable[..., Engine]) -> None:
    plugins = load_plugins(BuilderConfig(plugins=("builtin",)))
    with pytest.raises(ConfigError, match="name the target"):
        tactician.build(model(), BuilderConfig(isolate=True), target=plugins.target("cpu"))
    assert tactician.build(
        model(), BuilderConfig(use_timing_cache=False), target=plugins.target("cpu")
    ).report.decisions
