"""Matrix products by cuBLASLt: every algorithm that its heuristic proposes, named by all of its settings."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

from tactician.builtin_kernels.cuda.cublaslt_plan import LibraryError, MatmulPlan, library
from tactician.builtin_kernels.cuda.gemm_problem import GEMM_OPS, GemmProblem, gemm_problem
from tactician.signature import OpSignature
from tactician.tactics.tactic import Launch, Tactic

PROPOSALS = 8
"""Algorithms that the heuristic is asked for."""

DTYPES = ("float32", "float16", "bfloat16")
"""Element types that are handed to the library."""

_OUTPUT_TYPE_REDUCTIONS = (1, 4)
"""Reduction schemes of split products that keep partial sums in the type of the result."""


@dataclass(frozen=True)
class Algorithm:
    """The library's own numbers for the settings of an algorithm."""

    algo_id: int = 0
    """Number of the algorithm."""
    tile: int = 0
    """Tile shape (``cublasLtMatmulTile_t``)."""
    stages: int = 0
    """Depth of the pipeline (``cublasLtMatmulStages_t``)."""
    split_k: int = 1
    """Parts that k is split into."""
    reduction: int = 0
    """How the parts are summed up (``cublasLtReductionScheme_t``)."""
    swizzle: int = 0
    """Order of the tiles."""
    custom: int = 0
    """The algorithm's own option."""
    inner: int = 0
    """Shape of one instruction (``cublasLtMatmulInnerShape_t``)."""
    cluster: int = 0
    """Shape of a cluster of blocks (``cublasLtClusterShape_t``)."""

    def settings(self) -> dict[str, int]:
        """Return the settings by name."""
        return {f.name: getattr(self, f.name) for f in fields(Algorithm)}


@dataclass(frozen=True)
class CublasLt(Algorithm, Tactic):
    """One algorithm of cuBLASLt."""

    op: ClassVar[tuple[str, ...]] = GEMM_OPS
    target: ClassVar[str] = "cuda"
    library: ClassVar[str] = "cublaslt"

    tf32: bool = False
    """Whether float32 operands are rounded to tf32."""

    @classmethod
    def candidates(cls, signature: OpSignature, device: Any) -> Iterable[Self]:
        """Yield what the heuristic proposes, best first; for float32 also with tf32."""
        problem = _problem(signature, device)
        if isinstance(problem, str):
            yield cls()
            return
        for tf32 in (False, True) if problem.dtype == "float32" else (False,):
            plan = MatmulPlan(problem, tf32, device)
            seen = {cls(**settings, tf32=tf32): None for settings in plan.proposals(PROPOSALS)}
            yield from seen

    def decline(self, signature: OpSignature, device: Any) -> str | None:
        """Decline without the library, what it has no form for, and algorithms that don't fit the shape."""
        problem = _problem(signature, device)
        if isinstance(problem, str):
            return problem
        if self.tf32 and problem.dtype != "float32":
            return f"tf32 is for float32, not for {problem.dtype}"
        try:
            MatmulPlan(problem, self.tf32, device).configure(self.settings())
        except LibraryError as error:
            return str(error)
        return None

    def workspace(self, signature: OpSignature, device: Any) -> int:
        """Return the scratch memory that the algorithm asks for, in bytes."""
        return self._plan(signature, device).workspace_bytes

    def numerics(self, signature: OpSignature) -> frozenset[str]:
        """Return whether operands are rounded, and whether partial sums are in half precision."""
        tensor = signature.input(0)
        marks = {"tf32"} if self.tf32 else set()
        half = tensor is not None and tensor.dtype in ("float16", "bfloat16")
        if half and self.split_k > 1 and self.reduction in _OUTPUT_TYPE_REDUCTIONS:
            marks.add("reduced-accumulator")
        return frozenset(marks)

    def prepare(self, signature: OpSignature, device: Any) -> Launch:
        """Rebuild the algorithm from the fields; nothing is compiled."""
        plan = self._plan(signature, device)
        lock = threading.Lock()  # the plan keeps the bias between two calls of the library

        def run(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any) -> None:
            a, b = inputs[0].pointer, inputs[1].pointer
            bias = inputs[2].pointer if len(inputs) > 2 and inputs[2] is not None else 0
            scratch = 0 if workspace is None else workspace.pointer
            with lock:
                plan.run(a, b, bias, outputs[0].pointer, scratch, int(stream.handle))

        return run

    def _plan(self, signature: OpSignature, device: Any) -> MatmulPlan:
        problem = _problem(signature, device)
        assert isinstance(problem, GemmProblem), problem
        plan = MatmulPlan(problem, self.tf32, device)
        plan.configure(self.settings())
        return plan


TACTICS: list[type[Tactic]] = [CublasLt]


def _problem(signature: OpSignature, device: Any) -> GemmProblem | str:
    """Return the product in a form that the library has, or why there is none here."""
    problem = gemm_problem(signature)
    if isinstance(problem, str):
        return problem
    if problem.dtype not in DTYPES:
        return f"element type {problem.dtype} is left to other kernels"
    return unknown_form(problem, device) or problem


def unknown_form(problem: GemmProblem, device: Any) -> str | None:
    """Return what the library has no form for, or that it is not there; None where it can be asked."""
    if problem.is_empty or problem.k == 0:
        return "a side of the product is 0"
    if problem.bias not in ("none", "row"):
        return f"C is added as a {problem.bias}; the library's epilogue adds a row of [N]"
    if problem.bias == "row" and problem.beta != 1.0:
        return f"beta is {problem.beta}; the library's epilogue adds a bias unscaled"
    if not device.facts["driver"]:
        return "cuBLASLt needs a GPU and its driver"
    try:
        library()
    except LibraryError as error:
        return str(error)
    return None
