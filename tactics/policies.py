"""What may be timed: sources, numerics, workspace limit and plugins' filters, each with its reason."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tactician.config import BuilderConfig
from tactician.errors import SelectionError
from tactician.signature import OpSignature
from tactician.tactics.record import CandidateRecord, Outcome
from tactician.tactics.registry import Candidate

if TYPE_CHECKING:
    from tactician.plugins.target import Device

logger = logging.getLogger(__name__)

Hook = Callable[..., Any]
Split = tuple[list[Candidate], list[CandidateRecord]]
"""Candidates that stay, and the records of those that do not."""

AUDITED_FRACTION = 0.05
"""Of the pruned candidates, drawn at random and timed all the same: so a cost model's misses are measured."""


class Policies:
    """Applies the options of a build, then the ``filter_tactics`` hooks, to the candidates of one signature.

    Parameters
    ----------
    hooks
        Name of plugin and hook, in the order in which they are asked.
    """

    def __init__(self, config: BuilderConfig, device: Device, hooks: Sequence[tuple[str, Hook]] = ()) -> None:
        self._config = config
        self._device = device
        self._hooks = hooks
        self._reported: set[str] = set()

    def apply(self, signature: OpSignature, candidates: Sequence[Candidate]) -> Split:
        """Return what is left of ``candidates``, and the records of what is not."""
        left: list[Candidate] = []
        out: list[CandidateRecord] = []
        for candidate in candidates:
            try:
                reason, outcome = self._refusal(signature, candidate), Outcome.FILTERED
            except Exception as error:
                reason = f"raised {type(error).__name__} while it was asked for its properties: {error}"
                outcome = Outcome.FAILED
            if reason is None:
                left.append(candidate)
            else:
                out.append(_record(candidate, outcome, reason))
        for plugin, hook in self._hooks:
            left = self._ask(plugin, hook, signature, left, out)
        return left, out

    def prune(self, signature: OpSignature, candidates: Sequence[Candidate]) -> Split:
        """Keep the first guesses of every tactic in turn, up to the limit, and a random few of the others."""
        limit = self._config.max_candidates
        if limit is None or len(candidates) <= max(1, limit):
            return list(candidates), []
        rank: dict[tuple[str, type], int] = {}
        order = []
        for place, candidate in enumerate(candidates):
            kind = (candidate.plugin.name, type(candidate.tactic))
            rank[kind] = rank.get(kind, -1) + 1
            order.append((rank[kind], place))
        kept = {place for _, place in sorted(order)[: max(1, limit)]}
        rest = [place for _, place in sorted(order) if place not in kept]
        # the same few every time, so that the next build finds them in the cache
        rng = np.random.default_rng([self._config.seed, int(signature.key[:16], 16)])
        kept |= set(rng.choice(rest, math.ceil(AUDITED_FRACTION * len(rest)), replace=False).tolist())
        reason = f"beyond the {limit} candidates that are timed"
        pruned = [_record(c, Outcome.PRUNED, reason) for i, c in enumerate(candidates) if i not in kept]
        return [c for i, c in enumerate(candidates) if i in kept], pruned

    def _refusal(self, signature: OpSignature, candidate: Candidate) -> str | None:
        config = self._config
        reason = _source_refusal(candidate, config.sources)
        if reason is not None:
            return reason
        numerics = candidate.tactic.numerics(signature)
        if "tf32" in numerics and not config.tf32:
            return "rounds products to tf32; --tf32 allows that"
        if "nondeterministic" in numerics and config.deterministic:
            return "is not deterministic, which --deterministic asks for"
        if config.workspace_limit is not None:
            nbytes = candidate.tactic.workspace(signature, self._device)
            if nbytes > config.workspace_limit:
                return f"needs {nbytes} bytes of workspace, the limit is {config.workspace_limit}"
        return None

    def _ask(
        self,
        plugin: str,
        hook: Hook,
        signature: OpSignature,
        candidates: list[Candidate],
        out: list[CandidateRecord],
    ) -> list[Candidate]:
        """Return what one plugin's filter leaves; one that fails is reported once and leaves all."""
        if not candidates:
            return candidates
        offered = [c.id for c in candidates]
        try:
            tactics = {c.id: c.tactic for c in candidates}
            answer = hook(signature=signature, candidates=list(offered), tactics=tactics)
            if answer is None:
                return candidates
            unknown = [a for a in answer if a not in offered]
            if unknown:
                raise ValueError(f"it names {unknown[0]!r}, which is no candidate")
            if not answer:
                raise ValueError("it leaves no candidate")
        except SelectionError:
            raise  # what a hook says on purpose
        except Exception as error:
            self._report(plugin, error)
            return candidates
        reason = f"taken out by filter_tactics of plugin '{plugin}'"
        out += [_record(c, Outcome.FILTERED, reason) for c in candidates if c.id not in answer]
        return [c for c in candidates if c.id in answer]

    def _report(self, plugin: str, error: Exception) -> None:
        text = f"filter_tactics of plugin '{plugin}' failed: {type(error).__name__}: {error}"
        if self._config.strict:
            raise SelectionError(f"{text}; --no-plugin {plugin} leaves it out") from error
        if plugin not in self._reported:
            logger.warning("%s; it is ignored", text)
            self._reported.add(plugin)


def _source_refusal(candidate: Candidate, sources: Sequence[str]) -> str | None:
    names = {candidate.plugin.name, candidate.tactic.library} - {""}
    forbidden = {s[1:] for s in sources if s.startswith("-")}
    allowed = {s for s in sources if not s.startswith("-")}
    if names & forbidden:
        return f"source '{min(names & forbidden)}' is excluded by --sources {','.join(sources)}"
    if allowed and not names & allowed:
        return f"source '{candidate.source}' is not among --sources {','.join(sources)}"
    return None


def _record(candidate: Candidate, outcome: Outcome, reason: str) -> CandidateRecord:
    return CandidateRecord(
        candidate.id, candidate.plugin.name, outcome, reason, version=candidate.tactic.version
    )
