"""Dead code: nodes, constants and functions that no output of the network needs."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common


class RemoveDead(ir.passes.InPlacePass):
    """Remove nodes, initializers and functions that no output needs, and outputs of nodes that nobody reads."""

    name = "remove_dead"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run on ``model`` in place."""
        nodes = common.RemoveUnusedNodesPass()(model)
        functions = common.RemoveUnusedFunctionsPass()(model)
        return ir.passes.PassResult(model, modified=bool(nodes.modified or functions.modified))
