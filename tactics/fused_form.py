"""What a tactic can absorb: the operators that it runs in one go with the one that it is for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tactician.signature import OpSignature, Part


@dataclass(frozen=True)
class FusedForm:
    """A shape of subgraph that a tactic runs as one operator: an anchor, with what goes before and after it.

    The builder looks for such subgraphs, measures each against its operators one by one, and keeps what is faster. To
    match a form is no promise: the tactic still accepts or declines each call that is made of one, which it sees as a
    signature with ``parts``.

    Parameters
    ----------
    anchor
        Operators around which it forms, ``"ai.onnx::MatMul"`` or ``"acme::Attend"``.
    epilogue
        Operators that may follow the anchor, in any order. Each reads a result before it and gives a tensor of the
        anchor's shape; nothing outside reads any result but the last. A value may split and join within: of
        ``x * sigmoid(x)`` both operators are the epilogue of what computes ``x``.
    prologue
        Operators that may compute inputs of the anchor, one after another too.
    longest
        The most operators of the whole, the anchor among them.

    Raises
    ------
    ValueError
        If it could match the anchor alone only, or an operator has no domain.
    """

    anchor: str | tuple[str, ...]
    epilogue: tuple[str, ...] = ()
    prologue: tuple[str, ...] = ()
    longest: int = 6

    def __post_init__(self) -> None:
        """Check what would else never match, without a word."""
        if self.longest < 2 or not (self.epilogue or self.prologue):
            raise ValueError(
                f"{self} absorbs nothing; give it an epilogue or a prologue, and a longest of 2 or more"
            )
        for op in (*self.anchors, *self.epilogue, *self.prologue):
            if "::" not in op:
                raise ValueError(f"{self} names '{op}', which has no domain; write 'ai.onnx::{op}'")

    @property
    def anchors(self) -> tuple[str, ...]:
        """The anchor's operators as a tuple."""
        return (self.anchor,) if isinstance(self.anchor, str) else self.anchor

    def matches(self, parts: Sequence[Part]) -> bool:
        """Return whether a fused node of these parts is of this form."""
        allowed = {"prologue": self.prologue, "anchor": self.anchors, "epilogue": self.epilogue}
        return 2 <= len(parts) <= self.longest and all(p.signature.op in allowed[p.role] for p in parts)


def accepts_form(forms: Sequence[FusedForm], signature: OpSignature) -> bool:
    """Return whether a fused ``signature`` is of one of ``forms``."""
    return any(form.matches(signature.parts) for form in forms)
