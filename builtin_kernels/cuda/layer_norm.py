"""Layer, RMS, instance and group normalisation: one kernel over rows, one read and one write."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from tactician.builtin_kernels.cuda.compiler import KernelSource
from tactician.builtin_kernels.cuda.indexing import ceil_div, power_of_two_below
from tactician.builtin_kernels.cuda.kernel_text import specialise
from tactician.builtin_kernels.cuda.row_geometry import HELD_ELEMENTS, block_threads, row_groups, row_vector
from tactician.builtin_kernels.cuda.softmax import T_NAMES, arithmetic
from tactician.signature import OpSignature, TensorType
from tactician.tactics.tactic import Launch, Tactic

FEW_ELEMENTS = 4096
"""Of a multiprocessor, up to which a call takes as long as its chain of reads."""


class NormError(Exception):
    """A call that the kernel can't run; the message is the reason to decline with."""


@dataclass(frozen=True)
class NormProblem:
    """A normalisation of each row of ``[rows, length]``; ``place`` is the C text of an element's scale."""

    rows: int
    length: int
    place: str
    parameters: int
    """Number of elements of the scale."""
    centred: bool = True

    @classmethod
    def of(cls, signature: OpSignature) -> NormProblem:
        """Return the problem of a static signature.

        Raises
        ------
        NormError
            If the scale broadcasts in a way that the kernel doesn't know.
        """
        x = signature.inputs[0]
        assert x is not None
        dims = x.dims
        if signature.op_type in ("LayerNormalization", "RMSNormalization"):
            axis = int(signature.attribute("axis", -1)) % len(dims)
            length = math.prod(dims[axis:])
            return cls(math.prod(dims[:axis]), length, "column", length, signature.op_type[0] == "L")
        n, channels, inner = dims[0], dims[1], math.prod(dims[2:])
        if signature.op_type == "InstanceNormalization":
            return cls(n * channels, inner, f"row % {channels}u", channels)
        groups = int(signature.attribute("num_groups"))
        per_group = channels // groups
        if signature.version < 21:  # one scale for each group
            return cls(n * groups, per_group * inner, f"row % {groups}u", groups)
        place = f"row % {groups}u * {per_group}u + column / {max(inner, 1)}u"
        return cls(n * groups, per_group * inner, place, channels)


@dataclass(frozen=True)
class LayerNorm(Tactic):
    """Each row shared by a group of threads."""

    op: ClassVar[tuple[str, ...]] = tuple(
        f"ai.onnx::{name}"
        for name in ("LayerNormalization", "RMSNormalization", "InstanceNormalization", "GroupNormalization")
    )
    target: ClassVar[str] = "cuda"

    group: int = 32
    """Threads that share a row."""
    ahead: bool = False
    """Whether scale and bias are read with the row: sooner, for more registers."""

    @classmethod
    def candidates(cls, signature: OpSignature, device: Any) -> Iterable[Self]:
        """Yield groups that hold the row in registers where that is possible."""
        tensor = signature.input(0)
        if _decline(signature) is not None or tensor is None:
            yield cls()
            return
        problem = NormProblem.of(signature)
        few = problem.rows * problem.length <= FEW_ELEMENTS * int(device.facts["multiprocessors"])
        for group in row_groups(problem.length, tensor.itemsize):
            made = (cls(group, True), cls(group)) if few else (cls(group), cls(group, True))
            yield from (t for t in made if not t.ahead or t.decline(signature, device) is None)

    def decline(self, signature: OpSignature, device: Any) -> str | None:
        """Decline scales that broadcast, types that the kernel doesn't know, and rows too long to be held."""
        reason = _decline(signature)
        if reason is None and self.ahead:
            problem, (x, scale) = NormProblem.of(signature), signature.inputs[:2]
            assert x is not None
            assert scale is not None
            if problem.place != "column" or self._held(problem, x, scale)[1] == 0:
                return "scale and bias are not those of a row's elements, or rows are too long to be held"
        return reason

    def prepare(self, signature: OpSignature, device: Any) -> Launch:
        """Compile the kernel for this row length."""
        problem = NormProblem.of(signature)
        if problem.rows * problem.length == 0:
            return lambda inputs, outputs, workspace, stream: None
        launch = device.compile(self.kernel(signature, problem)).launch
        threads = block_threads(self.group)
        grid = ceil_div(problem.rows, threads // self.group)

        def run(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any) -> None:
            bias = inputs[2] if len(inputs) > 2 else None
            extra = (*outputs[1:], None, None)[:2]
            launch(stream, grid, threads, inputs[0], inputs[1], bias, outputs[0], *extra)

        return run

    def kernel(self, signature: OpSignature, problem: NormProblem) -> KernelSource:
        """Return the kernel's source."""
        x, scale = signature.inputs[0], signature.inputs[1]
        assert x is not None
        assert scale is not None
        vector, held = self._held(problem, x, scale)
        types, functions = arithmetic(x.dtype)
        macros: dict[str, int | str] = {
            "PLACE": problem.place,
            "ROWS": f"{problem.rows}ull",
            "LENGTH": f"{problem.length}u",
            "EPSILON": float(signature.attribute("epsilon", 1e-5)).hex(),
            "CENTRED": int(problem.centred),
            "HAS_BIAS": int(signature.input(2) is not None),
            "PLACE_IS_COLUMN": int(problem.place == "column"),
            "GROUP": self.group,
            "THREADS": block_threads(self.group),
            "VECTOR": vector,
            "HELD": held,
            "AHEAD": int(self.ahead),
        }
        types["S"] = T_NAMES[scale.dtype]
        return specialise("layer_norm", "layer_norm.cu", types, functions | macros, "rows.cuh")

    def _held(self, problem: NormProblem, x: TensorType, scale: TensorType) -> tuple[int, int]:
        """Return the elements of an access, and the accesses of a row that a thread holds; 0 if they are too many."""
        vector = power_of_two_below(row_vector(problem.length, x.itemsize), max(16 // scale.itemsize, 1))
        held = ceil_div(problem.length // vector, self.group)
        return vector, held if held * vector <= HELD_ELEMENTS else 0


TACTICS: list[type[Tactic]] = [LayerNorm]


def _decline(signature: OpSignature) -> str | None:
    if not signature.is_static:
        return "needs static shapes"
    if signature.body is not None:
        return "is for single operators"
    x, scale, bias = (signature.input(i) for i in range(3))
    for tensor in (x, scale):
        if tensor is None or tensor.dtype not in T_NAMES:
            return f"element type {tensor and tensor.dtype} is not supported"
    if signature.outputs[0] is None or x is None or signature.outputs[0].dtype != x.dtype:
        return "the output has another element type than the input"
    if any(t is not None and t.dtype != "float32" for t in signature.outputs[1:]):
        return "mean and deviation are written in float32 only"
    return _decline_parameters(NormProblem.of(signature), scale, bias)


def _decline_parameters(
    problem: NormProblem, scale: TensorType | None, bias: TensorType | None
) -> str | None:
    for tensor in (scale, bias):
        if tensor is not None and tensor.size != problem.parameters:
            return f"a scale or bias of {tensor.size} elements doesn't match {problem.parameters}"
    if scale is not None and bias is not None and scale.dtype != bias.dtype:
        return f"scale is {scale.dtype}, bias {bias.dtype}"
    return None
