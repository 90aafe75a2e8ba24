"""The selector's interface: what a subclass need not override leaves the choice to the builder."""

from __future__ import annotations

import dataclasses

import pytest
from fakes import signature
from tactician import AlgorithmSelector
from tactician.tactics.selector import AlgorithmChoice, AlgorithmContext

CONTEXT = AlgorithmContext(("conv1", "conv2"), signature(), "fake", "Fake 1")
CHOICES = [
    AlgorithmChoice("acme.a()", "acme", 1e-5, 0, 1e-7, ()),
    AlgorithmChoice("acme.b()", "acme", None, 64, None, ("tf32",)),
]


def test_the_default_leaves_the_choice_to_the_builder() -> None:
    selector = AlgorithmSelector()
    assert selector.select_algorithms(CONTEXT, CHOICES) == []
    selector.report_algorithms([CONTEXT], CHOICES[:1])


def test_the_context_names_its_node() -> None:
    assert CONTEXT.name == "conv1"


@pytest.mark.parametrize("value", [CONTEXT, CHOICES[0]])
def test_a_selector_can_not_change_what_it_sees(value: object) -> None:
    field = dataclasses.fields(value)[0].name  # type: ignore[arg-type]  # both are dataclasses
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, field, "other")
