"""Every error class is provoked through a public path, and its message names what is wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engines import make_engine, make_model
from tactician import errors
from tactician.config import BuilderConfig
from tactician.errors import TacticianError

BASES = {errors.TacticianError, errors.EngineError}
"""Never raised themselves."""

Provoke = Callable[[Path], Any]
PROVOKERS: dict[type[TacticianError], tuple[Provoke, str]] = {}
"""Error class to what provokes it, and a pattern that its message must match."""


def provokes(error: type[TacticianError], pattern: str) -> Callable[[Provoke], Provoke]:
    def register(function: Provoke) -> Provoke:
        PROVOKERS[error] = (function, pattern)
        return function

    return register


def build(model: Any = None, **options: Any) -> Any:
    import tactician

    options = {"shapes": {"x": (2, 3)}, "target": "cpu", "threads": 1, "avg_timing_iterations": 1, **options}
    return tactician.build(make_model() if model is None else model, BuilderConfig(**options))


def run_cli(*arguments: object) -> None:
    """Run a command and let its error through."""
    from tactician.cli import cli

    cli.main([str(a) for a in arguments], prog_name="tactician", standalone_mode=False)


@provokes(errors.ConfigError, r"tactician\.toml.*TOML")
def _config(folder: Path) -> None:
    (folder / "tactician.toml").write_text("plugins = [")
    build()


@provokes(errors.InvalidModelError, "model.onnx")
def _model(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"\x08\x09 this is no protobuf")
    build(folder / "model.onnx")


@provokes(errors.ExternalDataError, "weights.bin")
def _external(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(make_model(outside=True).SerializeToString())
    build(folder / "model.onnx")


@provokes(errors.UnknownOpError, "Frobnicate")
def _op(folder: Path) -> None:
    build(make_model(op="Frobnicate", domain="nowhere"))


@provokes(errors.ShapeError, "x")
def _shape(folder: Path) -> None:
    build(shapes={"x": (2, 4)})


@provokes(errors.InputError, "'x'.*missing")
def _input(folder: Path) -> None:
    from tactician import Session

    Session(build()).run({})


@provokes(errors.ProfileError, r"'x' has shape \[9, 3\].*profile 0, x:1x3\.\.2x3\.\.4x3.*--profile")
def _profile(folder: Path) -> None:
    import numpy as np
    from tactician import OptimizationProfile, Session

    profile = OptimizationProfile({"x": ((1, 3), (2, 3), (4, 3))})
    Session(build(shapes={}, profiles=(profile,))).run({"x": np.zeros((9, 3), np.float32)})


@provokes(errors.DeviceError, "target 'abacus'")
def _device(folder: Path) -> None:
    build(target="abacus")


@provokes(errors.PluginError, "no_such_module")
def _plugin(folder: Path) -> None:
    (folder / "mine.py").write_text("import no_such_module\n")
    build(plugins=(str(folder / "mine.py"),))


@provokes(errors.UnknownPluginError, "did you mean 'builtin'")
def _unknown_plugin(folder: Path) -> None:
    build(plugins=("biultin",))


@provokes(errors.TacticError, "does not compile for sm_80")
def _tactic(folder: Path) -> None:
    pytest.importorskip("cuda.core", reason="the compiler's package is not installed")
    from tactician import KernelSource
    from tactician.builtin_kernels.cuda.device import CompileOnlyDevice

    CompileOnlyDevice("sm_80").compile(KernelSource("this is no CUDA C++", "k"))


@provokes(errors.NoTacticError, "MatMul")
def _no_tactic(folder: Path) -> None:
    build(sources=("-builtin", "-onnxruntime"))


@provokes(errors.SelectionError, "nobody")
def _selection(folder: Path) -> None:
    build(tactic_rules=(("product", "nobody.*"),))


@provokes(errors.LockError, "a.lock.json")
def _lock(folder: Path) -> None:
    (folder / "a.lock.json").write_text("{ no lock")
    build(lock_file=folder / "a.lock.json", locked=True)


@provokes(errors.LockMismatchError, "activation|product")
def _lock_mismatch(folder: Path) -> None:
    (folder / "m.onnx").write_bytes(make_model().SerializeToString())
    (folder / "n.onnx").write_bytes(make_model(op="Sigmoid").SerializeToString())
    options = ("--target", "cpu", "--shapes", "x:2x3", "--lock", folder / "m.lock.json")
    run_cli("build", folder / "m.onnx", *options)
    run_cli("build", folder / "n.onnx", *options, "--locked")


@provokes(errors.CacheError, "cache.sqlite")
def _cache(folder: Path) -> None:
    (folder / "cache.sqlite").write_bytes(b"no database, " * 1000)
    build(timing_cache=folder / "cache.sqlite")


@provokes(errors.TimingCacheMissError, "MatMul|Gemm|Relu")
def _cache_miss(folder: Path) -> None:
    build(timing_cache=folder / "cache.sqlite", error_on_timing_cache_miss=True)


@provokes(errors.DamagedEngineError, "checksum")
def _damaged(folder: Path) -> None:
    from tactician import Engine

    make_engine().save(folder / "e.tactician")
    data = bytearray((folder / "e.tactician").read_bytes())
    data[-1] ^= 1
    (folder / "e.tactician").write_bytes(data)
    Engine.load(folder / "e.tactician")


@provokes(errors.EngineMismatchError, "plugin 'acme' 1.5")
def _mismatch(folder: Path) -> None:
    from tactician import Session

    Session(make_engine())


@provokes(errors.RefitError, "another network than the engine's: 'product.activation' is not in the model")
def _refit(folder: Path) -> None:
    from tactician import refit

    refit(build(), make_model(scale=2.0))


@provokes(
    errors.SpecialisationError, "for 'x' as 4x3, which profile 0 holds: no tactic runs.*not among --sources"
)
def _specialisation(folder: Path) -> None:
    from dataclasses import replace

    import numpy as np
    from tactician import OptimizationProfile, Session

    profile = OptimizationProfile({"x": ((1, 3), (2, 3), (4, 3))})
    engine = build(shapes={}, profiles=(profile,))
    engine = replace(engine, config=replace(engine.config, sources=("nobody",)))
    Session(engine).run({"x": np.zeros((4, 3), np.float32)})


@provokes(errors.AccuracyError, "'y' differs.*tolerance")
def _accuracy(folder: Path) -> None:
    build().save(folder / "e.tactician")
    (folder / "other.onnx").write_bytes(make_model(scale=1.01).SerializeToString())
    run_cli("run", folder / "e.tactician", "--check", "onnxruntime", folder / "other.onnx")


@provokes(errors.RegressionError, "slower than")
def _regression(folder: Path) -> None:
    build().save(folder / "e.tactician")
    once = {
        "median": 1e-12,
        "low": 1e-12,
        "high": 1e-12,
        "mean": 1e-12,
        "minimum": 1e-12,
        "p99": 1e-12,
        "samples": 100,
    }
    (folder / "last.json").write_text(json.dumps({"this": {"engine": once, "run": once}}))
    run_cli(
        "bench",
        folder / "e.tactician",
        "--rounds",
        "6",
        "--compare",
        folder / "last.json",
        "--fail-if-slower",
    )


@provokes(errors.BuildCancelledError, "cache")
def _cancelled(folder: Path) -> None:
    import tactician

    def cancel(_: object) -> None:
        raise KeyboardInterrupt

    config = BuilderConfig(shapes={"x": (2, 3)}, target="cpu", threads=1)
    tactician.build(make_model(), config, progress=cancel)


def _classes() -> list[type[TacticianError]]:
    found = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, TacticianError)]
    return sorted(set(found) - BASES, key=lambda c: c.__name__)


@pytest.mark.parametrize("error", _classes(), ids=lambda c: c.__name__)
def test_every_error_can_be_met(
    error: type[TacticianError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert error in PROVOKERS, f"{error.__name__} has no test; register one with @provokes"
    provoke, pattern = PROVOKERS[error]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TacticianError) as caught:
        provoke(tmp_path)
    assert type(caught.value) is error, repr(caught.value)
    assert re.search(pattern, str(caught.value), re.DOTALL), str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_bases_are_not_raised() -> None:
    root = Path(__file__).resolve().parents[2]
    for folder in ("core", "plugins", "tactics", "builtin_kernels"):
        for path in (root / folder).rglob("*.py"):
            raised = re.search(r"raise (TacticianError|EngineError)\(", path.read_text(encoding="utf-8"))
            assert not raised, f"{path}: {raised}"
