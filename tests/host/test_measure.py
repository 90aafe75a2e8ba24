"""Measuring asks, filters, checks, times and remembers; a second time it does only what is new."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fakes import (
    OP,
    Affine,
    FakeDevice,
    ScriptedTimer,
    Sized,
    affine,
    make_tactic,
    outcomes,
    plugin,
    reference,
    registry,
    signature,
)
from tactician import Op, measuring
from tactician.config import BuilderConfig
from tactician.errors import BuildCancelledError, CacheError, SelectionError, TimingCacheMissError
from tactician.signature import OpSignature, TensorType
from tactician.supervisor import Workers
from tactician.tactics.admission import DeviceLostError
from tactician.tactics.cache import TimingCache
from tactician.tactics.measure import Measured, Measurer, Progress
from tactician.tactics.record import Outcome
from tactician.tactics.registry import Registry
from tactician.tactics.tactic import Tactic

CALL = signature()
FAST = make_tactic("Fast", cost=1e-5)
SLOW = make_tactic("Slow", cost=2e-5)
WRONG = make_tactic("Wrong", cost=1e-6, run=lambda *a: None)


def fail(*_: Any) -> Any:
    raise RuntimeError("broken")


RAISES = make_tactic("Raises", prepare=fail)
NO = make_tactic("No", decline=lambda *a: "not today")


@pytest.fixture
def cache(tmp_path: Path) -> TimingCache:
    return TimingCache(tmp_path / "timing.sqlite")


def measurer(offers: Registry, device: FakeDevice | None = None, **options: Any) -> Measurer:
    """Return a measurer; options of the configuration may stand beside its own."""
    own = {k: options.pop(k) for k in ("cache", "hooks", "progress", "decided", "timer") if k in options}
    device = device or FakeDevice()
    timer = own.pop("timer", None) or device.timer()
    config = BuilderConfig(threads=2, **options)
    return Measurer(offers, device, timer, reference, config=config, **own)


def measure(offers: Registry, call: OpSignature = CALL, **options: Any) -> Measured:
    return measurer(offers, **options).measure_all([call])[call.key]


def medians(measured: Measured) -> dict[str, float]:
    return {r.tactic: r.timing.median for r in measured.records if r.timing}


def test_every_candidate_has_a_record() -> None:
    measured = measure(registry(FAST, SLOW, WRONG, RAISES, NO))
    assert outcomes(measured.records) == {
        "fast": "tie",
        "slow": "slower",
        "wrong": "wrong",
        "raises": "failed",
        "no": "declined",
    }
    by_name = {r.tactic: r for r in measured.records}
    fast, slow = by_name["acme.fast()"], by_name["acme.slow()"]
    assert fast.timing is not None
    assert slow.timing is not None
    assert fast.timing.median == pytest.approx(1e-5)
    assert slow.timing.median == pytest.approx(2e-5)
    assert fast.error is not None
    assert fast.tolerance is not None
    assert by_name["acme.wrong()"].timing is None, "what is wrong is not timed"
    assert "broken" in by_name["acme.raises()"].reason
    assert [r.tactic for r in measured.usable] == ["acme.fast()", "acme.slow()"]
    assert set(measured.candidates) == {"acme.fast()", "acme.slow()", "acme.wrong()", "acme.raises()"}


def test_equal_calls_are_measured_once() -> None:
    Affine.prepared.clear()
    results = measurer(registry(FAST, SLOW)).measure_all([signature(), signature(), signature(5)])
    assert len(results) == 2
    assert sorted(Affine.prepared) == ["fast", "fast", "slow", "slow"]


def test_an_only_candidate_is_timed_without_rivals() -> None:
    (record,) = measure(registry(FAST)).records
    assert record.timing is not None
    assert record.timing.samples == 5


def test_what_takes_too_long_in_its_check_is_not_raced() -> None:
    import time

    crawling = make_tactic("Crawling", run=lambda *a: (time.sleep(0.15), Affine.run(*a)))
    device = FakeDevice()
    timer = ScriptedTimer(device)
    measured = measure(registry(FAST, crawling), device=device, timer=timer)
    record = next(r for r in measured.records if "crawling" in r.tactic)
    assert record.outcome is Outcome.SLOWER
    assert "not raced" in record.reason
    assert record.timing is not None
    assert record.timing.median > 0.14
    assert len(timer.prepared) == 1


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({"sources": ("libfast",)}, {"lib"}),
        ({"sources": ("-libfast",)}, {"plain", "tf32", "shaky", "big"}),
        ({"sources": ("-acme", "other")}, set()),
        ({"workspace_limit": 100}, {"plain", "lib", "shaky"}),
        ({"deterministic": True}, {"plain", "lib", "big"}),
        ({"tf32": True}, {"plain", "lib", "tf32", "shaky", "big"}),
        ({}, {"plain", "lib", "shaky", "big"}),
    ],
)
def test_policies_filter_with_a_reason(options: dict[str, Any], left: set[str]) -> None:
    offers = registry(
        make_tactic("Plain"),
        make_tactic("Lib", library="libfast"),
        make_tactic("Tf32", marks=frozenset({"tf32"}), scratch=0),
        make_tactic("Shaky", marks=frozenset({"nondeterministic"})),
        make_tactic("Big", scratch=101),
    )
    if "sources" in options and "-libfast" in options["sources"]:
        options = options | {"tf32": True}
    measured = measure(offers, **options)
    found = outcomes(measured.usable)
    assert set(found) == left
    for record in measured.records:
        assert record.outcome in (Outcome.FILTERED, *(r.outcome for r in measured.usable))
        assert record.outcome is not Outcome.FILTERED or record.reason


def test_candidates_beyond_the_limit_are_pruned_but_for_a_few() -> None:
    many = make_tactic("Many", Sized, blocks=tuple(range(50)), step=0.02)
    measured = measure(registry(many, FAST), max_candidates=4)
    timed = [r.tactic for r in measured.records if r.timing]
    assert {"acme.fast()", *(f"acme.many(block={b})" for b in range(3))} <= set(timed), (
        "each tactic's first guesses"
    )
    assert len(timed) == 4 + 3, "5 % of the 47 pruned are timed all the same"
    pruned = [r for r in measured.records if r.outcome is Outcome.PRUNED]
    assert len(pruned) == 44
    assert "4 candidates" in pruned[0].reason
    again = measure(registry(many, FAST), max_candidates=4)
    assert [r.tactic for r in again.records if r.timing] == timed, "the same few every time"


def test_a_hook_filters(caplog: pytest.LogCaptureFixture) -> None:
    asked: list[list[str]] = []
    named: list[dict[str, str]] = []

    def only_slow(signature: OpSignature, candidates: list[str], tactics: Mapping[str, Tactic]) -> list[str]:
        asked.append(candidates)
        named.append({name: tactic.name() for name, tactic in tactics.items()})
        return [c for c in candidates if "slow" in c]

    measured = measure(registry(FAST, SLOW), hooks=[("steer", only_slow), ("mute", lambda **a: None)])
    assert outcomes(measured.records)["fast"] == "filtered"
    assert next(r for r in measured.records if "fast" in r.tactic).reason.endswith("plugin 'steer'")
    assert asked == [["acme.fast()", "acme.slow()"]]
    assert named == [{"acme.fast()": "fast", "acme.slow()": "slow"}]
    assert not caplog.records


@pytest.mark.parametrize("answer", [["nobody.x()"], [], 7, RuntimeError("oops")])
def test_a_filter_that_fails_is_reported_once_and_ignored(
    answer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def hook(**arguments: Any) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    run = measurer(registry(FAST, SLOW), hooks=[("bad", hook)])
    with caplog.at_level(logging.WARNING):
        results = run.measure_all([signature(), signature(5)])
    assert all(len(m.usable) == 2 for m in results.values())
    assert len([r for r in caplog.records if "'bad'" in r.message]) == 1
    with pytest.raises(SelectionError, match="--no-plugin bad"):
        measure(registry(FAST, SLOW), hooks=[("bad", hook)], strict=True)


def test_a_filter_that_refuses_ends_the_build() -> None:
    def refuse(**arguments: Any) -> Any:
        raise SelectionError("the policy can't be read")

    with pytest.raises(SelectionError, match="^the policy can't be read$"):
        measure(registry(FAST, SLOW), hooks=[("policy", refuse)])


def test_the_second_time_nothing_is_measured(cache: TimingCache) -> None:
    offers = registry(FAST, SLOW, WRONG, RAISES)
    first = measure(offers, cache=cache)
    Affine.prepared.clear()
    device = FakeDevice()
    timer = ScriptedTimer(device)
    second = measure(offers, cache=cache, device=device, timer=timer)
    assert (Affine.prepared, timer.samples, device.uploads) == ([], 0, 0)
    assert outcomes(second.records) == outcomes(first.records)
    assert medians(second) == medians(first)
    assert all(r.cached for r in second.records)
    assert not any(r.cached for r in first.records)


@pytest.mark.parametrize("change", ["driver", "digest", "version", "policy"])
def test_what_changed_is_measured_again(cache: TimingCache, change: str) -> None:
    measure(registry(FAST), cache=cache)
    device, offers, options = FakeDevice(), registry(FAST), {}
    if change == "driver":
        device.fields["driver"] = "2.0"
    elif change == "digest":
        offers = Registry()
        offers.add(plugin(digest="d2"), FAST)
    elif change == "version":
        offers = registry(make_tactic("Fast", FAST, version=2))
    else:
        options = {"avg_timing_iterations": 9}
    (record,) = measure(offers, cache=cache, device=device, **options).records
    assert not record.cached
    fresh = FakeDevice()
    fresh.fields["driver"] = "3.0"
    with pytest.raises(TimingCacheMissError, match=r"Affine.*acme\.fast\(\).*differs in"):
        measure(offers, cache=cache, device=fresh, error_on_timing_cache_miss=True, **options)


def test_a_miss_is_an_error_where_asked(cache: TimingCache) -> None:
    with pytest.raises(TimingCacheMissError, match="no entry for this signature"):
        measure(registry(FAST), cache=cache, error_on_timing_cache_miss=True)
    with pytest.raises(TimingCacheMissError, match="no timing cache is in use"):
        measure(registry(FAST), error_on_timing_cache_miss=True)
    measure(registry(FAST, SLOW), cache=cache)
    measure(registry(FAST, SLOW), cache=cache, error_on_timing_cache_miss=True)


def test_a_newcomer_is_raced_against_the_incumbent_alone(cache: TimingCache) -> None:
    offers = registry(FAST, SLOW, make_tactic("Middle", cost=1.3e-5))
    first = measure(offers, cache=cache)
    cache.set_incumbent(CALL, FakeDevice().fingerprint(), "acme.middle()")
    Affine.prepared.clear()
    device = FakeDevice()

    class HalfSpeed(ScriptedTimer):
        """The machine is twice as slow today: times must still compare with the cached ones."""

        def round(self, contenders: Sequence[Any]) -> list[float]:
            return [2 * t for t in super().round(contenders)]

    timer = HalfSpeed(device, noise=0.001)
    new = {"rival": [make_tactic("Newcomer", cost=1.1e-5), make_tactic("Bad", run=lambda *a: None)]}
    offers = registry(FAST, SLOW, make_tactic("Middle", cost=1.3e-5), **new)
    second = measure(offers, cache=cache, device=device, timer=timer)
    assert sorted(Affine.prepared) == ["bad", "middle", "newcomer"]
    assert len(timer.prepared) == 2
    assert second.incumbent == "acme.middle()"
    times = medians(second)
    assert {k: times[k] for k in medians(first)} == pytest.approx(medians(first))
    assert times["rival.newcomer()"] == pytest.approx(1.1e-5, rel=0.003)
    assert outcomes(second.records)["bad"] == "wrong"
    third = measure(offers, cache=cache)
    assert all(r.cached for r in third.records)
    assert medians(third) == pytest.approx(times)


def test_only_what_the_lock_decides_is_measured() -> None:
    offers = registry(FAST, SLOW)
    measured = measure(offers, decided={CALL.key: ["acme.slow()"]})
    assert outcomes(measured.records) == {"fast": "pruned", "slow": "tie"}
    measured = measure(offers, decided={CALL.key: ["acme.gone()"]})
    assert len(measured.usable) == 2, "what is not offered decides nothing"


def test_cancelling_keeps_what_was_measured(cache: TimingCache) -> None:
    calls = [signature(n) for n in range(1, 6)]
    seen: list[Progress] = []

    def watch(progress: Progress) -> None:
        seen.append(progress)
        if progress.phase == "measure" and progress.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(BuildCancelledError, match=r"3 of 5 calls.*timing\.sqlite"):
        measurer(registry(FAST, SLOW), cache=cache, progress=watch).measure_all(calls)
    assert cache.info().entries == 6
    run = measurer(registry(FAST, SLOW), cache=cache, progress=seen.append)
    assert len(run.measure_all(calls)) == 5
    assert (seen[-1].tactics, seen[-1].cached) == (10, 6)


def test_progress(cache: TimingCache) -> None:
    seen: list[Progress] = []
    measurer(registry(FAST, SLOW), progress=seen.append).measure_all([signature(), signature(5)])
    phases = list(dict.fromkeys(p.phase for p in seen))
    assert phases == ["discover", "compile", "measure"]
    for phase, total in zip(phases, (2, 4, 2), strict=True):
        steps = [p for p in seen if p.phase == phase]
        assert {p.total for p in steps} == {total}
        assert [p.done for p in steps] == sorted(p.done for p in steps)
        assert steps[-1].done == total
        assert steps[-1].eta_seconds == 0
    assert str(signature()) in {p.detail for p in seen}


def test_a_lost_device_ends_the_build_and_is_remembered(cache: TimingCache) -> None:
    def lose(self: Affine, device: FakeDevice, inputs: Any, outputs: Any, workspace: Any) -> None:
        device.lost = True

    offers = registry(FAST, make_tactic("Killer", run=lose))
    with pytest.raises(DeviceLostError, match=r"acme\.killer\(\)"):
        measure(offers, cache=cache)
    measured = measure(offers, cache=cache)
    killer = next(r for r in measured.records if "killer" in r.tactic)
    assert (killer.outcome, killer.cached) == (Outcome.FAILED, True)
    assert "illegal memory access" in killer.reason
    assert [r.tactic for r in measured.usable] == ["acme.fast()"]


def test_running_out_of_memory_is_not_remembered(cache: TimingCache) -> None:
    greedy = make_tactic("Greedy", scratch=1 << 22)
    measured = measure(registry(greedy), cache=cache, device=FakeDevice(memory=1 << 20))
    (record,) = measured.records
    assert record.outcome is Outcome.FAILED
    assert "can't allocate" in record.reason
    assert len(measure(registry(greedy), cache=cache).usable) == 1
    tiny = measure(registry(FAST), device=FakeDevice(memory=100))
    assert tiny.records[0].outcome is Outcome.UNMEASURED
    assert "can't allocate" in tiny.records[0].reason


def test_a_cache_that_fails_midway_does_not_end_the_build(
    cache: TimingCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise CacheError("the disk is full")

    monkeypatch.setattr(cache, "put", full)
    results = measurer(registry(FAST), cache=cache).measure_all([signature(), signature(5)])
    assert all(m.usable for m in results.values())
    assert len([r for r in caplog.records if "disk is full" in r.message]) == 1
    with pytest.raises(CacheError):
        measure(registry(FAST), cache=cache, strict=True)


def test_a_timer_that_refuses_a_tactic() -> None:
    class Refusing(ScriptedTimer):
        def prepare(self, thunk: Any, rotate: Sequence[Any] = ()) -> Any:
            contender = super().prepare(thunk, rotate)
            if contender.seconds > 1.5e-5:
                raise RuntimeError("can't be captured")
            return contender

    device = FakeDevice()
    timer = Refusing(device)
    measured = measure(registry(FAST, SLOW), device=device, timer=timer)
    assert outcomes(measured.records) == {"fast": "tie", "slow": "failed"}
    assert "can't be captured" in next(r.reason for r in measured.records if "slow" in r.tactic)
    assert timer.released == 1


@pytest.mark.parametrize(
    ("weights", "l2_bytes", "copies"),
    [(8192, 0, 1), (1000, 1 << 20, 1), (8192, 40_000, 4), (8192, 1 << 30, 8), (1 << 20, 1 << 20, 1)],
)
def test_weights_are_rotated_out_of_the_cache(weights: int, l2_bytes: int, copies: int) -> None:
    pointers: set[int] = set()

    def note(self: Affine, device: FakeDevice, inputs: Any, outputs: Any, workspace: Any) -> None:
        pointers.add(inputs[1].array.ctypes.data)
        Affine.run(self, device, inputs, outputs, workspace)

    device = FakeDevice(**({"l2_bytes": l2_bytes} if l2_bytes else {}))
    timer = ScriptedTimer(device)
    call = signature(weights=weights)
    pointers.clear()
    measure(registry(make_tactic("Note", run=note)), call, device=device, timer=timer)
    assert len(timer.prepared[0].thunks) == copies
    before = len(pointers)
    for thunk in timer.prepared[0].thunks:
        thunk("stream")
    assert len(pointers) == before, "the copies stay where they are"
    assert before >= copies


def test_dynamic_shapes_are_measured_at_a_representative_size() -> None:
    from fakes import affine

    dynamic = TensorType("float32", ("N", 3))
    call = signature().bound((dynamic,), (dynamic,))
    shapes: set[tuple[int, ...]] = set()

    def prepare(self: Affine, signature: OpSignature, device: FakeDevice) -> Any:
        def launch(inputs: Any, outputs: Any, workspace: Any, stream: Any) -> list[Any]:
            shapes.add(inputs[0].array.shape)
            return [affine(inputs[0].array)]

        return launch

    measured = measure(registry(make_tactic("Any", prepare=prepare), make_tactic("Lazy", WRONG)), call)
    assert outcomes(measured.records) == {"any": "tie", "lazy": "wrong"}
    assert shapes == {(8, 3)}


def test_what_can_not_be_sampled_stays_unmeasured_in_order(cache: TimingCache) -> None:
    sequence = signature().bound((TensorType("sequence(float32)", None),), signature().outputs)
    measured = measure(registry(SLOW, FAST), sequence, cache=cache)
    assert [(r.tactic, r.outcome) for r in measured.records] == [
        ("acme.fast()", Outcome.UNMEASURED),
        ("acme.slow()", Outcome.UNMEASURED),
    ]
    assert "sequence(float32)" in measured.records[0].reason
    assert cache.info().entries == 0


def test_a_race_under_noise_repeats_from_the_cache(tmp_path: Path) -> None:
    """Ten tactics within 5 %: from one cache every build sees the same times."""
    many = make_tactic("Many", Sized, blocks=tuple(range(10)), step=0.005)
    cache = TimingCache(tmp_path / "timing.sqlite")
    seen = []
    for seed in range(3):
        device = FakeDevice()
        timer = ScriptedTimer(device, noise=0.01, drift=0.03, spikes=0.02, seed=seed)
        seen.append(medians(measure(registry(many), cache=cache, device=device, timer=timer)))
    assert seen[0] == seen[1] == seen[2]
    assert np.argmin(list(seen[0].values())) <= 3


def lose(self: Affine, device: FakeDevice, inputs: Any, outputs: Any, workspace: Any) -> None:
    """Right for as long as it is checked, and then the end of the device."""
    Affine.run(self, device, inputs, outputs, workspace)
    device.runs = getattr(device, "runs", 0) + 1  # type: ignore[attr-defined]  # the test's own
    device.lost = device.runs > 4  # type: ignore[attr-defined]  # as above


class SynchronizingTimer(ScriptedTimer):
    """Waits for the device in each round, as a timer of a real one does."""

    def prepare(self, thunk: Any, rotate: Sequence[Any] = ()) -> Any:
        contender = super().prepare(thunk, rotate)
        self.device.synchronize()
        return contender


def test_a_device_that_is_lost_while_candidates_are_timed_ends_the_build() -> None:
    device = FakeDevice()
    with pytest.raises(DeviceLostError, match=r"acme\.loses\(\).*unusable \(time\)") as caught:
        measure(registry(make_tactic("Loses", run=lose)), device=device, timer=SynchronizingTimer(device))
    assert caught.value.candidates == ("acme.loses()",)


def test_a_device_that_is_lost_while_a_candidate_is_prepared_ends_the_build() -> None:
    def prepare(self: Affine, signature: OpSignature, device: FakeDevice) -> Any:
        device.lost = True
        raise RuntimeError("a wrong handle")

    with pytest.raises(DeviceLostError, match=r"acme\.loses\(\).*unusable \(prepare\): a wrong handle"):
        measure(registry(make_tactic("Loses", prepare=prepare), FAST))


def test_what_can_not_be_prepared_has_failed_also_where_nothing_can_be_checked() -> None:
    dynamic = OpSignature(
        CALL.op, 1, (), (TensorType("float32", None),), (TensorType("float32", None),), (None,)
    )
    measured = measure(registry(RAISES, FAST), dynamic)
    assert outcomes(measured.records) == {"raises": "failed", "fast": "unmeasured"}


def test_only_what_a_network_has_goes_on_to_the_next_device() -> None:
    refuses = make_tactic("Refuses", decline=lambda self, signature, device: "not today")
    takes = make_tactic("Takes", target="other")
    first, second = FakeDevice(), FakeDevice()
    second.target = "other"
    plugins = SimpleNamespace(
        registry=registry(refuses, takes),
        ops={OP: Op(OP, lambda s: list(s.inputs[:1]), lambda s, x: affine(x))},
        targets={},
        hooks=SimpleNamespace(filter_tactics=[]),
    )
    needed, proposed = signature(), signature(7)
    config = BuilderConfig(use_timing_cache=False)
    devices, calls = [first, second], {"needed": needed}
    workers = Workers(config)
    results = measuring.measure(
        calls,
        devices,
        plugins,
        config,
        None,
        None,
        None,
        own=None,
        workers=workers,
        proposed={"proposed": proposed},
    )
    device, measured = results[needed.key]
    assert device is second
    assert [(r.tactic, r.reason) for r in measured.records] == [
        ("acme.takes()", ""),
        ("acme.refuses()", "not today"),
    ]
    device, measured = results[proposed.key]
    assert device is first and not measured.usable


class Another:
    """Another process that measures, in this one."""

    def __init__(self, offers: Registry) -> None:
        self.run = measurer(offers)
        self.begun: list[str] = []
        self.asked: list[str] = []

    def begin(self, signatures: Sequence[OpSignature]) -> None:
        self.begun = [s.key for s in signatures]

    def measure(self, signatures: Sequence[OpSignature]) -> dict[str, Any]:
        self.asked = [s.key for s in signatures]
        return {key: m.records for key, m in self.run.measure_all(signatures).items()}


def test_another_process_begins_with_what_nothing_is_known_of(cache: TimingCache) -> None:
    refused = OpSignature("test::Other", 1, (), CALL.inputs, CALL.outputs, (None,))
    calls = [signature(3), signature(4), refused]
    measure(registry(FAST), calls[0], cache=cache)
    seen: list[tuple[str, int]] = []
    run = measurer(
        registry(FAST, SLOW), cache=cache, progress=lambda p: seen.append((p.phase, len(another.begun)))
    )
    another = run.elsewhere = Another(registry(FAST, SLOW))
    results = run.measure_all(calls)
    assert another.begun == [calls[1].key], "the first is known, and nobody offers to run the third"
    assert seen[0] == ("discover", 1), "it has begun when tactics are asked"
    assert another.asked == [calls[0].key, calls[1].key], "of the first, the slow one is new"
    assert [len(results[c.key].usable) for c in calls] == [2, 2, 0]
    run = measurer(registry(FAST, SLOW), cache=cache, error_on_timing_cache_miss=True)
    another = run.elsewhere = Another(registry(FAST, SLOW))
    with pytest.raises(TimingCacheMissError):
        run.measure_all([signature(5)])
    assert not another.begun


def test_tactics_are_asked_once_for_a_call() -> None:
    asked: list[str] = []

    def decline(self: Affine, signature: OpSignature, device: FakeDevice) -> None:
        asked.append(self.name())

    offers = registry(*(make_tactic(name, decline=decline) for name in ("First", "Second")))
    device, other = FakeDevice(), FakeDevice()
    assert offers.accepts(CALL, device)
    assert asked == ["first"], "no more than it takes to know"
    assert offers.accepts(CALL, device, lambda c: "second" in c.id)
    assert len(offers.candidates(CALL, device)[0]) == 2
    assert asked == ["first", "second"]
    assert not offers.accepts(CALL, device, lambda c: "third" in c.id)
    offers.candidates(CALL, other)
    assert asked == 2 * ["first", "second"], "another device is another question"
    offers.add(plugin("rival"), make_tactic("Third", decline=decline))
    assert len(offers.candidates(CALL, device)[0]) == 3
