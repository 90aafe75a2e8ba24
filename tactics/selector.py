"""Algorithm selectors: an object of the caller's that sees all candidates and may overrule the choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tactician.signature import OpSignature


@dataclass(frozen=True)
class AlgorithmContext:
    """The call that a choice is made for.

    Parameters
    ----------
    nodes
        Names of the nodes: one when it is asked, all that share the choice when it is told.
    signature
        Operator, attributes and types.
    target, device
        Where it runs: name of the target, and of the device where it is known.
    """

    nodes: tuple[str, ...]
    signature: OpSignature
    target: str
    device: str = ""

    @property
    def name(self) -> str:
        """The first node's name."""
        return self.nodes[0]


@dataclass(frozen=True)
class AlgorithmChoice:
    """One candidate that passed all checks.

    Parameters
    ----------
    tactic
        Its id.
    plugin
        Name of its plugin.
    timing
        Median seconds of one call, or None where it was not timed.
    workspace
        Bytes of scratch memory.
    error
        Relative error against the reference, or None where it could not be checked.
    numerics
        Marks such as ``"tf32"``.
    version
        Of the tactic: another number is another kernel.
    """

    tactic: str
    plugin: str
    timing: float | None
    workspace: int
    error: float | None
    numerics: tuple[str, ...]
    version: int = 1


class AlgorithmSelector:
    """Restricts or makes choices, with TensorRT's interface. Subclass it and override what is needed.

    It is asked after everything is measured, once for each node, and only for what neither a ``--tactic``
    rule nor a lock file decides. A ``SelectionError`` that it raises ends the build; any other exception is reported
    and passed over, unless the build is strict.
    """

    def select_algorithms(self, context: AlgorithmContext, choices: Sequence[AlgorithmChoice]) -> list[int]:
        """Return the indices, into ``choices``, of those that may be used.

        The fastest of them is. An empty list leaves the choice to the builder.
        """
        return []

    def report_algorithms(
        self, contexts: Sequence[AlgorithmContext], choices: Sequence[AlgorithmChoice]
    ) -> None:
        """See the final choices of the whole network: one context and one choice for each decision."""
