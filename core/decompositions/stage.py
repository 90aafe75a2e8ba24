"""The stage of a build that writes operators which no tactic of the main target accepts with others."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import onnx_ir as ir
from tactician.config import BuilderConfig
from tactician.decompositions.call import UnexpandableError, require
from tactician.decompositions.from_shapes import settle_shapes
from tactician.decompositions.functions import has_function, inline
from tactician.decompositions.piece import Names, Piece
from tactician.decompositions.rules import OLDEST_OPSET, RULES
from tactician.errors import ShapeError
from tactician.layouts.stage import report_stage
from tactician.network import domain_of, signature_of
from tactician.plugins.manager import Plugins
from tactician.plugins.target import Device
from tactician.shape_inference import refresh_types
from tactician.signature import OpSignature
from tactician.stages import StageReport
from tactician.tactics.lock import LockFile
from tactician.tactics.rules import find_rule
from tactician.views import view_nodes

logger = logging.getLogger(__name__)

DECOMPOSE = "decompose"
"""What ``--without`` and reports call it."""

DEEPEST = 4
"""How often what an expansion is made of may be expanded in turn."""


def decompose(
    network: ir.Model,
    plugins: Plugins,
    device: Device,
    config: BuilderConfig,
    lock: LockFile | None,
    number: int,
) -> list[StageReport]:
    """Write what no tactic of ``device`` accepts with operators that it has tactics for; return the stage.

    A target that falls back to no other has tactics for everything, or means not to have them: nothing is done.

    Parameters
    ----------
    lock
        Calls that it has a choice for are left alone, as are nodes that a ``--tactic`` rule names.
    number
        Of the stages before.
    """
    target = plugins.targets.get(device.target)
    if DECOMPOSE in config.without or (target is not None and target.fallback is None):
        return []
    before, start = network.graph.num_nodes(), time.perf_counter()
    asked: dict[str, bool] = {}

    def accepts(signature: OpSignature) -> bool:
        if signature.key not in asked:
            asked[signature.key] = plugins.registry.accepts(signature, device)
        return asked[signature.key]

    decomposer = Decomposer(accepts, config, plugins.ops, lock)
    count = decomposer.run(network)
    seconds = time.perf_counter() - start
    return [report_stage(DECOMPOSE, network, before, seconds, config, number, plugins, count)]


class Decomposer:
    """Expands nodes that are not accepted into such that are.

    Parameters
    ----------
    accepts
        Whether the main target has a tactic for a call.
    config
        Its rules name nodes that are left alone.
    ops
        Plugins' operators by name.
    lock
        The calls that it has choices for are left alone.
    """

    def __init__(
        self,
        accepts: Callable[[OpSignature], bool],
        config: BuilderConfig,
        ops: Mapping[str, Any],
        lock: LockFile | None = None,
    ) -> None:
        self._accepts, self._config, self._ops, self._lock = accepts, config, ops, lock

    def run(self, network: ir.Model) -> int:
        """Expand what can be expanded in the main graph of ``network``, in place; return how many nodes that were."""
        settle_shapes(network)
        names, count = Names.of(network), 0
        for node in list(network.graph):
            if not self._has_expansion(node, network):
                continue
            try:
                signature = signature_of(node, network)
                inputs_are_known = all(t is None or t.is_static for t in signature.inputs)
                require(inputs_are_known, "not every shape is known")
                if self._accepts(signature):
                    continue
                require(not self._is_spoken_for(node, signature), "a rule or the lock file names it")
                self._expanded(node, network, DEEPEST).put_into(network, node, names)
                count += 1
                if not signature.is_static:  # the expansion's are, and make more known behind it
                    refresh_types(network, self._ops)
            except UnexpandableError as reason:
                logger.debug("%s '%s' is not decomposed: %s", node.op_type, node.name, reason)
        return count

    def _is_spoken_for(self, node: ir.Node, signature: OpSignature) -> bool:
        name = node.name or ""
        locked = self._lock is not None and self._lock.choice(name, signature) is not None
        return locked or find_rule(name, self._config.tactic_rules) is not None

    def _has_expansion(self, node: ir.Node, network: ir.Model) -> bool:
        opset = network.graph.opset_imports.get("", 0)
        is_known = node.op_type in RULES and opset >= OLDEST_OPSET
        return domain_of(node) == "ai.onnx" and (is_known or has_function(node.op_type, opset))

    def _expansions(self, node: ir.Node, network: ir.Model) -> Iterator[Callable[[Piece], None]]:
        """Yield what puts other nodes in the place of ``node``, in a piece: a rule of our own comes first.

        Rules go by the shapes of results; from the body of a function they can be inferred.
        """
        opset, rule = network.graph.opset_imports.get("", 0), RULES.get(node.op_type)
        if rule is not None and opset >= OLDEST_OPSET and signature_of(node, network).is_static:
            yield partial(Piece.apply, rule=rule, ops=self._ops)
        if has_function(node.op_type, opset):
            yield inline

    def _expanded(self, node: ir.Node, network: ir.Model, depth: int) -> Piece:
        """Return ``node`` as a piece of which every node is accepted, or costs nothing."""
        reasons = []
        for expand in self._expansions(node, network):
            piece = Piece.of(node, network)
            try:
                expand(piece)
                piece.simplify(self._ops)
                self._settle(piece.model, depth)
            except (UnexpandableError, ShapeError) as reason:
                reasons.append(str(reason))
            else:
                return piece
        raise UnexpandableError("; ".join(reasons) or "the shapes of its results are not known")

    def _settle(self, model: ir.Model, depth: int) -> None:
        """Expand what is not accepted in an expansion in turn."""
        views, names = view_nodes(model, self._config), Names.of(model)
        for node in list(model.graph):
            signature = signature_of(node, model)
            if node.name in views or (signature.is_static and self._accepts(signature)):
                continue
            reason = f"no tactic accepts {signature}"
            require(depth > 0 and signature.is_static and self._has_expansion(node, model), reason)
            try:
                self._expanded(node, model, depth - 1).put_into(model, node, names)
            except UnexpandableError as error:
                raise UnexpandableError(f"{reason}: {error}") from error
