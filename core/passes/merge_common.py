"""Common subexpressions: what computes the same from the same inputs is computed once."""

from __future__ import annotations

import logging

import onnx_ir as ir
import onnx_ir.passes.common as common
from tactician.passes.quiet import quiet

logger = logging.getLogger(__name__)

SMALL_ELEMENTS = 1024
"""Equal constants up to this size are merged first; to hash all weights would take longer than it saves."""


class MergeCommon(ir.passes.InPlacePass):
    """Merge equal constants, then nodes that compute the same from the same inputs."""

    name = "merge_common"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run on ``model`` in place."""
        absent = _name_absent_outputs(model.graph)
        with quiet("onnx_ir"):
            constants = common.DeduplicateInitializersPass(size_limit=SMALL_ELEMENTS)(model)
            try:
                merged = bool(common.CommonSubexpressionEliminationPass()(model).modified)
            except TypeError as error:  # attributes that are types can't be compared; all before them is done
                logger.debug("onnx_ir's pass stopped: %s", error)
                merged = True
        for value in absent:
            if not value.uses() and not value.is_graph_output():
                value.name = ""
        return ir.passes.PassResult(model, modified=bool(constants.modified or merged))


def _name_absent_outputs(graph: ir.Graph) -> list[ir.Value]:
    """Name outputs that are absent: of two equal nodes, the one that stays may lack an output that the other has."""
    absent = [v for node in graph for v in node.outputs if not v.name]
    for i, value in enumerate(absent):
        value.name = f"absent/{i}"
    return absent
