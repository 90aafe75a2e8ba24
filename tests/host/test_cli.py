"""The command line: results on stdout, everything else on stderr, exit codes, no tracebacks."""

from __future__ import annotations

import json
import logging
import os
import re
import runpy
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec
import onnx
import pytest
from engines import CHOSEN, make_engine, make_model
from tactician import cli, errors
from tactician.cli import COMMANDS, EXIT_BUG, main
from tactician.cli.options import Feed, Names, Rule, Shape, Size, make_feeds
from tactician.plan import Place, TensorSpec

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Return a function that runs the command line and returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("TACTICIAN_DEBUG", raising=False)

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(a) for a in arguments])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def engine_file(tmp_path: Path) -> Path:
    path = tmp_path / "m.tactician"
    make_engine().save(path)
    return path


def test_help_lists_every_command_with_its_own_first_line(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    for name, summary in COMMANDS.items():
        assert re.search(rf"{name}\s+{re.escape(summary)}", out)
        command = cli.cli.get_command(click.Context(cli.cli), name)
        assert command is not None
        assert (command.help or "").splitlines()[0] == summary
        assert command.name == name
        for sub in getattr(command, "commands", {"": command}).values():
            assert "as_json" in {p.name for p in sub.params}


def test_every_option_of_every_command_is_explained() -> None:
    for name in COMMANDS:
        pending = [cli.cli.get_command(click.Context(cli.cli), name)]
        while pending:
            command = pending.pop()
            assert command is not None
            pending += getattr(command, "commands", {}).values()
            for parameter in command.params:
                if isinstance(parameter, click.Option):
                    assert parameter.help, f"{name} {parameter.opts}"


def test_unknown_commands_and_options_exit_with_2(run: Run) -> None:
    assert run("bild")[0] == 2
    assert run("build", "--no-such-option")[0] == 2
    assert run("build")[0] == 2
    assert run()[0] == 2


def test_the_reference_in_the_documentation_is_up_to_date() -> None:
    make = runpy.run_path(str(ROOT / "docs" / "make_cli_reference.py"))
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert make["updated"](text) == text, "run `python docs/make_cli_reference.py`"


def test_the_exit_codes_in_the_documentation() -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    documented = {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    classes = [
        c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.TacticianError)
    ]
    assert documented == {0, 2, EXIT_BUG} | {c.exit_code for c in classes}


def test_an_error_is_one_line_and_its_exit_code(run: Run) -> None:
    code, out, err = run("plugins", "info", "nothing")
    assert (code, out) == (1, "")
    assert err.startswith("error: plugin 'nothing' is not installed")
    assert "Traceback" not in err


def test_an_error_under_json_is_a_document(run: Run) -> None:
    code, out, err = run("plugins", "info", "nothing", "--json")
    assert json.loads(out)["error"] == {
        "type": "UnknownPluginError",
        "message": err.removeprefix("error: ").strip(),
        "exit_code": code,
    }


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (KeyError("x"), EXIT_BUG, "TACTICIAN_DEBUG=1"),
        (KeyboardInterrupt(), 130, "cancelled"),
        (errors.BuildCancelledError("cancelled"), 130, "cancelled"),
        (errors.LockMismatchError("differs"), 5, "differs"),
        (errors.AccuracyError("far off"), 3, "far off"),
        (RecursionError("deep"), EXIT_BUG, "bug"),
    ],
)
def test_whatever_a_command_raises(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, text: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("tactician.plugins.manager.survey_plugins", fail)
    result, out, err = run("plugins")
    assert (result, out) == (code, "")
    assert text in err
    assert "Traceback" not in err
    if isinstance(error, Exception):
        monkeypatch.setenv("TACTICIAN_DEBUG", "1")
        with pytest.raises(type(error)):
            main(["plugins"])


def test_what_plugins_print_stays_out_of_the_result(run: Run, tmp_path: Path) -> None:
    (tmp_path / "chatty.py").write_text("print('hello from a plugin')\n")
    code, out, err = run("plugins", "--load", "-p", "./chatty.py", "--json")
    assert code == 0
    assert {p["name"] for p in json.loads(out)} >= {"builtin", "chatty"}
    assert "hello from a plugin" in err


def test_warnings_of_the_library_reach_stderr_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from tactician.plugins import manager

    def survey(_: object) -> dict[str, Any]:
        for _ in range(3):
            logging.getLogger("tactician.some.part").warning("look %s", "here")
        return {}

    monkeypatch.setattr(manager, "survey_plugins", survey)
    _, out, err = run("plugins", "--json")
    assert json.loads(out) == []
    assert err == "warning: look here\n"


def test_colour_follows_no_color(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from tactician.cli import main; main(['plugins', 'info', 'nothing'])"]
    done = subprocess.run(
        command, capture_output=True, cwd=tmp_path, env={**os.environ, "NO_COLOR": "1"}, timeout=60
    )
    assert b"\x1b" not in done.stderr


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    code = "from tactician.cli import main; raise SystemExit(main(['tactics']))"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()


def test_plugins(run: Run) -> None:
    code, out, _ = run("plugins")
    assert code == 0
    assert re.search(r"^builtin\s+\S+\s+found\s+tactician\s", out, re.MULTILINE)
    _, out, _ = run("plugins", "--load", "--json")
    (plugin,) = [p for p in json.loads(out) if p["name"] == "builtin"]
    assert plugin["state"] == "ready"
    assert re.fullmatch("[0-9a-f]{64}", plugin["digest"])
    assert "builtin.onnx_runtime" in plugin["tactics"]
    _, out, _ = run("plugins", "--no-plugin", "builtin")
    assert "disabled by the caller" in out


def test_plugins_info(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("plugins", "info", "builtin")
    assert code == 0
    assert re.search(r"^state +found$", out, re.MULTILINE)
    assert "tactics" not in out
    _, out, _ = run("plugins", "info", "builtin", "--load")
    assert re.search(r"^targets +cpu, cuda$", out, re.MULTILINE)
    code, _, err = run("plugins", "builtin")
    assert code == 2
    assert "tactician plugins info builtin" in err
    code, _, err = run("plugins", "info", "acme.py")
    assert code == 1
    assert "tactician plugins list -p acme.py" in err


def test_plugins_info_and_retry_know_what_failed(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from tactician import Tactic, hookimpl\n"
        "@dataclass(frozen=True)\n"
        "class Wrong(Tactic):\n"
        "    op, target = 'ai.onnx::Softmax', 'cpu'\n"
        "    def prepare(self, signature, device):\n"
        "        return lambda inputs, outputs, workspace, stream: outputs[0].fill(1)\n"
        "@hookimpl\n"
        "def tactics(): return [Wrong]\n"
    )
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 20]> g (float[4, 8] x) => (float[4, 8] y) { y = Softmax(x) }'
    )
    onnx.save(model, tmp_path / "m.onnx")
    assert run("build", "m.onnx", "--target", "cpu", "-p", "./mine.py")[0] == 0
    _, out, _ = run("plugins", "info", "mine", "-p", "./mine.py", "--json")
    (failure,) = json.loads(out)["failures"]
    assert (failure["tactic"], failure["outcome"]) == ("mine.wrong()", "wrong")
    _, out, _ = run("plugins", "retry", "mine", "-p", "./mine.py")
    assert out.strip() == "mine: 1 verdict forgotten"
    _, out, _ = run("plugins", "info", "mine", "-p", "./mine.py", "--json")
    assert json.loads(out)["failures"] == []


def test_tactics(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from tactician import Tactic, hookimpl\n"
        "@dataclass(frozen=True)\n"
        "class Quick(Tactic):\n"
        "    op = ('ai.onnx::Conv', 'ai.onnx::Relu')\n"
        "    target = 'cpu'\n"
        "    library = 'lib'\n"
        "    block: int = 3\n"
        "    def prepare(self, signature, device): raise NotImplementedError\n"
        "@hookimpl\n"
        "def tactics(): return [Quick]\n"
    )
    arguments = ("tactics", "-p", "./mine.py", "--no-plugin", "builtin")
    code, out, _ = run(*arguments, "--op", "Conv", "--json")
    assert code == 0
    (tactic,) = json.loads(out)
    assert tactic == {
        "id": "mine.quick", "plugin": "mine", "target": "cpu", "library": "lib", "version": 1,
        "ops": ["ai.onnx::Conv", "ai.onnx::Relu"], "fields": ["block"],
    }  # fmt: skip
    assert "mine.quick" in run(*arguments)[1]
    assert "mine.quick" not in run(*arguments, "--op", "Gemm")[1]
    assert "mine.quick" not in run(*arguments, "--target", "cuda")[1]


def test_explain(run: Run, engine_file: Path) -> None:
    code, out, _ = run("explain", engine_file)
    assert code == 0
    assert out.count("pin it:") == 2
    code, out, _ = run("explain", engine_file, "layer2*", "--json")
    (decision,) = json.loads(out)
    assert (code, decision["chosen"]) == (0, CHOSEN)
    code, _, err = run("explain", engine_file, "layer3.fc")
    assert code == 1
    assert "did you mean" in err


def test_inspect(run: Run, engine_file: Path, tmp_path: Path) -> None:
    layers = tmp_path / "layers.json"
    code, out, _ = run("inspect", engine_file, "--export-layer-info", layers)
    assert code == 0
    assert "WARNING  1 node of acme::Exotic on the cpu, not on gadget" in out
    assert CHOSEN in out
    assert len(json.loads(layers.read_text())["Layers"]) == 3
    plain = json.loads(run("inspect", engine_file, "--json")[1])
    assert plain["target"] == "gadget"
    assert plain["build"]["device"]["name"] == "Gadget 9000"
    assert run("inspect", engine_file, "--export-layer-info", tmp_path / "no" / "folder")[0] == 1


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a model, and the engine and lock file that `tactician build` made of it."""
    folder = tmp_path_factory.mktemp("built")
    (folder / "m.onnx").write_bytes(make_model().SerializeToString())
    # the user's own cache stays out: this fixture comes before the one that moves it
    cache = ("--timing-cache", str(folder / "timing.sqlite"), "--threads", "1")
    assert main(["build", str(folder / "m.onnx"), "--target", "cpu", "--shapes", "x:2x3", *cache]) == 0
    return folder


def test_build_says_what_it_did(run: Run, built: Path, tmp_path: Path) -> None:
    engine = tmp_path / "other.tactician"
    code, out, err = run("build", built / "m.onnx", "-o", engine, "--target", "cpu", "--shapes", "x:2x3")
    assert code == 0
    assert engine.is_file()
    assert (tmp_path / "other.lock.json").is_file()
    assert "plugins: builtin" in err
    for part in (
        "device   cpu",
        "nodes    2",
        "memory   cpu",
        "latency ",
        f"why      tactician explain {engine}",
    ):
        assert part in out
    assert "\x1b" not in out + err


def test_build_as_json(run: Run, built: Path, tmp_path: Path) -> None:
    engine = tmp_path / "other.tactician"
    arguments = ("--target", "cpu", "--shapes", "x:2x3", "--json", "--no-timing-cache")
    code, out, _ = run("build", built / "m.onnx", "-o", engine, *arguments)
    plain = json.loads(out)
    assert (code, plain["engine"], plain["nodes"], plain["target"]) == (0, str(engine), 2, "cpu")
    assert plain["latency_seconds"] > 0
    assert plain["fallbacks"] == []


def test_a_lock_file_replays(run: Run, built: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.tactician"
    lock = built / "m.lock.json"
    before = lock.read_text()
    arguments = ("--target", "cpu", "--shapes", "x:2x3", "--threads", "1", "--locked", "--lock", lock)
    code, out, _ = run("build", built / "m.onnx", "-o", again, *arguments)
    assert code == 0
    assert "chosen by lock" in out
    assert lock.read_text() == before
    from tactician import Engine

    assert Engine.load(again).plan.encode() == Engine.load(built / "m.tactician").plan.encode()


def test_dynamic_shapes_have_no_latency(run: Run, built: Path, tmp_path: Path) -> None:
    engine = tmp_path / "d.tactician"
    code, out, _ = run("build", built / "m.onnx", "-o", engine, "--target", "cpu")
    assert code == 0
    assert "not measured: shapes are dynamic" in out
    assert run("run", engine)[0] == 1
    assert run("run", engine, "-i", "x=random:4x3", "--check", "reference", built / "m.onnx")[0] == 0


def test_ctrl_c_ends_a_build_with_130(
    run: Run, built: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from tactician.cli.progress import ProgressPrinter

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ProgressPrinter, "__call__", interrupt)
    engine = tmp_path / "x.tactician"
    code, _, err = run(
        "build", built / "m.onnx", "-o", engine, "--target", "cpu", "--shapes", "x:2x3", "--no-timing-cache"
    )
    assert code == 130
    assert "error: " in err
    assert not engine.exists()


@pytest.mark.parametrize("runtime", ["onnxruntime", "reference"])
def test_run_checks_against_another_runtime(run: Run, built: Path, tmp_path: Path, runtime: str) -> None:
    import numpy as np

    x = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    code, out, _ = run(
        "run",
        built / "m.tactician",
        "-i",
        "x=x.npy",
        "--check",
        runtime,
        built / "m.onnx",
        "--output-dir",
        "o",
        "--json",
    )
    (check,) = json.loads(out)["check"]
    assert (code, check["name"], check["ok"]) == (0, "y", True)
    y = np.load(tmp_path / "o" / "y.npy")
    weight = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    expected = np.maximum(x.astype(np.float64) @ weight, 0)
    assert np.linalg.norm(y - expected) <= 1e-6 * np.linalg.norm(expected)


def test_run_prints_what_came_out(run: Run, built: Path) -> None:
    code, out, _ = run("run", built / "m.tactician")
    assert code == 0
    assert re.search(r"^y\s+float32\[2, 5\]", out, re.MULTILINE)


def test_a_check_over_its_tolerance_exits_with_3(run: Run, built: Path, tmp_path: Path) -> None:
    (tmp_path / "n.onnx").write_bytes(make_model(scale=1.01).SerializeToString())
    code, out, err = run("run", built / "m.tactician", "--check", "onnxruntime", tmp_path / "n.onnx")
    assert code == 3
    assert "OVER" in out
    assert "over its tolerance" in err
    arguments = ("--check", "onnxruntime", tmp_path / "n.onnx", "--tolerance", "0.1")
    assert run("run", built / "m.tactician", *arguments)[0] == 0


def test_bench_and_compare(run: Run, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tactician.cli.bench.WARM_UP_SECONDS", 0.05)
    monkeypatch.setattr("tactician.cli.bench.ROUND_SECONDS", 0.005)
    engine = built / "m.tactician"
    code, out, _ = run("bench", engine, "--rounds", 6, "--json")
    (tmp_path / "last.json").write_text(out)
    summary = json.loads(out)["this"]["engine"]
    assert code == 0
    assert 0 < summary["minimum"] <= summary["low"] <= summary["median"] <= summary["high"] <= summary["p99"]
    code, out, _ = run("bench", engine, "--rounds", 6, "--compare", engine)
    assert code == 0
    assert re.search(r"^(SAME|UNSURE|FASTER|SLOWER): engine time", out, re.MULTILINE)
    assert run("bench", engine, "--rounds", 6, "--compare", tmp_path / "last.json")[0] == 0
    for text in ("{}", "no json", '{"this": {"engine": 3}}'):
        (tmp_path / "bad.json").write_text(text)
        code, _, err = run("bench", engine, "--compare", tmp_path / "bad.json")
        assert code == 1
        assert "bad.json" in err


def test_profile(run: Run, built: Path, tmp_path: Path) -> None:
    arguments = ("--iterations", 3, "--export-profile", tmp_path / "p.json")
    code, out, _ = run("inspect", built / "m.tactician", "--profile", *arguments)
    assert code == 0
    assert "share" in out
    head, *rows = json.loads((tmp_path / "p.json").read_text())
    assert head == {"count": 3}
    assert sum(row["percentage"] for row in rows) == pytest.approx(100)


def test_explain_of_a_real_build(run: Run, built: Path) -> None:
    code, out, _ = run("explain", built / "m.tactician")
    assert code == 0
    assert out.count("chosen by ") == 2
    assert out.count("pin it:") == 2


@pytest.mark.parametrize("command", ["run", "bench", "inspect", "explain"])
def test_files_that_are_no_engines(run: Run, tmp_path: Path, command: str) -> None:
    damaged = tmp_path / "d.tactician"
    damaged.write_bytes(b"tactician engine" + bytes(200))
    for path in (tmp_path / "missing", damaged, tmp_path):
        code, out, err = run(command, path)
        assert (code, out) == (1, "")
        assert str(path) in err


@pytest.mark.parametrize("command", ["run", "bench"])
def test_an_engine_whose_plugin_is_missing(run: Run, engine_file: Path, command: str) -> None:
    code, _, err = run(command, engine_file)
    assert code == 1
    assert "acme" in err or "gadget" in err


def fill_cache(path: Path) -> None:
    """Make a timing cache with two entries of one call."""
    from tactician.signature import OpSignature, TensorType
    from tactician.tactics.cache import TimingCache
    from tactician.tactics.cache_rows import CacheRow, fingerprint_digest
    from tactician.tactics.record import Outcome, Timing

    x = TensorType("float32", (2, 3))
    signature = OpSignature("ai.onnx::Relu", 18, (), (x,), (x,), (None,))
    fields = {"device": "Gadget 9000", "driver": "1"}
    print_ = fingerprint_digest(fields)
    rows = []
    for n in (1, 2):
        timing = Timing(n * 1e-6, n * 1e-6, n * 1e-6, 9)
        row = CacheRow(signature.key, f"acme.fast(block={n})", 1, "acme", "ab", print_, "p", Outcome.TIE)
        rows.append(msgspec.structs.replace(row, timing=timing, created=1e9 * n))
    cache = TimingCache(path)
    cache.put(signature, fields, rows)
    cache.set_incumbent(signature, fields, rows[0].tactic)


def test_cache(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "timing.sqlite"
    code, out, _ = run("cache", "info")
    assert code == 0
    assert "no timing cache yet" in out
    assert run("cache", "info", "--timing-cache", path)[0] == 1
    assert not path.exists(), "looking makes none"
    fill_cache(path)
    at = ("--timing-cache", path)
    assert json.loads(run("cache", "info", *at, "--json")[1])["devices"] == {"Gadget 9000": 2}
    assert "2 entries" in run("cache", "info", *at)[1]
    first, second = json.loads(run("cache", "ls", *at, "--json")[1])
    assert (first["tactic"], first["seconds"], first["winner"]) == ("acme.fast(block=1)", 1e-6, True)
    assert not second["winner"]
    assert len(json.loads(run("cache", "ls", "*block=2*", *at, "--json")[1])) == 1
    assert "Relu(float32[2, 3])" in run("cache", "ls", "Relu*", *at)[1]
    assert run("cache", "verify", *at)[:2] == (0, f"{path} is sound\n")


def test_a_cache_moves_to_another_machine(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "timing.sqlite"
    fill_cache(path)
    assert run("cache", "export", "all.json", "--timing-cache", path)[0] == 0
    assert run("cache", "import", "all.json", "--timing-cache", "b")[1] == "took 2 entries from all.json\n"
    assert run("cache", "import", path, "--timing-cache", "c")[1] == f"took 2 entries from {path}\n"
    assert run("cache", "import", path, "--timing-cache", "c")[1] == f"took 0 entries from {path}\n"
    assert run("cache", "import", "none.json", "--timing-cache", "c")[0] == 1


def test_a_cache_is_pruned(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "timing.sqlite"
    fill_cache(path)
    at = ("--timing-cache", path)
    assert run("cache", "prune", *at)[0] == 2
    days = (time.time() - 1.5e9) / 86_400
    assert run("cache", "prune", "--older-than", days, *at)[1] == "deleted 1 entries\n"
    assert run("cache", "prune", "--this-device", "cpu", *at)[1] == "deleted 1 entries\n"
    assert "moved to" in run("cache", "reset", *at)[1]
    assert not path.exists()


def test_a_damaged_cache(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "timing.sqlite"
    path.write_bytes(b"no database, " * 1000)
    for name in ("info", "ls", "verify"):
        code, out, err = run("cache", name, "--timing-cache", path)
        assert (code, out) == (1, "")
        assert str(path) in err
    assert run("cache", "reset", "--timing-cache", path)[0] == 0


def test_doctor_looks_at_the_cache(run: Run) -> None:
    from tactician.tactics.cache import default_path

    fill_cache(default_path())
    assert "2 entries" in run("doctor")[1]
    default_path().write_bytes(b"no database, " * 1000)
    code, out, _ = run("doctor")
    assert code == 1
    assert "fix: tactician cache reset" in out


def test_doctor(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = run("doctor", "--json")
    findings = json.loads(out)
    assert code == (1 if any(f["level"] == "FAIL" for f in findings) else 0)
    assert {"python", "tactician", "packages", "plugin builtin"} <= {f["subject"] for f in findings}
    (tmp_path / "tactician.toml").write_text("plugins = [")
    code, out, _ = run("doctor")
    assert code == 1
    assert "FAIL" in out
    assert "fix:" in out


def test_doctor_finds_a_stale_copy(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, version in (("old", "0.0.1"), ("new", "0.2.0")):
        info = tmp_path / folder / f"tk_x-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: tk-x\nVersion: {version}\n")
        (info / "entry_points.txt").write_text("[tactician]\nx = tk_x\n")
        monkeypatch.syspath_prepend(str(tmp_path / folder))
    code, out, _ = run("doctor", "--json")
    (finding,) = [f for f in json.loads(out) if f["subject"] == "tk-x"]
    assert (code, finding["level"]) == (1, "FAIL")
    assert "0.0.1" in finding["text"]
    assert "0.2.0" in finding["text"]


def test_a_check_that_fails_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    from tactician.cli import checks

    def check_broken() -> list[checks.Finding]:
        raise ValueError("oh")

    monkeypatch.setattr(checks, "CHECKS", [check_broken, checks.check_python])
    findings = checks.run_checks()
    assert (findings[0].level, findings[0].subject) == (checks.Level.WARN, "broken")
    assert len(findings) > 1


def config_of(*arguments: object) -> Any:
    """Return the config that `tactician build` makes of its arguments."""
    from tactician.cli.build import build_command, make_config

    params = dict(build_command.make_context("build", [str(a) for a in arguments]).params)
    for name in ("as_json", "model", "output", "lock"):
        del params[name]
    return make_config(params, None)


def test_the_defaults_of_build_are_those_of_the_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tactician.config import BuilderConfig

    monkeypatch.chdir(tmp_path)
    assert config_of("m.onnx") == BuilderConfig()


def test_every_option_of_the_config_is_an_option_of_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses

    from tactician.config import BuilderConfig

    monkeypatch.chdir(tmp_path)
    flags = (
        "--tf32",
        "--deterministic",
        "--no-timing-cache",
        "--error-on-timing-cache-miss",
        "--locked",
        "--strict",
        "--isolate",
    )
    values = {
        "--target": "cpu",
        "--device": 1,
        "--workspace": "64MiB",
        "--sources": "-cudnn,a",
        "--tactic": "*=b.*",
        "--avg-timing-iterations": 7,
        "--max-candidates": 9,
        "--candidate-timeout": 5.5,
        "--timing-cache": "t",
        "-p": "builtin",
        "--no-plugin": "z",
        "--threads": 3,
        "--seed": 5,
        "--without": "fold",
        "--dump-stages": "d",
    }
    shapes = ("--shapes", "x:2x3", "--shapes", "y:4")
    config = config_of("m.onnx", *flags, *shapes, *(part for item in values.items() for part in item))
    default = BuilderConfig(threads=-1)
    same = [f.name for f in dataclasses.fields(config) if getattr(config, f.name) == getattr(default, f.name)]
    assert same == ["lock_file"], "passed beside the options"
    assert config.shapes == {"x": (2, 3), "y": (4,)}
    assert config.sources == ("-cudnn", "a")
    assert config.tactic_rules == (("*", "b.*"),)


def test_the_project_file_holds_defaults_of_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    below = tmp_path / "below"
    below.mkdir()
    monkeypatch.chdir(below)
    (tmp_path / "pyproject.toml").write_text(
        "[tool.tactician]\nplugins = ['builtin']\ntf32 = true\ntiming-cache = 'build/t.sqlite'\n"
        "shapes = ['x:2x3']\nworkspace = '1MiB'\nsources = ['a', '-b']\nmax-candidates = 4\n"
    )
    config = config_of("m.onnx")
    assert (config.tf32, config.max_candidates, config.workspace_limit) == (True, 4, 1 << 20)
    assert config.timing_cache == tmp_path / "build" / "t.sqlite"
    assert config.shapes == {"x": (2, 3)}
    assert config.sources == ("a", "-b")
    assert config.plugins is None, "the loader reads these itself"
    config = config_of("m.onnx", "--no-tf32", "--max-candidates", "2")
    assert (config.tf32, config.max_candidates) == (False, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("timing-cash = 'x'", "no option 'timing-cash'; did you mean 'timing-cache'"),
        ("json = true", "no option 'json'"),
        ("max-candidates = 'many'", "many"),
    ],
)
def test_a_project_file_that_makes_no_sense(run: Run, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "tactician.toml").write_text(text)
    code, _, err = run("build", "m.onnx")
    assert code in (1, 2)
    assert message in err
    assert run("build", "--help")[0] == 0


def test_an_engine_never_overwrites_its_model(run: Run, tmp_path: Path) -> None:
    model = tmp_path / "m.tactician"
    model.write_bytes(b"x")
    code, _, err = run("build", model)
    assert code == 1
    assert "overwrite" in err


def convert(kind: click.ParamType, text: str) -> Any:
    return kind.convert(text, None, None)


def test_option_values() -> None:
    assert convert(Shape(), "input:8x3x224") == ("input", (8, 3, 224))
    assert convert(Shape(), "a:b:4") == ("a:b", (4,))
    assert convert(Shape(), "x:scalar") == ("x", ())
    assert [convert(Size(), t) for t in ("64MiB", "1.5kib", "100", "2 GB")] == [
        64 << 20,
        1536,
        100,
        2 * 10**9,
    ]
    assert convert(Rule(), "*conv*=b.x(m=1, n=2)") == ("*conv*", "b.x(m=1, n=2)")
    assert convert(Names(), "cublaslt, -cudnn") == ("cublaslt", "-cudnn")
    assert convert(Feed(), "x=random:2x3") == ("x", "random:2x3")


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        *((Shape(), text) for text in ("input", "input:8x", "input:-1")),
        *((Size(), text) for text in ("64MB2", "lots", "3 XB")),
        *((Rule(), text) for text in ("conv", "=x")),
        *((Feed(), text) for text in ("x", "=f.npy")),
    ],
)
def test_option_values_that_make_no_sense(kind: click.ParamType, text: str) -> None:
    with pytest.raises(click.BadParameter):
        convert(kind, text)


def test_feeds(tmp_path: Path) -> None:
    import ml_dtypes
    import numpy as np

    specs = [
        TensorSpec("x", "float32", (2, 3), "cpu", Place.INPUT),
        TensorSpec("n", "int64", ("N",), "cpu", Place.INPUT),
        TensorSpec("s", "string", (2,), "cpu", Place.INPUT),
        TensorSpec("b", "bfloat16", (4,), "cpu", Place.INPUT),
    ]
    half = np.arange(4).astype(ml_dtypes.bfloat16)
    np.save(tmp_path / "b.npy", half)
    feeds = make_feeds(specs, (("n", "random:5"), ("b", str(tmp_path / "b.npy"))), seed=1)
    assert (feeds["x"].dtype, feeds["x"].shape) == (np.float32, (2, 3))
    assert (feeds["n"].dtype, feeds["n"].shape) == (np.int64, (5,))
    assert feeds["s"].dtype == object
    assert feeds["b"].dtype == half.dtype
    np.testing.assert_array_equal(feeds["b"], half)
    np.testing.assert_array_equal(feeds["x"], make_feeds(specs[:1], (), seed=1)["x"])
    (tmp_path / "bad.npy").write_bytes(b"no array")
    for given, text in (
        (("z", "random"), "no input 'z'"),
        (("n", "random"), "shape is not known"),
        (("x", "random:2y"), "dimensions"),
        (("x", str(tmp_path / "bad.npy")), "can't read"),
        (("x", str(tmp_path / "none.npy")), "can't read"),
    ):
        with pytest.raises(errors.InputError, match=text):
            make_feeds(specs[:2], (("n", "random:5"), given), seed=0)


def test_pickles_are_not_read(tmp_path: Path) -> None:
    import numpy as np

    np.save(tmp_path / "o.npy", np.array([{"a": 1}], object), allow_pickle=True)
    spec = TensorSpec("x", "float32", (1,), "cpu", Place.INPUT)
    with pytest.raises(errors.InputError, match="can't read"):
        make_feeds([spec], (("x", str(tmp_path / "o.npy")),), seed=0)
