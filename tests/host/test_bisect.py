"""The smallest cause is found, alone and by the command, and what lock files differ in is said."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import onnx
import pytest
import tactician
from fakes import signature
from hypothesis import given
from hypothesis import strategies as st
from tactician.bisect import minimal_cause
from tactician.cli import main
from tactician.config import BuilderConfig
from tactician.tactics.lock import LockedNode, LockedPlugin, LockFile
from tactician.tactics.lock_diff import Swap, choice_changes, mixed, plugin_changes, swaps

Run = Callable[..., tuple[int, str, str]]


@given(st.integers(1, 60), st.data())
def test_a_smallest_cause_is_found(count: int, data: st.DataObject) -> None:
    cause = data.draw(st.sets(st.integers(0, count - 1), min_size=1, max_size=4))
    tries: list[tuple[int, ...]] = []

    def is_bad(items: Sequence[int]) -> bool:
        tries.append(tuple(items))
        return cause <= set(items)

    assert set(minimal_cause(range(count), is_bad)) == cause
    assert len(set(tries)) == len(tries), "nothing is tried twice"
    if len(cause) == 1:
        assert len(tries) <= 2 * math.ceil(math.log2(count)) + 1


@given(st.lists(st.sets(st.integers(0, 11), min_size=1, max_size=3), min_size=1, max_size=3))
def test_of_several_causes_one_is_found(causes: list[set[int]]) -> None:
    found = set(minimal_cause(range(12), lambda items: any(c <= set(items) for c in causes)))
    assert found in causes
    assert not any(c < found for c in causes)


def node(tactic: str, call: Any = None, **changes: Any) -> LockedNode:
    call = call or signature()
    values = {"version": 1, "plugin": tactic.partition(".")[0], "target": "fake", **changes}
    return LockedNode(tactic, signature=str(call), key=call.key, **values)


def lock(*, plugins: dict[str, str] | None = None, **nodes: LockedNode) -> LockFile:
    table = {name: LockedPlugin("1.0", digest) for name, digest in (plugins or {"acme": "d1"}).items()}
    return LockFile(1, nodes, table)


def test_nodes_that_changed_alike_are_one_change() -> None:
    before = lock(a=node("acme.x()"), b=node("acme.x()"), c=node("acme.x()"), d=node("acme.x()"))
    after = lock(a=node("acme.y()"), b=node("acme.x()"), c=node("acme.y()"), d=node("acme.x()", version=2))
    first, second = choice_changes(before, after)
    assert first.nodes == ("a", "c")
    assert first.before is not None
    assert first.after is not None
    assert (first.before.tactic, first.after.tactic) == ("acme.x()", "acme.y()")
    assert second.nodes == ("d",)
    assert choice_changes(before, before) == []


def test_nodes_of_another_signature_are_gone_and_new() -> None:
    before, after = lock(a=node("acme.x()"), b=node("acme.x()")), lock(a=node("acme.x()", signature(9)))
    changes = {(c.nodes, c.before is None, c.after is None) for c in choice_changes(before, after)}
    assert changes == {(("a",), True, False), (("a", "b"), False, True)}


def test_plugins_with_other_files() -> None:
    before, after = lock(plugins={"acme": "d1", "old": "o"}), lock(plugins={"acme": "d2", "new": "n"})
    assert [(c.name, c.before is None, c.after is None) for c in plugin_changes(before, after)] == [
        ("acme", False, False),
        ("new", True, False),
        ("old", False, True),
    ]


def test_a_mixed_lock_file() -> None:
    good, bad = lock(a=node("acme.x()"), b=node("acme.x()")), lock(a=node("acme.y()"), b=node("acme.y()"))
    both = mixed(good, bad, [Swap(("b",), ("b",), ())])
    assert {name: n.tactic for name, n in both.nodes.items()} == {"a": "acme.x()", "b": "acme.y()"}


def fused(tactic: str, *operators: str) -> LockedNode:
    return node(tactic, signature(len(operators)), operators=operators)


def test_fused_nodes_are_exchanged_with_their_operators() -> None:
    apart = {name: node("acme.x()") for name in "abcde"}
    good = lock(**apart)
    bad = LockFile(
        1,
        {"a+b": fused("acme.f()", "a", "b"), "c": node("acme.y()"), "d+e": fused("acme.f()", "d", "e")},
        good.plugins,
    )
    found, strangers = swaps(good, bad)
    assert not strangers
    assert [(s.out, s.into) for s in found] == [
        (("c",), ("c",)),
        (("a", "b"), ("a+b",)),
        (("d", "e"), ("d+e",)),
    ]
    assert set(mixed(good, bad, found[1:2]).nodes) == {"a+b", "c", "d", "e"}
    assert mixed(good, bad, found).nodes == bad.nodes
    back, _ = swaps(bad, good)
    assert mixed(bad, good, back).nodes == good.nodes


def test_nodes_that_are_fused_with_others_go_together() -> None:
    good = LockFile(1, {"a+b": fused("acme.f()", "a", "b"), "c": node("acme.x()")}, {})
    bad = LockFile(1, {"a": node("acme.x()"), "b+c": fused("acme.f()", "b", "c")}, {})
    (swap,), strangers = swaps(good, bad)
    assert (set(swap.out), set(swap.into), strangers) == ({"a+b", "c"}, {"a", "b+c"}, [])


def test_what_has_no_counterpart_is_said() -> None:
    good = lock(a=node("acme.x()"), b=node("acme.x()"))
    bad = LockFile(1, {"a": node("acme.x()", signature(9)), "b+c": fused("acme.f()", "b", "c")}, {})
    found, strangers = swaps(good, bad)
    assert found == [] and sorted(strangers) == ["a", "a", "b", "b+c"]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("TACTICIAN_CACHE_DIR", str(tmp_path / "cache"))

    def call(*arguments: object) -> tuple[int, str, str]:
        code = main([str(a) for a in arguments])
        return code, *capsys.readouterr()

    return call


MODEL = """<ir_version: 9, opset_import: ["" : 20]>
g (float[40, 30] x) => (float[40, 30] y) {
  [one] a = Relu(x)  [two] b = Exp(a)  [three] c = Relu(b)  [four] d = Tanh(c)  [five] y = Softmax(d) }"""


@pytest.fixture
def locks(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Return a model and two lock files of it: all by the reference, all by ONNX Runtime."""
    model = tmp_path / "m.onnx"
    onnx.save(onnx.parser.parse_model(MODEL), model)
    paths = []
    for name, tactic in (("good", "builtin.reference*"), ("bad", "builtin.onnx_runtime*")):
        config = BuilderConfig(target="cpu", threads=1, tactic_rules=(("*", tactic),), use_timing_cache=False)
        engine = tactician.build(model, config)
        path = tmp_path / f"{name}.lock.json"
        LockFile.of(engine.report.decisions, engine.plan.plugins).save(path)
        paths.append(path)
    return model, *paths


def check(condition: str) -> str:
    """Return a command that calls an engine bad where ``condition`` holds of ``tactics``, by node."""
    script = (
        "import os, sys; from tactician import Engine; "
        "tactics = {s.node: s.tactic for s in Engine.load(os.environ['TACTICIAN_ENGINE']).plan.steps}; "
        f"sys.exit({condition})"
    )
    return f'{sys.executable} -c "{script}"'


def test_the_command_finds_the_tactic(run: Run, locks: tuple[Path, Path, Path]) -> None:
    model, good, bad = locks
    condition = check("'onnx_runtime' in tactics['four']")
    arguments = ("bisect", model, "--good", good, "--bad", bad, "--check", condition, "--target", "cpu")
    code, out, err = run(*arguments)
    assert code == 0, err
    assert "1 choice of 4 suffice" in out
    assert "four: Tanh(float32[40, 30])" in out
    assert "- builtin.reference()" in out
    assert "+ builtin.onnx_runtime(" in out
    assert "good" in err
    code, out, _ = run(*arguments, "--json")
    (cause,) = json.loads(out)["cause"]
    assert cause["nodes"] == ["four"]


def test_a_fused_node_is_found(run: Run, tmp_path: Path) -> None:
    text = """<ir_version: 9, opset_import: ["" : 20]> g (float[8, 8] x) => (float[8, 8] y) {
        [first] a = MatMul(x, x) [relu] b = Relu(a) [second] c = MatMul(b, x) [tanh] y = Tanh(c) }"""
    model = tmp_path / "m.onnx"
    onnx.save(onnx.parser.parse_model(text), model)
    everywhere = tuple((name, "builtin.reference*") for name in ("first", "relu", "second", "tanh"))
    whole = (("first+relu", "builtin.onnx_runtime*"), ("second+tanh", "builtin.onnx_runtime*"))
    for name, rules in (("good", everywhere), ("bad", whole)):
        config = BuilderConfig(target="cpu", threads=1, tactic_rules=rules, use_timing_cache=False)
        engine = tactician.build(model, config)
        LockFile.of(engine.report.decisions, engine.plan.plugins).save(tmp_path / f"{name}.json")
    locks = ("--good", tmp_path / "good.json", "--bad", tmp_path / "bad.json", "--target", "cpu")
    code, out, err = run("bisect", model, *locks, "--check", check("'second+tanh' in tactics"), "--json")
    assert code == 0, err
    cause = json.loads(out)["cause"]
    assert sorted(c["nodes"][0] for c in cause) == ["second", "second+tanh", "tanh"]


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ("0", "is good by the check, and was said to be bad"),
        ("1", "is bad by the check, and was said to be good"),
        ("125", "could not tell"),
    ],
)
def test_a_check_that_says_too_little(
    run: Run, locks: tuple[Path, Path, Path], condition: str, words: str
) -> None:
    model, good, bad = locks
    arguments = ("bisect", model, "--good", good, "--bad", bad, "--check", check(condition))
    code, _, err = run(*arguments, "--target", "cpu")
    assert code != 0
    assert words in err


def test_lock_files_that_do_not_belong_together(run: Run, locks: tuple[Path, Path, Path]) -> None:
    model, good, bad = locks
    arguments = ("bisect", model, "--check", "true", "--target", "cpu", "--good", good)
    code, _, err = run(*arguments, "--bad", good)
    assert (code, "nothing to find" in err) == (5, True)
    other = LockFile.load(bad)
    changed = {k: n for k, n in other.nodes.items() if k != "two"}
    msgspec.structs.replace(other, nodes=changed).save(bad)
    code, _, err = run(*arguments, "--bad", bad)
    assert (code, "different networks: two" in err) == (5, True)


def test_lock_diff(run: Run, locks: tuple[Path, Path, Path]) -> None:
    _, good, bad = locks
    code, out, _ = run("lock", "diff", good, bad)
    assert code == 0
    assert "one, three: Relu(float32[40, 30])" in out
    assert "5 nodes of 5 differ" in out
    code, out, _ = run("lock", "diff", good, bad, "--json")
    nodes = [c["nodes"] for c in json.loads(out)["choices"]]
    assert sorted(nodes) == [["five"], ["four"], ["one", "three"], ["two"]]
    assert run("lock", "diff", good, bad, "--fail-if-different")[0] == 5
    code, out, _ = run("lock", "diff", good, good, "--fail-if-different")
    assert (code, out.strip()) == (0, "no difference")
    assert run("lock", "diff", good, good.with_name("nothing"))[0] == 5
