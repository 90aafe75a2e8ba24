"""Small passes that onnx_ir has: constants become initializers, common subexpressions are merged, dead code goes."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common


class LiftConstants(ir.passes.InPlacePass):
    """Turn Constant nodes into initializers."""

    name = "lift_constants"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run on ``model`` in place."""
        return common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)


class MergeCommon(ir.passes.InPlacePass):
    """Merge nodes that compute the same from the same inputs."""

    name = "merge_common"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run on ``model`` in place."""
        return common.CommonSubexpressionEliminationPass()(model)


class RemoveDead(ir.passes.InPlacePass):
    """Remove nodes, functions and initializers that no output needs."""

    name = "remove_dead"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run on ``model`` in place."""
        return common.RemoveUnusedNodesPass()(model)
