"""The policy holds in builds, stands back where it must, writes down what was chosen, and refuses what it can't read."""

import json

import numpy as np
import onnx
import pytest
import tactician_policy as policy
from tactician import BuilderConfig, InlinePlugin, Session, build
from tactician.errors import SelectionError

MODEL = onnx.parser.parse_model(
    '<ir_version: 9, opset_import: ["" : 20]> g (float[8, 64] x, float[64, 32] w) => (float[8, 32] y)'
    "{ [product] m = MatMul (x, w) [soft] y = Softmax (m) }"
)


@pytest.fixture
def config(tmp_path):
    plugin = InlinePlugin("policy", policy)
    return BuilderConfig(target="cpu", plugins=("builtin", plugin), timing_cache=tmp_path / "timing.sqlite")


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Return a function that writes the policy file and names it."""

    def write(text):
        path = tmp_path / "policy.toml"
        path.write_text(text)
        monkeypatch.setenv(policy.VARIABLE, str(path))

    monkeypatch.delenv(policy.VARIABLE, raising=False)
    return write


def tactics(engine):
    return {step.node: step.tactic for step in engine.plan.steps}


def feeds():
    rng = np.random.default_rng(0)
    return {"x": rng.standard_normal((8, 64), np.float32), "w": rng.standard_normal((64, 32), np.float32)}


def test_what_is_denied_is_not_used(config, write, tmp_path):
    write(f'deny = ["onnxruntime"]\naudit = "{tmp_path / "audit.jsonl"}"')
    engine = build(MODEL, config)
    assert not any("onnx_runtime" in tactic for tactic in tactics(engine).values())
    (y,) = Session(engine).run(feeds()).values()
    assert np.allclose(y.sum(axis=-1), 1, rtol=1e-5)
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert {name: line["tactic"] for line in lines for name in line["nodes"]} == tactics(engine)
    assert all(any("onnx_runtime" in name for name in line["forbidden"]) for line in lines)


def test_only_what_is_allowed_is_used(config, write):
    write('allow = ["onnxruntime"]')
    engine = build(MODEL, config)
    libraries = {c.tactic for d in engine.report.decisions for c in d.candidates if c.outcome == "filtered"}
    assert any("reference" in name for name in libraries)


def test_where_there_is_no_other_way_it_stands_back(config, write, monkeypatch):
    monkeypatch.setattr(policy.Policy, "permits", lambda *_: False)
    assert policy.filter_tactics(None, ["a.b()"], {"a.b()": None}) is None


def test_without_a_file_nothing_is_denied(config, write):
    engine = build(MODEL, config)
    assert all(c.outcome != "filtered" for d in engine.report.decisions for c in d.candidates)


def test_what_does_not_repeat_its_bits_is_forbidden(write):
    class Fast:
        library = ""

        def numerics(self, signature):
            return frozenset({"nondeterministic"})

    assert not policy.Policy().permits(None, Fast())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("deny = [", "can't read the policy"),
        ('deny = "onnxruntime"', "write a list of libraries"),
        ("allow = [1]", "write a list of libraries"),
        ("denied = []", "it may say deny, allow, audit"),
    ],
)
def test_a_policy_that_is_misread_is_refused(config, write, text, message):
    write(text)
    with pytest.raises(SelectionError, match=message):
        policy.read_policy()


def test_a_build_under_a_policy_that_is_misread_ends(config, write):
    write("denied = []")
    with pytest.raises(SelectionError, match="it may say deny, allow, audit"):
        build(MODEL, config)
