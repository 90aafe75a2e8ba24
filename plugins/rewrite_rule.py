"""A rewrite rule: a subgraph of operators that a plugin has something better for, as a network pass."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tactician.errors import PluginError
from tactician.plugins.reference import ops_in_use

if TYPE_CHECKING:
    import onnx_ir as ir
    from tactician.passes.match import Match
    from tactician.passes.rewrite import Rewritten

Pattern = Callable[..., Any]
"""``pattern(op, x, …)`` returns what the subgraph computes, a value or several; every argument after ``op`` is a
variable, which stands for an input, a constant or an attribute."""


@dataclass(frozen=True)
class RewriteRule:
    """Replaces every subgraph of the main graph that looks like a pattern; a plugin returns it from ``passes()``.

    The new nodes take over the names and types of the outputs that they replace, and the name of the last node. What
    only the subgraph read is removed with it. A match is left alone where a value within it is read elsewhere, where
    ``decline`` has a reason, and where the replacement's types differ from those of the outputs. Bodies of If and Loop
    run as one call, so that no tactic could compete for a node in them: they stay as they are.

    Importing and making a rule is cheap; ``onnx_ir`` and ``onnxscript`` are imported when it runs.

    Parameters
    ----------
    name
        The name of the pass: in reports, in the files of ``--dump-stages``, and what ``--without`` takes.
    pattern
        A function, or several: the first that matches counts. ``op.Add(x, y)``, ``x + y`` and ``op.Add(x, 1.0)`` stand
        for nodes, numbers and lists of numbers for constants of that value, and ``op.either(a, b, …)`` for any of its
        arguments. Attributes that a pattern does not name must have their defaults, unless the node is written with
        ``_allow_other_attributes=True``. ``_domain`` names another domain, ``_outputs`` a node's outputs.
    replacement
        ``replacement(op, match)`` returns the new values, as many as ``pattern`` returns. ``op`` makes nodes as in a
        pattern; ``match`` has what the variables stand for.
    decline
        ``decline(match)`` returns why a match is no match, in words, or None to replace it.
    commute
        Whether operands of commutative operators match in either order.

    Raises
    ------
    PluginError
        If the name can't be one, or there is no pattern.
    """

    name: str
    pattern: Pattern | Sequence[Pattern]
    replacement: Callable[[Any, Match], Any]
    decline: Callable[[Match], str | None] | None = None
    commute: bool = True

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z][\w.-]*", self.name):
            raise PluginError(
                f"a rewrite rule is called '{self.name}'; use letters, digits, '_', '-' and '.', a letter first"
            )
        if not self.patterns or not all(callable(p) for p in self.patterns):
            raise PluginError(f"rewrite rule '{self.name}': its pattern must be a function, or several")

    @property
    def patterns(self) -> tuple[Pattern, ...]:
        """The pattern functions in order."""
        return (self.pattern,) if callable(self.pattern) else tuple(self.pattern)

    def __call__(self, model: ir.Model) -> Rewritten:
        """Run on ``model`` in place, with the operators of the loaded plugins.

        Returns
        -------
        Rewritten
            A pass's result that counts matches.

        Raises
        ------
        PluginError
            If a function of the rule fails, or its replacement has an operator that nobody defines.
        """
        from tactician.passes.rewrite import rewrite

        return rewrite(model, self, ops_in_use())
