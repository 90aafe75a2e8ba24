"""What is offered to be timed: the candidates of a tactic, or its whole search space."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pytest
from fakes import Affine, FakeDevice, plugin, signature
from tactician.config import BuilderConfig
from tactician.plugins.manager import load_plugins
from tactician.tactics.registry import Registry


@dataclass(frozen=True)
class Tiled(Affine):
    """Takes itself to be fastest with tiles of 4."""

    tile: int = 4

    @classmethod
    def candidates(cls, call: Any, device: Any) -> Iterable[Tiled]:
        yield cls()

    @classmethod
    def search_space(cls, call: Any, device: Any) -> Iterable[Tiled]:
        yield from (cls(tile=n) for n in (1, 2, 4, 8))


@pytest.mark.parametrize(("exhaustive", "tiles"), [(False, [4]), (True, [1, 2, 4, 8])])
def test_the_search_space_is_offered_where_it_is_asked_for(exhaustive: bool, tiles: list[int]) -> None:
    registry = Registry(exhaustive)
    registry.add(plugin(), Tiled)
    accepted, refused = registry.candidates(signature(), FakeDevice())
    assert [c.tactic.tile for c in accepted] == tiles
    assert not refused


def test_a_tactic_without_a_search_space_offers_its_candidates() -> None:
    registry = Registry(exhaustive=True)
    registry.add(plugin(), Affine)
    assert [c.tactic for c in registry.candidates(signature(), FakeDevice())[0]] == [Affine()]


@pytest.mark.parametrize("exhaustive", [False, True])
def test_the_configuration_decides(exhaustive: bool) -> None:
    registry = load_plugins(BuilderConfig(exhaustive=exhaustive)).registry
    registry.add(plugin(), Tiled)
    accepted, _ = registry.candidates(signature(), FakeDevice())
    assert len([c for c in accepted if isinstance(c.tactic, Tiled)]) == (4 if exhaustive else 1)
