"""Of every kind of candidates the first few are tried, more of those that keep up, and the cache decides the same again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from fakes import Affine, FakeDevice, ScriptedTimer, Sized, make_tactic, reference, registry, signature
from hypothesis import given
from hypothesis import strategies as st
from tactician.config import BuilderConfig
from tactician.errors import BuildCancelledError
from tactician.plugins.target import Device, Precompiler
from tactician.tactics.cache import TimingCache
from tactician.tactics.measure import Measured, Measurer, Progress
from tactician.tactics.record import Outcome
from tactician.tactics.registry import Registry
from tactician.tactics.watch import Watch
from tactician.tactics.widening import FIRST, NEAR

CALL = signature()
BLOCKS = tuple(range(12))


def kind(name: str, cost: float, best: int = 0, step: float = 0.05, **attributes: Any) -> type[Affine]:
    """Return a tactic of twelve candidates; ``best`` is the fastest, and takes ``cost``."""
    return make_tactic(name, Sized, cost=cost, best=best, step=step, blocks=BLOCKS, **attributes)


def measure(offers: Registry, device: FakeDevice | None = None, **options: Any) -> Measured:
    own = {k: options.pop(k) for k in ("cache", "named", "progress") if k in options}
    device = device or FakeDevice()
    config = BuilderConfig(threads=2, **options)
    run = Measurer(offers, device, device.timer(), reference, config=config, **own)
    return run.measure_all([CALL])[CALL.key]


def tried(measured: Measured, name: str) -> list[int]:
    """Return the blocks of a tactic that were timed."""
    return [
        int(r.tactic.partition("block=")[2][:-1])
        for r in measured.records
        if r.timing is not None and r.tactic.startswith(f"acme.{name}(")
    ]


def reasons(measured: Measured) -> set[str]:
    return {r.reason for r in measured.records if r.outcome is Outcome.PRUNED}


def test_a_kind_that_is_far_behind_with_its_first_guesses_is_left() -> None:
    Affine.prepared.clear()
    measured = measure(registry(kind("Good", 1e-5), kind("Poor", 2e-5)))
    assert tried(measured, "poor") == [0, 1, 2]
    assert Counter(Affine.prepared)["poor"] == FIRST, "what is not tried is not compiled"
    assert len(measured.records) == 24, "each has a record all the same"
    (reason,) = {r for r in reasons(measured) if "2.0 times" in r}
    assert (
        reason
        == "not tried: the best of the first 3 of its kind takes 2.0 times as long as acme.good(block=0)"
    )


def test_a_kind_goes_on_as_long_as_that_brings_something() -> None:
    measured = measure(registry(kind("Good", 1e-5, best=0), kind("Late", 0.8e-5, best=11, step=0.04)))
    assert tried(measured, "late") == list(BLOCKS), "it gets faster with every turn"
    assert tried(measured, "good") == [0, 1, 2, 3, 4, 5], "of its second three none was faster"
    assert any("the second half brought nothing faster" in r for r in reasons(measured))


def test_nothing_is_left_out_where_all_are_asked_for() -> None:
    offers = registry(kind("Good", 1e-5), kind("Poor", 9e-5))
    measured = measure(offers, exhaustive=True)
    assert tried(measured, "poor") == tried(measured, "good") == list(BLOCKS)
    assert len(tried(measure(offers, max_candidates=24), "poor")) == 12, "who gives a number gets that many"


def test_first_guesses_that_fail_say_nothing_of_the_others() -> None:
    def prepare(self: Any, signature: Any, device: Any) -> Any:
        if self.block < 4:
            raise RuntimeError("too large")
        return Affine.prepare(self, signature, device)

    measured = measure(registry(kind("Good", 1e-5), kind("Picky", 0.5e-5, best=4, prepare=prepare)))
    assert 4 in tried(measured, "picky")
    wrong = kind("Wrong", 1e-6, run=lambda *a: None)
    records = measure(registry(kind("Good", 1e-5), wrong)).records
    assert {r.outcome for r in records if "wrong" in r.tactic} == {Outcome.WRONG}


def test_what_somebody_wants_is_tried(tmp_path: Path) -> None:
    offers = registry(kind("Good", 1e-5), kind("Poor", 9e-5))
    by_rule = measure(offers, tactic_rules=(("node", "acme.poor(block=7)"),))
    assert tried(by_rule, "poor") == [0, 1, 2, 7]
    by_lock = measure(offers, named={CALL.key: ["acme.poor(block=9)"]})
    assert tried(by_lock, "poor") == [0, 1, 2, 9]
    cache = TimingCache(tmp_path / "timing.sqlite")
    cache.set_incumbent(CALL, FakeDevice().fingerprint(), "acme.poor(block=8)")
    assert tried(measure(offers, cache=cache), "poor") == [0, 1, 2, 8]


def test_other_numerics_are_another_kind() -> None:
    def numerics(self: Any, signature: Any) -> frozenset[str]:
        return frozenset({"tf32"} if self.block >= 6 else ())

    measured = measure(registry(kind("Both", 1e-5, best=0, step=0.5, numerics=numerics)), tf32=True)
    assert tried(measured, "both")[:3] == [0, 1, 2]
    assert {6, 7, 8} <= set(tried(measured, "both"))


def test_a_call_that_can_not_be_checked_is_not_compiled_for_in_vain() -> None:
    from tactician.signature import TensorType

    sequence = signature().bound((TensorType("sequence(float32)", None),), signature().outputs)
    device = FakeDevice()
    run = Measurer(registry(kind("Good", 1e-5)), device, device.timer(), reference)
    records = run.measure_all([sequence])[sequence.key].records
    assert [r.outcome for r in records].count(Outcome.UNMEASURED) == FIRST
    assert {r.reason for r in records[FIRST:]} == {"not tried: the first of its kind could not be timed"}


@given(
    st.lists(st.tuples(st.floats(0.5, 3.0), st.integers(0, 11), st.floats(0.0, 0.3)), min_size=1, max_size=4)
)
def test_a_build_over_the_cache_decides_the_same_without_timing(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[tuple[float, int, float]]
) -> None:
    offers = registry(*(kind(f"Kind{i}", 1e-5 * c, b, s) for i, (c, b, s) in enumerate(kinds)))
    cache = TimingCache(tmp_path_factory.mktemp("cache") / "timing.sqlite")
    first = measure(offers, cache=cache)
    Affine.prepared.clear()
    device = FakeDevice()
    second = measure(offers, device, cache=cache, error_on_timing_cache_miss=True)
    assert (Affine.prepared, device.uploads) == ([], 0)
    assert [(r.tactic, r.outcome, r.reason, r.timing) for r in first.records] == [
        (r.tactic, r.outcome, r.reason, r.timing) for r in second.records
    ]
    best = min(r.timing.median for r in first.records if r.timing)
    for i, (cost, at, step) in enumerate(kinds):
        first_guess = 1e-5 * cost * (1 + step * max(0, at - 2))
        if first_guess < NEAR * best * 0.99 and step * (at - 2) > 0.02 and at <= 5:
            assert at in tried(first, f"kind{i}"), "the best of a kind that keeps up is found"


def test_a_build_that_was_cancelled_goes_on_where_it_was(tmp_path: Path) -> None:
    offers = registry(kind("Good", 1e-5), kind("Late", 0.8e-5, best=11, step=0.04))
    cache = TimingCache(tmp_path / "timing.sqlite")

    def stop(progress: Progress) -> None:
        if progress.phase == "compile" and cache.info().entries:
            raise KeyboardInterrupt

    with pytest.raises(BuildCancelledError):
        measure(offers, cache=cache, progress=stop)
    assert cache.info().entries == 2 * FIRST
    Affine.prepared.clear()
    resumed = measure(offers, cache=cache)
    assert tried(resumed, "late") == list(BLOCKS)
    assert Counter(Affine.prepared)["late"] < len(BLOCKS)


def test_what_is_saved_on_a_call_like_a_convolution() -> None:
    """Five kinds of which one or two keep up, as of a convolution on a GPU."""
    offers = registry(
        kind("Library", 1.0e-5),
        kind("Tiles", 1.1e-5, best=2),
        kind("Wide", 1.6e-5),
        *(kind(name, cost) for name, cost in (("Plain", 4e-5), ("Direct", 9e-5))),
    )
    counts = {}
    for exhaustive in (False, True):
        Affine.prepared.clear()
        device = FakeDevice()
        timer = ScriptedTimer(device)
        run = Measurer(offers, device, timer, reference, config=BuilderConfig(exhaustive=exhaustive))
        measured = run.measure_all([CALL])[CALL.key]
        checked = [r for r in measured.records if r.error is not None]
        assert all(r in checked for r in measured.records if r.timing), "what is timed was checked"
        counts[exhaustive] = (len(Affine.prepared), len(checked), len(timer.prepared))
        leader = min((r for r in measured.records if r.timing), key=lambda r: r.timing.median)
        assert leader.tactic == "acme.library(block=0)"
    assert counts[True] == (60, 60, 60)
    assert counts[False] == (21, 21, 22), (
        "prepared, checked, timed: the leader once more beside the second turn"
    )


class Others(Precompiler):
    """Compiles nothing; the first ``held`` things that it was asked for are there when a test says so."""

    def __init__(self, held: int = 0) -> None:
        self.held = held
        self.futures: list[Future[None]] = []

    def submit(self, prepare: Callable[[Device], Any]) -> Sequence[Future[None]]:
        future: Future[None] = Future()
        self.futures.append(future)
        if len(self.futures) > self.held:
            future.set_result(None)
        return [future]


class DeviceWithOthers(FakeDevice):
    """Has a precompiler, as a GPU does."""

    def __init__(self, held: int = 0) -> None:
        super().__init__()
        self.others = Others(held)

    def precompiler(self, processes: int) -> Precompiler:
        assert processes >= 1
        return self.others


def test_where_others_compile_each_call_is_measured_when_its_kernels_are_there() -> None:
    device = DeviceWithOthers(held=2)
    order: list[str] = []

    def watch(progress: Progress) -> None:
        if progress.phase == "measure" and progress.detail:
            order.append(progress.detail)
            if len(order) == 3:
                for future in device.others.futures[:2]:
                    future.set_result(None)

    calls = [signature(n) for n in (3, 4, 5, 6)]
    offers = registry(make_tactic("One", cost=1e-5), make_tactic("Two", cost=2e-5))
    config = BuilderConfig(threads=4)
    run = Measurer(offers, device, device.timer(), reference, config=config, progress=watch)
    results = run.measure_all(calls)
    assert order == [str(call) for call in (*calls[1:], calls[0])]
    assert all(len(m.usable) == 2 for m in results.values())
    assert set(run.stopwatch.seconds) == {"ask", "reference", "compile", "load", "check", "time"}


def test_who_does_one_thing_at_a_time_has_nothing_compiled_elsewhere() -> None:
    class Careful(Watch):
        careful = True

    device = DeviceWithOthers()
    Measurer(registry(kind("Good", 1e-5)), device, device.timer(), reference, watch=Careful()).measure_all(
        [CALL]
    )
    assert not device.others.futures


def test_with_others_or_without_the_same_are_tried() -> None:
    def offers() -> Registry:
        return registry(kind("Good", 1e-5), kind("Late", 0.8e-5, best=11, step=0.04), kind("Poor", 5e-5))

    device = DeviceWithOthers()
    one, other = measure(offers()), measure(offers(), device)
    assert [(r.tactic, r.outcome, r.reason) for r in one.records] == [
        (r.tactic, r.outcome, r.reason) for r in other.records
    ]
    assert len(device.others.futures) == sum(r.timing is not None for r in other.records)
