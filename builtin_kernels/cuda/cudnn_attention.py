"""Attention by cuDNN: every execution plan that its heuristics propose, named by engine and knobs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Self

from tactician.builtin_kernels.cuda.attention_problem import (
    ATTENTION_OP,
    AttentionProblem,
    Walk,
    attention_problem,
)
from tactician.builtin_kernels.cuda.cudnn_memory import KnownPlans, known_plans
from tactician.builtin_kernels.cuda.cudnn_plan import (
    LibraryError,
    PlanGraph,
    StoredPlan,
    build_handle,
    handle,
    library,
    plan_name,
)
from tactician.plugins.target import Artifacts
from tactician.signature import OpSignature
from tactician.tactics.tactic import Launch, Tactic

PROPOSALS = 3
"""Plans that are offered: the library compiles each, which takes seconds."""
FEW_QUERIES = 64
"""Queries below which plans split the keys and add up parts as they come, without the library's saying so."""
Q, K, V, Y = 1, 2, 3, 4
"""Numbers of the tensors in every graph, by which a stored plan finds them again."""


@dataclass(frozen=True)
class CudnnAttention(Tactic):
    """One execution plan of cuDNN; the fields are the library's own numbers for it."""

    op: ClassVar[str] = ATTENTION_OP
    target: ClassVar[str] = "cuda"
    library: ClassVar[str] = "cudnn"

    engine: int = 0
    """Number of the engine."""
    knobs: str = ""
    """The engine's settings, ``"k24:0"``; none for its defaults."""

    @classmethod
    def candidates(cls, signature: OpSignature, device: Any) -> Iterable[Self]:
        """Yield the plans that the heuristics propose, best first."""
        problem = _problem(signature, device)
        if isinstance(problem, str):
            yield cls()
            return
        plans = _known(signature, problem, device).plans
        # without any, one tactic stays, whose `decline` has the library's own words
        yield from (cls(engine, knobs) for engine, knobs, _ in plans or ((cls.engine, cls.knobs, 0),))

    def decline(self, signature: OpSignature, device: Any) -> str | None:
        """Decline without the library, masks of all kinds but the causal one, and plans that it refuses."""
        problem = _problem(signature, device)
        if isinstance(problem, str):
            return problem
        known = _known(signature, problem, device)
        if known.error or known.workspace(self.engine, self.knobs) is not None:
            return known.error or None
        try:
            _graph(problem, build_handle(device)).build(self.engine, self.knobs)
        except LibraryError as error:
            return str(error)
        return None

    def workspace(self, signature: OpSignature, device: Any) -> int:
        """Return the scratch memory that the plan asks for, in bytes."""
        problem = attention_problem(signature)
        assert isinstance(problem, AttentionProblem), problem
        known = _known(signature, problem, device).workspace(self.engine, self.knobs)
        if known is not None:
            return known
        return _graph(problem, build_handle(device)).build(self.engine, self.knobs)

    def numerics(self, signature: OpSignature) -> frozenset[str]:
        """Return whether parts may be added up in any order."""
        problem = attention_problem(signature)
        few = isinstance(problem, AttentionProblem) and problem.queries < FEW_QUERIES
        return frozenset({"nondeterministic"} if few else ())

    def prepare(self, signature: OpSignature, device: Any) -> Launch:
        """Build the plan, or restore it as it was stored with the engine, its compiled kernels included."""
        problem = attention_problem(signature)
        assert isinstance(problem, AttentionProblem), problem
        device.core.set_current()

        def make() -> bytes:
            return _graph(problem, build_handle(device)).serialized(self.engine, self.knobs)

        version, name = str(library().backend_version()), plan_name(self.engine, self.knobs)
        key = Artifacts.key("cudnn", version, str(device.facts["arch"]), device.name, signature.key, name)
        plan = StoredPlan(device.artifacts.get(key, make), handle(device))

        def run(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any) -> None:
            pointers = {uid: inputs[i].pointer for i, uid in enumerate((Q, K, V))}
            pointers[Y] = outputs[0].pointer
            plan.run(pointers, 0 if workspace is None else workspace.pointer, int(stream.handle))

        return run


class AttentionGraph(PlanGraph):
    """Attention without a mask or with a causal one.

    Parameters
    ----------
    problem
        Without mask, lengths and cap.
    context
        Where plans will run, as ``cudnn.pygraph`` takes it: a handle.

    Raises
    ------
    LibraryError
        If the library has no plan.
    """

    what: ClassVar[str] = "attention"

    def __init__(self, problem: AttentionProblem, context: Mapping[str, Any]) -> None:
        self._problem = problem
        super().__init__(problem.dtype, context)

    def _describe(self) -> None:
        p = self._problem

        def tensor(uid: int, walk: Walk, heads: int, rows: int, size: int) -> Any:
            return self._tensor(uid, (p.batch, heads, rows, size), _strides(walk))

        y, _ = self._graph.sdpa(
            q=tensor(Q, p.q, p.heads, p.queries, p.head_size),
            k=tensor(K, p.k, p.kv_heads, p.keys, p.head_size),
            v=tensor(V, p.v, p.kv_heads, p.keys, p.value_size),
            attn_scale=p.scale,
            generate_stats=False,
            diagonal_band_right_bound=0 if p.causal else None,
        )
        self._output(y, Y, (p.batch, p.heads, p.queries, p.value_size), _strides(p.y))

    def _filter(self) -> None:
        never = self._notes("NONDETERMINISTIC", "REDUCED_PRECISION_REDUCTION")
        self._graph.deselect_numeric_notes(never)


TACTICS: list[type[Tactic]] = [CudnnAttention]


@lru_cache(maxsize=1024)  # more than the calls of a network: describing one anew takes longer than a race
def _graph(problem: AttentionProblem, library_handle: int) -> AttentionGraph:
    """Return the graph of a problem; its plans are built once for all of its tactics."""
    return AttentionGraph(problem, {"handle": library_handle})


def _known(signature: OpSignature, problem: AttentionProblem, device: Any) -> KnownPlans:
    what = f"attention {signature.key}"
    return known_plans(device, what, PROPOSALS, lambda: _graph(problem, build_handle(device)))


def _strides(walk: Walk) -> tuple[int, int, int, int]:
    return walk.batch, walk.head, walk.row, 1


def _problem(signature: OpSignature, device: Any) -> AttentionProblem | str:
    """Return the attention in a form that the library has, or why there is none here."""
    problem = attention_problem(signature)
    if isinstance(problem, str):
        return problem
    if problem.mask is not None or problem.has_lengths or problem.softcap:
        return "masks other than the causal one, lengths and caps are left to other kernels"
    if problem.is_empty:
        return "there is no output"
    if not device.facts["driver"]:
        return "cuDNN needs a GPU and its driver"
    try:
        library()
    except LibraryError as error:
        return str(error)
    return problem
