"""Options and the project file: which values are taken, and what they become."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from tactician import errors
from tactician.cli.options import Feed, Names, Rule, Shape, Size, make_feeds
from tactician.plan import Place, TensorSpec

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., tuple[int, str, str]]


def config_of(*arguments: object) -> Any:
    """Return the config that `tactician build` makes of its arguments."""
    from tactician.cli.build import build_command, make_config

    params = dict(build_command.make_context("build", [str(a) for a in arguments]).params)
    for name in ("as_json", "model", "output", "lock", "report"):
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
        "--exhaustive",
        "--no-timing-cache",
        "--error-on-timing-cache-miss",
        "--locked",
        "--strict",
        "--isolate",
    )
    values = {
        "--target": "cpu",
        "--device": 1,
        "--precision-tolerance": 0.25,
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
        "--precision": "bf16",
        "--node-precision": "a=fp32",
        "--dump-stages": "d",
    }
    shapes = ("--shapes", "x:2x3", "--shapes", "y:4", "--profile", "z:1..2..3")
    config = config_of("m.onnx", *flags, *shapes, *(part for item in values.items() for part in item))
    default = BuilderConfig(threads=-1)
    same = [f.name for f in dataclasses.fields(config) if getattr(config, f.name) == getattr(default, f.name)]
    assert same == ["lock_file"], "passed beside the options"
    assert config.shapes == {"x": (2, 3), "y": (4,)}
    assert [str(profile) for profile in config.profiles] == ["z:1..2..3"]
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
