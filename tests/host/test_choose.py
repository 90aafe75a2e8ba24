"""Choosing follows the order of authority, repeats itself, and never takes what is wrong."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fakes import (
    Affine,
    FakeDevice,
    ScriptedTimer,
    Sized,
    candidate,
    make_tactic,
    reference,
    registry,
    signature,
)
from tactician.config import BuilderConfig
from tactician.errors import LockMismatchError, NoTacticError, SelectionError
from tactician.signature import OpSignature
from tactician.tactics.cache import TimingCache
from tactician.tactics.choose import choose, choose_all, decided
from tactician.tactics.lock import LockFile
from tactician.tactics.measure import Measured, Measurer
from tactician.tactics.record import CandidateRecord, Decision, Outcome, Timing
from tactician.tactics.selector import AlgorithmSelector

CALL = signature()
NODES = ("a.conv", "b.conv", "c.fc")


def record(name: str, microseconds: float | None, spread: float = 0.002, **changes: Any) -> CandidateRecord:
    """Return a record of ``acme.<name>()`` that passed all checks."""
    timing = None
    if microseconds is not None:
        t = microseconds * 1e-6
        timing = Timing(t, t * (1 - spread), t * (1 + spread), 20)
    outcome = Outcome.UNMEASURED if timing is None else Outcome.SLOWER
    values = {"outcome": outcome, "timing": timing, "error": 1e-7, "tolerance": 1e-6}
    return CandidateRecord(f"acme.{name}()", "acme", **{**values, **changes})


def measured(*records: CandidateRecord, incumbent: str | None = None, call: OpSignature = CALL) -> Measured:
    offered = {r.tactic: candidate(make_tactic(r.tactic[5:-2].title())) for r in records}
    return Measured(call, records, offered, incumbent and f"acme.{incumbent}()")


THREE = measured(record("fast", 10), record("middle", 12), record("slow", 20))


def outcomes(decision: Decision) -> dict[str, str]:
    return {r.tactic[5:-2]: str(r.outcome) for r in decision.candidates}


def one(of: Measured = THREE, nodes: tuple[str, ...] = NODES, **options: Any) -> Decision:
    config = {k: options.pop(k) for k in ("tactic_rules", "strict", "locked") if k in options}
    (decision,) = choose(of, nodes, target="fake", config=BuilderConfig(**config), **options)
    return decision


def test_the_fastest_wins() -> None:
    decision = one()
    assert (decision.chosen, decision.chosen_by, decision.target) == ("acme.fast()", "default", "fake")
    assert outcomes(decision) == {"fast": "chosen", "middle": "slower", "slow": "slower"}
    assert decision.nodes == NODES
    assert decision.winner.timing == THREE.records[0].timing
    assert decision.regret == 0


def test_ties_go_to_less_workspace_then_id() -> None:
    tied = measured(
        record("z", 10, 0.05, workspace=9),
        record("y", 10.1, 0.05),
        record("x", 10.2, 0.05),
        record("w", 20, 0.05),
    )
    decision = one(tied)
    assert outcomes(decision) == {"z": "tie", "y": "tie", "x": "chosen", "w": "slower"}
    assert decision.regret == pytest.approx(10.2 * 1.05 / 10 - 1)


def test_proven_but_small_differences_are_recorded_as_ties_and_decide_all_the_same() -> None:
    decision = one(measured(record("a", 10.05, 0.001), record("b", 10, 0.001)))
    assert outcomes(decision) == {"a": "tie", "b": "chosen"}
    assert "not proven so by more than 1 %" in decision.candidates[0].reason


@pytest.mark.parametrize(
    ("challenger", "spread", "keeps"),
    [(10.0, 0.001, True), (9.95, 0.001, True), (9.0, 0.2, True), (9.8, 0.001, False), (5.0, 0.01, False)],
)
def test_the_incumbent_stays_unless_proven_slower(challenger: float, spread: float, keeps: bool) -> None:
    decision = one(measured(record("held", 10, spread), record("new", challenger, spread), incumbent="held"))
    assert decision.chosen == ("acme.held()" if keeps else "acme.new()")
    assert decision.chosen_by == ("incumbent" if keeps else "default")
    if keeps:
        assert outcomes(decision)["new"] == "tie"
        assert decision.regret is not None
        assert decision.regret >= 10 / challenger - 1


def test_an_incumbent_that_is_wrong_now_is_dropped() -> None:
    decision = one(measured(record("held", 5, outcome=Outcome.WRONG), record("new", 10), incumbent="held"))
    assert (decision.chosen, decision.chosen_by) == ("acme.new()", "default")


def test_untimed_candidates_win_only_where_nothing_was_timed() -> None:
    assert one(measured(record("a", None), record("b", 10))).chosen == "acme.b()"
    decision = one(measured(record("z", None), record("a", None)))
    assert decision.chosen == "acme.z()", "the first, in the order of preference"
    assert outcomes(decision) == {"z": "chosen", "a": "unmeasured"}
    assert decision.regret is None


def test_no_tactic_lists_every_candidate() -> None:
    bad = [
        record("w", 1, outcome=Outcome.WRONG, reason="off by one"),
        record("f", None, outcome=Outcome.FILTERED, reason="not today"),
    ]
    with pytest.raises(NoTacticError) as caught:
        one(measured(*bad), tuple(f"n{i}" for i in range(7)))
    text = str(caught.value)
    for part in (
        "n0, n1",
        "and 2 more",
        "Affine",
        "acme.w(): wrong: off by one",
        "acme.f(): filtered: not today",
    ):
        assert part in text
    with pytest.raises(NoTacticError, match="no loaded plugin offers any"):
        one(measured())


def test_a_rule_forces() -> None:
    decision = one(tactic_rules=(("*", "*.slow()"),))
    assert (decision.chosen, decision.chosen_by) == ("acme.slow()", "cli")
    assert outcomes(decision) == {"fast": "filtered", "middle": "filtered", "slow": "chosen"}
    assert "--tactic rule" in decision.candidates[0].reason
    assert one(tactic_rules=(("*", "*.[ms]*"),)).chosen == "acme.middle()", "the fastest that matches"


def test_the_last_matching_rule_wins_and_splits_nodes() -> None:
    rules = (("*", "*.middle()"), ("*.conv", "*.slow()"), ("b.*", "*.fast()"))
    decisions = choose(THREE, NODES, config=BuilderConfig(tactic_rules=rules))
    assert {n: d.chosen for d in decisions for n in d.nodes} == {
        "a.conv": "acme.slow()",
        "b.conv": "acme.fast()",
        "c.fc": "acme.middle()",
    }


WITH_BAD = measured(
    record("fast", 10),
    record("wrong", 1, outcome=Outcome.WRONG, reason="off by one"),
    record("failed", None, outcome=Outcome.FAILED, reason="no such kernel"),
)


@pytest.mark.parametrize("name", ["wrong", "failed"])
def test_nobody_can_choose_what_is_wrong(name: str) -> None:
    with pytest.raises(SelectionError, match=f"acme.{name}.*: {name}: "):
        one(WITH_BAD, tactic_rules=(("*", f"*.{name}()"),))
    assert one(WITH_BAD, hooks=[("p", lambda **a: f"acme.{name}()")]).chosen == "acme.fast()"
    seen: list[str] = []

    class Looking(AlgorithmSelector):
        def select_algorithms(self, context: Any, choices: Any) -> list[int]:
            seen.extend(c.tactic for c in choices)
            return []

    one(WITH_BAD, selector=Looking())
    assert set(seen) == {"acme.fast()"}
    lock = LockFile.of([one(measured(record(name, 1)))], [])
    decision = one(WITH_BAD, lock=lock)
    assert (decision.chosen, decision.chosen_by) == ("acme.fast()", "default")
    assert f"acme.{name}(), which is {name}" in decision.note


def test_rules_that_mean_nothing_are_errors_with_near_matches() -> None:
    with pytest.raises(SelectionError, match=r"no tactic; near: acme\.middle\(\)(.|\n)*acme\.slow"):
        one(tactic_rules=(("*", "acme.midle()"),))
    with pytest.raises(SelectionError, match=r"'d\.conv=x' matches no node; near: .*conv"):
        choose_all(
            {CALL.key: THREE}, {CALL.key: NODES}, config=BuilderConfig(tactic_rules=(("d.conv", "x"),))
        )


class Selector(AlgorithmSelector):
    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.asked: list[Any] = []
        self.told: list[Any] = []

    def select_algorithms(self, context: Any, choices: Any) -> list[int]:
        self.asked.append((context, list(choices)))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer(context, choices) if callable(self.answer) else self.answer

    def report_algorithms(self, contexts: Any, choices: Any) -> None:
        self.told.append((list(contexts), list(choices)))


@pytest.mark.parametrize(
    ("answer", "chosen", "who"),
    [
        ([], "fast", "default"),
        ([2], "slow", "selector"),
        ([2, 1], "middle", "selector"),
        ([0, 1, 2], "fast", "default"),
        ([0], "fast", "selector"),
    ],
)
def test_a_selector_restricts(answer: list[int], chosen: str, who: str) -> None:
    decision = one(selector=Selector(answer))
    assert (decision.chosen, decision.chosen_by) == (f"acme.{chosen}()", who)


def test_a_selector_sees_names_times_and_all_that_matters() -> None:
    selector = Selector([])
    one(selector=selector)
    assert [c.name for c, _ in selector.asked] == list(NODES)
    context, choices = selector.asked[0]
    assert (context.signature, context.target) == (CALL, "fake")
    assert [c.tactic for c in choices] == [r.tactic for r in THREE.records]
    assert [c.timing for c in choices] == [r.timing.median for r in THREE.records if r.timing]
    assert {(c.error, c.plugin, c.workspace) for c in choices} == {(1e-7, "acme", 0)}


def test_a_selector_may_treat_nodes_differently() -> None:
    selector = Selector(lambda context, choices: [2] if context.name.endswith("fc") else [])
    decisions = choose(THREE, NODES, selector=selector)
    assert [(d.nodes, d.chosen) for d in decisions] == [
        (("a.conv", "b.conv"), "acme.fast()"),
        (("c.fc",), "acme.slow()"),
    ]


@pytest.mark.parametrize("answer", [[3], [-1], ["x"], None, RuntimeError("oops"), [True, 99]])
def test_a_selector_that_fails_is_reported_once_and_ignored(
    answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        decision = one(selector=Selector(answer))
    assert (decision.chosen, decision.chosen_by) == ("acme.fast()", "default")
    assert "select_algorithms of the selector failed" in decision.note
    assert len(caplog.records) == 1
    with pytest.raises(SelectionError, match="select_algorithms"):
        one(selector=Selector(answer), strict=True)


def test_the_selector_is_told_the_final_choices() -> None:
    selector = Selector([1])
    fingerprints = {CALL.key: {"device": "Fake 1"}}
    choose_all({CALL.key: THREE}, {CALL.key: NODES}, selector=selector, fingerprints=fingerprints)
    ((contexts, choices),) = selector.told
    assert [(c.nodes, c.device) for c in contexts] == [(NODES, "Fake 1")]
    assert [c.tactic for c in choices] == ["acme.middle()"]


def test_hooks_select_in_order(caplog: pytest.LogCaptureFixture) -> None:
    hooks: list[tuple[str, Any]] = [
        ("mute", lambda **a: None),
        ("broken", lambda **a: 1 / 0),
        ("second", lambda signature, measured: measured[-1].tactic),
        ("third", lambda **a: "acme.fast()"),
    ]
    decision = one(hooks=hooks)
    assert (decision.chosen, decision.chosen_by) == ("acme.slow()", "hook:second")
    assert "'broken'" in decision.note
    assert "plugin 'second'" in decision.candidates[0].reason
    with pytest.raises(SelectionError, match="broken"):
        one(hooks=hooks, strict=True)


def test_a_hook_that_refuses_ends_the_build() -> None:
    def refuse(**arguments: Any) -> Any:
        raise SelectionError("not on this machine")

    with pytest.raises(SelectionError, match="^not on this machine$"):
        one(hooks=[("policy", refuse)])


def test_the_order_of_authority() -> None:
    lock = LockFile.of([one(tactic_rules=(("*", "*.middle()"),))], [])
    hooks: list[tuple[str, Any]] = [("h", lambda **a: "acme.slow()")]
    everything: dict[str, Any] = {
        "tactic_rules": (("*", "*.slow()"),),
        "lock": lock,
        "selector": Selector([0]),
        "hooks": hooks,
    }
    order = [("tactic_rules", "cli"), ("lock", "lock"), ("selector", "selector"), ("hooks", "hook:h")]
    for option, who in order:
        assert one(**everything).chosen_by == who
        del everything[option]
    assert one(**everything).chosen_by == "default"


def test_winners_are_remembered_and_forced_choices_are_not(tmp_path: Path) -> None:
    cache, device = TimingCache(tmp_path / "t.sqlite"), FakeDevice().fingerprint()

    def run(of: Measured = THREE, **options: Any) -> str | None:
        config = BuilderConfig(**options)
        fingerprints = {CALL.key: device}
        choose_all({CALL.key: of}, {CALL.key: NODES}, cache=cache, fingerprints=fingerprints, config=config)
        return cache.incumbent(CALL, device)

    assert run(tactic_rules=(("*", "*.slow()"),)) is None
    assert run() == "acme.fast()"
    absent = measured(record("fast", 10, outcome=Outcome.FILTERED), record("slow", 20), incumbent="fast")
    assert run(absent) == "acme.fast()", "filtered out for once"
    gone = measured(record("slow", 20), incumbent="fast")
    assert run(gone) == "acme.slow()"


def test_a_lock_is_replayed_node_by_node() -> None:
    first = choose(THREE, NODES, config=BuilderConfig(tactic_rules=(("a.*", "*.slow()"),)))
    lock = LockFile.of(first, [])
    replayed = choose(THREE, NODES, lock=lock)
    assert {n: d.chosen for d in replayed for n in d.nodes} == {n: d.chosen for d in first for n in d.nodes}
    assert {d.chosen_by for d in replayed} == {"lock"}
    extra = choose(THREE, (*NODES, "new"), lock=lock)
    assert {n: (d.chosen_by, d.note) for d in extra for n in d.nodes}["new"] == (
        "default",
        "not in the lock file",
    )
    other = measured(*THREE.records, call=signature(9))
    (decision,) = choose(other, NODES, lock=lock)
    assert decision.chosen_by == "default"
    assert "another signature" in decision.note


def test_locked_refuses_any_other_choice() -> None:
    lock = LockFile.of([one()], [])
    arguments: dict[str, Any] = {"measured": {CALL.key: THREE}, "nodes": {CALL.key: NODES}, "lock": lock}
    assert choose_all(**arguments, config=BuilderConfig(locked=True))[0].chosen_by == "lock"
    forced = BuilderConfig(locked=True, tactic_rules=(("c.fc", "*.slow()"),))
    with pytest.raises(LockMismatchError, match=r"c\.fc.*acme\.fast\(\) is locked, acme\.slow\(\).*cli"):
        choose_all(**arguments, config=forced)
    slow_now = msgspec.structs.replace(THREE.records[0], outcome=Outcome.FAILED, reason="no driver")
    broken = measured(slow_now, *THREE.records[1:])
    with pytest.raises(LockMismatchError, match="which is failed: no driver"):
        choose_all(**{**arguments, "measured": {CALL.key: broken}}, config=BuilderConfig(locked=True))
    with pytest.raises(LockMismatchError, match="'new' is new"):
        choose_all(**{**arguments, "nodes": {CALL.key: (*NODES, "new")}}, config=BuilderConfig(locked=True))


def test_what_the_lock_decides_need_not_be_measured() -> None:
    lock = LockFile.of(choose(THREE, NODES, config=BuilderConfig(tactic_rules=(("a.*", "*.slow()"),))), [])
    signatures = dict.fromkeys(NODES, CALL)
    assert decided(signatures, lock, BuilderConfig()) == {CALL.key: {"acme.slow()", "acme.fast()"}}
    assert decided(signatures, None, BuilderConfig()) == {}
    assert decided(signatures | {"new": CALL}, lock, BuilderConfig()) == {}
    assert decided(signatures, lock, BuilderConfig(tactic_rules=(("c.*", "x"),))) == {}


def test_builds_over_one_cache_choose_alike_under_noise(tmp_path: Path) -> None:
    """Also after a slower plugin was installed; from empty caches, what differs is a recorded tie."""
    many = make_tactic("Many", Sized, blocks=tuple(range(12)), best=5, step=0.002)
    slower = make_tactic("Slower", Affine, cost=1.3e-5)
    calls = [signature(n) for n in range(1, 11)]

    def build(cache: TimingCache, seed: int, **others: Any) -> dict[str, Decision]:
        device = FakeDevice()
        timer = ScriptedTimer(device, noise=0.008, drift=0.025, spikes=0.02, seed=seed)
        config = BuilderConfig(threads=1)
        offers = registry(many, **others)
        run = Measurer(offers, device, timer, reference, cache=cache, config=config)
        found = run.measure_all(calls)
        fingerprints = dict.fromkeys(found, device.fingerprint())
        nodes = {key: (key[:8],) for key in found}
        made = choose_all(found, nodes, cache=cache, fingerprints=fingerprints, config=config)
        return {d.key: d for d in made}

    one, two = TimingCache(tmp_path / "one.sqlite"), TimingCache(tmp_path / "two.sqlite")
    first = build(one, 1)
    for seed in (2, 3):
        assert {k: d.chosen for k, d in build(one, seed).items()} == {k: d.chosen for k, d in first.items()}
    for seed in (4, 5):
        after = build(one, seed, rival=slower)
        assert {k: d.chosen for k, d in after.items()} == {k: d.chosen for k, d in first.items()}
        assert {d.chosen_by for d in after.values()} == {"incumbent"}
        assert {outcomes_by_plugin(d)["rival"] for d in after.values()} == {"slower"}
    again = build(two, 6)
    for key, decision in again.items():
        if decision.chosen != first[key].chosen:
            ties = {r.tactic for r in decision.candidates if r.outcome in (Outcome.TIE, Outcome.CHOSEN)}
            assert first[key].chosen in ties


def outcomes_by_plugin(decision: Decision) -> dict[str, str]:
    return {r.plugin: str(r.outcome) for r in decision.candidates}


def test_a_slower_newcomer_changes_nothing(tmp_path: Path) -> None:
    """Racing the winner against a newcomer on a quieter machine says nothing new of those it was tied with."""
    close = make_tactic("Close", Sized, step=0.012, best=3, blocks=tuple(range(6)))
    slower = make_tactic("Slower", cost=1.5e-5)
    for seed in range(40):
        cache = TimingCache(tmp_path / f"{seed}.sqlite")
        chosen = []
        for number, offers in enumerate((registry(close), registry(close, newcomer=slower)) * 2):
            device = FakeDevice()
            noise = 0.0005 if number else 0.04
            timer = ScriptedTimer(device, noise=noise, seed=10 * seed + number)
            measured = Measurer(offers, device, timer, reference, cache=cache).measure_all([CALL])
            fingerprints = {CALL.key: device.fingerprint()}
            nodes = {CALL.key: ["node"]}
            (decision,) = choose_all(measured, nodes, cache=cache, fingerprints=fingerprints)
            chosen.append(decision.chosen)
        assert len(set(chosen)) == 1, f"seed {seed}: {chosen}"
