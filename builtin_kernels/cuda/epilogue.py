"""Epilogues: the elementwise operators that a fused node does to the results of its anchor before they are written."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from tactician.builtin_kernels.cuda.pointwise_ops import RULES, Operand, UnsupportedError
from tactician.builtin_kernels.cuda.pointwise_program import PointwiseProgram, ProgramBuilder
from tactician.signature import OpSignature
from tactician.tactics.fused_form import FusedForm

POINTWISE = tuple(f"ai.onnx::{name}" for name in RULES)
"""Operators that an epilogue may hold."""

LONGEST = 10
"""Operators of a fused node, its anchor among them."""


def epilogue_form(*anchors: str) -> FusedForm:
    """Return the form of a call of one of ``anchors`` with elementwise operators behind it."""
    return FusedForm(anchors, epilogue=POINTWISE, longest=LONGEST)


@dataclass(frozen=True)
class FusedCall:
    """A call of an operator, and what is done to its results.

    Parameters
    ----------
    anchor
        The operator's call by itself.
    inputs
        Where each of its inputs lies among those of the fused node; None where it is absent.
    program
        What makes the node's output of the anchor's, which is load ``anchor_load``; None where there is nothing to do.
    anchor_load
        Number of the load that stands for the anchor's result; None where the program reads no such thing.
    """

    anchor: OpSignature
    inputs: tuple[int | None, ...]
    program: PointwiseProgram | None = None
    anchor_load: int | None = None

    def places(self, count: int) -> tuple[int, ...]:
        """Return where the anchor's first ``count`` inputs lie among the node's; -1 where one is absent."""
        return tuple(-1 if at is None else at for at in (*self.inputs, *(None,) * count)[:count])

    @property
    def reads(self) -> tuple[int, ...]:
        """The inputs of the fused node that the epilogue reads, in the order of the kernel's parameters."""
        loads = self.program.loads if self.program is not None else ()
        return tuple(load.input for k, load in enumerate(loads) if k != self.anchor_load)


@lru_cache(maxsize=4096)
def fused_call(signature: OpSignature) -> FusedCall | str:
    """Return what ``signature`` asks for, or why it can't be an anchor with an epilogue.

    A single operator is an anchor with nothing behind it.
    """
    if signature.body is None:
        return FusedCall(signature, tuple(range(len(signature.inputs))))
    anchors = [k for k, part in enumerate(signature.parts) if part.role == "anchor"]
    if anchors != [0] or any(part.role == "prologue" for part in signature.parts):
        return "is no operator with others behind it"
    try:
        return _with_program(signature)
    except UnsupportedError as reason:
        return str(reason)


def _with_program(signature: OpSignature) -> FusedCall:
    first, *rest = signature.parts
    (result,) = first.signature.outputs
    own = len(signature.inputs)
    if result is None or not signature.is_static:
        raise UnsupportedError("needs static shapes")
    builder = ProgramBuilder(
        replace(signature, inputs=(*signature.inputs, result), constants=(*signature.constants, None))
    )
    made: list[Operand | None] = [builder.operand(own)]
    for part in rest:
        if part.signature.domain != "ai.onnx":
            raise UnsupportedError(f"{part.signature.op} is not an elementwise operator")
        operands = [
            None if at is None else made[-1 - at] if at < 0 else builder.operand(at) for at in part.inputs
        ]
        attributes = dict(part.signature.attributes)
        made.append(builder.apply(part.signature.op_type, part.signature.version, attributes, operands))
    last = made[-1]
    assert last is not None  # what operators give is never absent
    program = builder.finish([last])
    if program.outputs[0][0] != result.dtype:
        raise UnsupportedError(f"the output is {program.outputs[0][0]}, the sums are of {result.dtype}")
    anchor_load = next((k for k, load in enumerate(program.loads) if load.input == own), None)
    return FusedCall(first.signature, first.inputs, program, anchor_load)
