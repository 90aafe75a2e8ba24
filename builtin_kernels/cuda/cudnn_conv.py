"""Convolutions by cuDNN: every execution plan that its heuristics propose, named by engine and knobs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Self

from tactician.builtin_kernels.cuda.conv_problem import ConvProblem, conv_problem
from tactician.builtin_kernels.cuda.conv_stages import bias_of
from tactician.builtin_kernels.cuda.conv_wgmma import nhwc_problem
from tactician.builtin_kernels.cuda.cudnn_conv_graph import BIAS, ConvGraph, W, X, Y
from tactician.builtin_kernels.cuda.cudnn_memory import KnownPlans, known_plans
from tactician.builtin_kernels.cuda.cudnn_plan import (
    DTYPES,
    LibraryError,
    StoredPlan,
    build_handle,
    handle,
    library,
    plan_name,
)
from tactician.builtin_kernels.nhwc import CONV as NHWC_CONV
from tactician.plugins.target import Artifacts
from tactician.signature import OpSignature
from tactician.tactics.tactic import Launch, Tactic

PROPOSALS = 8
"""Plans that are offered for each precision."""
ALL_PROPOSALS = 200
"""Plans that are offered for each precision where all are asked for: more than there are."""


@dataclass(frozen=True)
class CudnnConv(Tactic):
    """One execution plan of cuDNN; the fields are the library's own numbers for it."""

    op: ClassVar[tuple[str, ...]] = ("ai.onnx::Conv", NHWC_CONV)
    target: ClassVar[str] = "cuda"
    library: ClassVar[str] = "cudnn"

    engine: int = 0
    """Number of the engine."""
    knobs: str = ""
    """The engine's settings, ``"tile_size:0,tilek:1"``; none for its defaults."""
    tf32: bool = False
    """Whether float32 operands are rounded to tf32."""

    @classmethod
    def candidates(cls, signature: OpSignature, device: Any) -> Iterable[Self]:
        """Yield the plans that the heuristics propose, best first; for float32 also those with tf32."""
        return cls._proposed(signature, device, PROPOSALS)

    @classmethod
    def search_space(cls, signature: OpSignature, device: Any) -> Iterable[Self]:
        """Yield all plans that the heuristics and their fallback know."""
        return cls._proposed(signature, device, ALL_PROPOSALS)

    @classmethod
    def _proposed(cls, signature: OpSignature, device: Any, count: int) -> Iterable[Self]:
        problem = _problem(signature, device)
        if isinstance(problem, str):
            yield cls()
            return
        for tf32 in (False, True) if problem.dtype == "float32" else (False,):
            plans = _known(signature, tf32, device, count).plans
            # without any, one tactic stays, whose `decline` has the library's own words
            for engine, knobs, _ in plans or ((cls.engine, cls.knobs, 0),):
                yield cls(engine, knobs, tf32)

    def decline(self, signature: OpSignature, device: Any) -> str | None:
        """Decline without the library, what it has no form for, and plans that it refuses."""
        problem = _problem(signature, device)
        if isinstance(problem, str):
            return problem
        if self.tf32 and problem.dtype != "float32":
            return f"tf32 is for float32, not for {problem.dtype}"
        known = _known(signature, self.tf32, device)
        if known.error or known.workspace(self.engine, self.knobs) is not None:
            return known.error or None
        try:
            _graph_of(signature, self.tf32, device).build(self.engine, self.knobs)
        except LibraryError as error:
            return str(error)
        return None

    def workspace(self, signature: OpSignature, device: Any) -> int:
        """Return the scratch memory that the plan asks for, in bytes."""
        known = _known(signature, self.tf32, device).workspace(self.engine, self.knobs)
        if known is not None:
            return known
        return _graph_of(signature, self.tf32, device).build(self.engine, self.knobs)

    def numerics(self, signature: OpSignature) -> frozenset[str]:
        """Return whether operands are rounded."""
        return frozenset({"tf32"} if self.tf32 else ())

    def prepare(self, signature: OpSignature, device: Any) -> Launch:
        """Build the plan, or restore it as it was stored with the engine, its compiled kernels included."""
        problem = _convolution(signature)
        assert isinstance(problem, ConvProblem), problem
        device.core.set_current()

        def make() -> bytes:
            return _graph_of(signature, self.tf32, device).serialized(self.engine, self.knobs)

        version = library().backend_version()
        name = f"{plan_name(self.engine, self.knobs)} {self.tf32}"
        key = Artifacts.key(
            "cudnn", str(version), str(device.facts["arch"]), device.name, signature.key, name
        )
        plan = StoredPlan(device.artifacts.get(key, make), handle(device))

        def run(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any) -> None:
            pointers = {X: inputs[0].pointer, W: inputs[1].pointer, Y: outputs[0].pointer}
            if problem.bias:
                pointers[BIAS] = bias_of(inputs).pointer
            plan.run(pointers, 0 if workspace is None else workspace.pointer, int(stream.handle))

        return run


TACTICS: list[type[Tactic]] = [CudnnConv]


@lru_cache(maxsize=1024)  # more than the calls of a network: describing one anew takes longer than a race
def _graph(problem: ConvProblem, channels_last: bool, tf32: bool, library_handle: int) -> ConvGraph:
    """Return the graph of a problem; its plans are built once for all of its tactics."""
    return ConvGraph(problem, tf32, {"handle": library_handle}, channels_last)


def _graph_of(signature: OpSignature, tf32: bool, device: Any) -> ConvGraph:
    problem = _convolution(signature)
    assert isinstance(problem, ConvProblem), problem
    return _graph(problem, signature.op == NHWC_CONV, tf32, build_handle(device))


def _known(signature: OpSignature, tf32: bool, device: Any, count: int = PROPOSALS) -> KnownPlans:
    what = f"convolution {signature.key} {tf32}"
    return known_plans(device, what, count, lambda: _graph_of(signature, tf32, device))


def _convolution(signature: OpSignature) -> ConvProblem | str:
    return nhwc_problem(signature) if signature.op == NHWC_CONV else conv_problem(signature)


def _problem(signature: OpSignature, device: Any) -> ConvProblem | str:
    """Return the convolution in a form that the library has, or why there is none here."""
    problem = _convolution(signature)
    if isinstance(problem, str):
        return problem
    if problem.dtype not in DTYPES:
        return f"element type {problem.dtype} is left to other kernels"
    if problem.is_empty:
        return "there is no output"
    if not device.facts["driver"]:
        return "cuDNN needs a GPU and its driver"
    try:
        library()
    except LibraryError as error:
        return str(error)
    return problem
