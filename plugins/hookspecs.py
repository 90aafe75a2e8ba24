"""The hooks that a plugin may implement. Each returns a value and changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pluggy
from tactician.plugins.op import Op
from tactician.plugins.target import Target
from tactician.signature import OpSignature
from tactician.tactics.record import CandidateRecord, Decision
from tactician.tactics.tactic import Tactic

if TYPE_CHECKING:
    from tactician.passes import Pass

PROJECT = "tactician"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def ops() -> list[Op]:
    """Return the custom operators that this plugin defines."""
    return []


@hookspec
def tactics() -> list[type[Tactic]]:
    """Return the tactic classes that this plugin offers, for standard and custom operators."""
    return []


@hookspec
def passes() -> list[Pass]:
    """Return network passes, run after the built-in ones."""
    return []


@hookspec
def targets() -> list[type[Target]]:
    """Return the targets that this plugin brings."""
    return []


@hookspec
def filter_tactics(
    signature: OpSignature, candidates: list[str], tactics: Mapping[str, Tactic]
) -> list[str] | None:
    """Return the ids, out of ``candidates``, that may be timed; None for no opinion.

    ``tactics`` has the tactic of each id: its ``library``, its ``numerics(signature)``, its fields. It came with version
    1.1 of the contract.
    """


@hookspec
def select_tactic(signature: OpSignature, measured: list[CandidateRecord]) -> str | None:
    """Return the id of the tactic to use, out of ``measured``; None for no opinion."""


@hookspec
def report_choices(choices: list[Decision]) -> None:
    """Look at all decisions of a finished build."""
