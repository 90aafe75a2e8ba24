"""Recognition: subgraphs that compute what one call of a known operator does, so that every kernel for it can compete."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import onnx_ir as ir
from tactician.signature import OpSignature

__all__ = ["Missed", "Recognised", "Recogniser"]


@dataclass(frozen=True, eq=False)
class Recognised:
    """A subgraph, and the call that it comes to.

    Parameters
    ----------
    name
        The recogniser's name.
    nodes
        All nodes that compute the result from ``inputs`` and constants, in the graph's order, the result's last.
        Those that others read too stay where they are.
    inputs
        What the call reads, in the order of its signature.
    signature
        The call.
    """

    name: str
    nodes: tuple[ir.Node, ...]
    inputs: tuple[ir.Value, ...]
    signature: OpSignature


@dataclass(frozen=True)
class Missed:
    """A place that looks like the operator but is not quite, and why.

    Parameters
    ----------
    name
        The recogniser's name.
    node
        The node that it was looked at from.
    reason
        In words.
    """

    name: str
    node: str
    reason: str


class Recogniser(Protocol):
    """Finds the subgraphs of one operator."""

    name: str
    """What ``--without`` takes, and reports say."""

    def prepare(self, network: ir.Model) -> None:
        """Bring ``network`` into a form in which more is recognised, in place; what it computes stays."""

    def find(self, network: ir.Model) -> Iterator[Recognised | Missed]:
        """Yield what is found in the main graph; no node is changed, constants may be added."""
