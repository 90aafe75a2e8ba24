"""Memory planning: live tensors never overlap, and the figures reported are true."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tactician.memory import ALIGNMENT, Lifetime, plan_memory

LIFETIMES = st.lists(
    st.builds(
        lambda size, first, length: Lifetime(size, first, first + length),
        st.integers(0, 5000),
        st.integers(0, 30),
        st.integers(0, 10),
    ),
    max_size=40,
)


@given(LIFETIMES)
def test_live_tensors_never_overlap(lifetimes: list[Lifetime]) -> None:
    plan = plan_memory(lifetimes)
    for i, a in enumerate(lifetimes):
        assert plan.offsets[i] % ALIGNMENT == 0
        assert plan.offsets[i] + a.nbytes <= plan.peak
        for j, b in enumerate(lifetimes[:i]):
            if a.first <= b.last and b.first <= a.last and a.nbytes and b.nbytes:
                apart = (
                    plan.offsets[i] + a.nbytes <= plan.offsets[j]
                    or plan.offsets[j] + b.nbytes <= plan.offsets[i]
                )
                assert apart, (a, b)


@given(LIFETIMES)
def test_figures_are_ordered(lifetimes: list[Lifetime]) -> None:
    plan = plan_memory(lifetimes)
    assert plan.lower_bound <= plan.peak <= plan.naive


@given(LIFETIMES)
def test_lower_bound_is_the_largest_live_sum(lifetimes: list[Lifetime]) -> None:
    live = [
        sum(-(-t.nbytes // ALIGNMENT) * ALIGNMENT for t in lifetimes if t.first <= step <= t.last)
        for step in range(45)
    ]
    assert plan_memory(lifetimes).lower_bound == max(live)


@pytest.mark.parametrize("length", [1, 2, 50])
def test_a_chain_needs_two_buffers(length: int) -> None:
    chain = [Lifetime(1000, i, i + 1) for i in range(length)]
    assert plan_memory(chain).peak == 1024 * min(length, 2)


def test_nothing_to_plan() -> None:
    plan = plan_memory([])
    assert (plan.offsets, plan.peak, plan.naive, plan.lower_bound) == ((), 0, 0, 0)
