"""A recorder writes which tactic each node got; a replayer chooses just that, and says where it can't."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from fakes import signature
from onnx import TensorProto, helper
from tactician import BuilderConfig, Session, TacticRecorder, TacticReplayer, build
from tactician.errors import SelectionError
from tactician.signature import OpSignature
from tactician.tactics.selector import AlgorithmChoice, AlgorithmContext

CALL, OTHER = signature(), signature(7)
SHAPE = (30, 500)


def context(*nodes: str, call: OpSignature = CALL) -> AlgorithmContext:
    return AlgorithmContext(nodes, call, "fake", "Fake 1")


def choice(tactic: str) -> AlgorithmChoice:
    return AlgorithmChoice(tactic, "acme", 1e-5, 0, 1e-7, ())


A, B, C = (choice(f"acme.{name}()") for name in "abc")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a recording: nodes 1 and 2 share a choice, 3 has another."""
    path = tmp_path / "replay.json"
    TacticRecorder(path).report_algorithms([context("1", "2"), context("3", call=OTHER)], [B, C])
    return path


def replay(
    replayer: TacticReplayer,
    *calls: AlgorithmContext,
    offered: tuple[AlgorithmChoice, ...] = (A, B, C),
) -> None:
    """Ask node by node, and report what the builder would make of the answers: without one, the first."""
    reported = []
    for call in calls:
        chosen = replayer.select_algorithms(call, offered)
        reported.append(offered[chosen[0] if chosen else 0])
    replayer.report_algorithms(calls, reported)


def test_a_person_can_read_it(path: Path) -> None:
    plain = json.loads(path.read_bytes())
    assert plain["format"] == 1
    assert list(plain["nodes"]) == ["1", "2", "3"]
    assert plain["nodes"]["2"] == {
        "tactic": "acme.b()",
        "version": 1,
        "signature": str(CALL),
        "key": CALL.key,
        "target": "fake",
    }
    assert sum('"tactic"' in line for line in path.read_text().splitlines()) == 3, "one line for each tactic"


def test_it_is_replaced_and_nothing_stays_behind(path: Path) -> None:
    before = path.read_bytes()
    TacticRecorder(str(path)).report_algorithms([context("3", call=OTHER), context("2", "1")], [C, B])
    assert path.read_bytes() == before, "equal choices give equal bytes in whatever order"
    TacticRecorder(path).report_algorithms([context("1")], [A])
    assert list(json.loads(path.read_bytes())["nodes"]) == ["1"]
    assert list(path.parent.iterdir()) == [path]


def test_the_recorder_leaves_the_choice_to_the_builder(path: Path) -> None:
    assert TacticRecorder(path).select_algorithms(context("1"), [A, B]) == []


def test_a_recorder_that_can_not_write_says_so(tmp_path: Path) -> None:
    with pytest.raises(SelectionError, match=r"no folder '.*nowhere'"):
        TacticRecorder(tmp_path / "nowhere" / "replay.json")
    with pytest.raises(SelectionError, match="can't write"):
        TacticRecorder(tmp_path).report_algorithms([context("1")], [A])  # a folder is in the way
    assert list(tmp_path.parent.glob(f".{tmp_path.name}.*")) == []


def test_each_node_gets_the_recorded_tactic(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    replayer = TacticReplayer(path)
    assert replayer.select_algorithms(context("1"), [C, A, B]) == [2]
    assert replayer.select_algorithms(context("3", call=OTHER), [C, A, B]) == [0]
    replay(replayer, context("1"), context("2"), context("3", call=OTHER))
    assert replayer.differences == ()
    assert caplog.records == []


def test_a_tactic_that_is_not_offered(path: Path) -> None:
    replayer = TacticReplayer(path)
    calls = context("1"), context("2"), context("3", call=OTHER)
    with pytest.raises(SelectionError) as caught:
        replay(replayer, *calls, offered=(A, C))
    assert len(replayer.differences) == 2
    for node, line in zip("12", replayer.differences, strict=True):
        assert line == (
            f"node '{node}': acme.b() is recorded, and is not among the 2 tactics that may be used on fake: "
            "acme.a(), acme.c()"
        )
        assert line in str(caught.value)
    assert "record anew" in str(caught.value)
    replay(replayer, *calls)
    assert replayer.differences == (), "each build stands for itself"


def test_a_node_with_another_signature(path: Path) -> None:
    replayer = TacticReplayer(path)
    changed = OpSignature(CALL.op, 1, (("alpha", 1.0),), CALL.inputs, CALL.outputs, CALL.constants)
    assert str(changed) == str(CALL)
    calls = context("1", call=OTHER), context("2", call=changed), context("3", call=OTHER)
    assert replayer.select_algorithms(calls[0], (A, B)) == []
    with pytest.raises(SelectionError):
        replay(replayer, *calls)
    first, second = replayer.differences
    assert first == f"node '1': recorded for {CALL}, and now has {OTHER}"
    assert second == f"node '2': recorded for {CALL}, and now has other attributes, constants or fused body"


def test_a_node_that_is_not_recorded_is_left_to_the_builder(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    replayer = TacticReplayer(path)
    assert replayer.select_algorithms(context("new"), [A, B]) == []
    replay(replayer, context("1"), context("2"), context("new"))
    assert replayer.differences == (
        "node 'new' is not recorded; acme.a() was chosen",
        "node '3' is recorded, and gone",
    )
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert all(line in record.getMessage() for line in replayer.differences)


def test_what_was_decided_before_a_selector_is_asked(path: Path) -> None:
    replayer = TacticReplayer(path)
    replayer.report_algorithms([context("1"), context("2"), context("3", call=OTHER)], [A, B, C])
    assert replayer.differences == ("node '1': acme.b() is recorded; a rule or the lock file chose acme.a()",)


def test_a_recording_of_another_network(path: Path) -> None:
    with pytest.raises(SelectionError, match="names no node of this network"):
        replay(TacticReplayer(path), context("x"), context("y"))


def test_a_long_list_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "replay.json"
    calls = [context(f"node{i}") for i in range(80)]
    TacticRecorder(path).report_algorithms(calls, [B] * 80)
    replayer = TacticReplayer(path)
    with pytest.raises(SelectionError, match="and 30 more") as caught:
        replay(replayer, *calls, offered=(A, *(choice(f"acme.x({i})") for i in range(9))))
    assert str(caught.value).count("acme.b() is recorded") == 50
    assert len(replayer.differences) == 80
    assert "among the 10 tactics" in replayer.differences[0]
    assert replayer.differences[0].endswith("acme.x(3), …")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{ nothing",
        "[]",
        '{"format": 1}',
        '{"format": 1, "nodes": {"a": 3}}',
        '{"format": 1, "nodes": {"a": {"tactic": "acme.a()"}}}',
        '{"format": 2, "nodes": {}}',
        '{"format": 1, "nodes": {}, "extra": 1}',
        "\xff\xfe",
    ],
)
def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path, text: str) -> None:
    path = tmp_path / "replay.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(SelectionError, match=r"replay\.json.*record anew"):
        TacticReplayer(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SelectionError, match=r"nothing\.json.*TacticRecorder writes it"):
        TacticReplayer(tmp_path / "nothing.json")


def model(op: str = "Softmax") -> onnx.ModelProto:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPE) for name in "xy")
    graph = helper.make_graph([helper.make_node(op, ["x"], ["y"], name="node")], "one", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


class Another(TacticRecorder):
    """Records a choice of its own: not the tactic that the builder chose before."""

    def __init__(self, path: Path, default: str) -> None:
        super().__init__(path)
        self.default = default

    def select_algorithms(self, context: AlgorithmContext, choices: Sequence[AlgorithmChoice]) -> list[int]:
        return [next(i for i, choice in enumerate(choices) if choice.tactic != self.default)]


@pytest.fixture
def config(tmp_path: Path) -> BuilderConfig:
    return BuilderConfig(target="cpu", timing_cache=tmp_path / "cache.sqlite", strict=True)


@pytest.fixture
def default(config: BuilderConfig) -> str:
    """Return the builder's own choice."""
    return build(model(), config).report.decisions[0].chosen


@pytest.fixture
def recording(tmp_path: Path, config: BuilderConfig, default: str) -> Path:
    """Return a recording of a real build that chose something else."""
    path = tmp_path / "replay.json"
    (decision,) = build(model(), config, selector=Another(path, default)).report.decisions
    assert decision.chosen_by == "selector"
    assert recorded(path) == decision.chosen != default
    return path


def recorded(path: Path) -> str:
    return json.loads(path.read_bytes())["nodes"]["node"]["tactic"]


def test_a_build_is_replayed(recording: Path, config: BuilderConfig) -> None:
    replayer = TacticReplayer(recording)
    engine = build(model(), config, selector=replayer)
    (decision,) = engine.report.decisions
    assert (decision.chosen_by, replayer.differences) == ("selector", ())
    assert decision.chosen == recorded(recording)
    x = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    exact = np.exp(x.astype(np.float64))
    exact /= exact.sum(axis=1, keepdims=True)
    y = Session(engine).run({"x": x})["y"]
    assert np.linalg.norm(y - exact) < 1e-6 * np.linalg.norm(exact)


def test_a_build_that_can_not_be_replayed(
    recording: Path, config: BuilderConfig, caplog: pytest.LogCaptureFixture
) -> None:
    changed = r"node 'node': recorded for Softmax.*now has LogSoftmax"
    with pytest.raises(SelectionError, match=changed):
        build(model("LogSoftmax"), config, selector=TacticReplayer(recording))
    replayer = TacticReplayer(recording)
    with pytest.raises(SelectionError, match=changed):
        build(model("LogSoftmax"), replace(config, strict=False), selector=replayer)
    assert len(replayer.differences) == 1


def test_another_version_of_a_kernel_is_another_kernel(path: Path) -> None:
    replayer = TacticReplayer(path)
    newer = replace(B, version=2)
    with pytest.raises(SelectionError, match="recorded in version 1, and is offered in version 2"):
        replay(replayer, *(context(n) for n in "12"), offered=(A, newer))


def test_a_rule_comes_before_the_replayer(
    recording: Path, config: BuilderConfig, default: str, caplog: pytest.LogCaptureFixture
) -> None:
    replayer = TacticReplayer(recording)
    pinned = build(model(), replace(config, tactic_rules=(("*", default),)), selector=replayer)
    assert pinned.report.decisions[0].chosen == default
    assert replayer.differences[0].endswith(f"is recorded; a rule or the lock file chose {default}")
    assert replayer.differences[0] in caplog.text
