"""The commands that make, run, measure and explain engines."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from engines import CHOSEN, make_model
from tactician.cli import main

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., tuple[int, str, str]]


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
    code, out, err = run(
        "build", built / "m.onnx", "-o", engine, "--target", "cpu", "--shapes", "x:2x3", "--without", "fuse"
    )
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
    arguments = ("--target", "cpu", "--shapes", "x:2x3", "--json", "--no-timing-cache", "--without", "fuse")
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
    from tactician import Engine

    decisions = len(Engine.load(built / "m.tactician").report.decisions)  # one, if the two nodes were fused
    assert out.count("chosen by ") == out.count("pin it:") == decisions
    assert "fused: product + activation, " in out


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


def test_an_engine_never_overwrites_its_model(run: Run, tmp_path: Path) -> None:
    model = tmp_path / "m.tactician"
    model.write_bytes(b"x")
    code, _, err = run("build", model)
    assert code == 1
    assert "overwrite" in err
