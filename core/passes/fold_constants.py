"""Constant folding: what depends on constants and known shapes alone is computed once, by onnxscript's folder."""

from __future__ import annotations

import logging

import onnx_ir as ir

LARGEST_RESULT = 1 << 24
"""Elements of the largest tensor that folding may make: bigger ones cost more to load than to compute."""

LARGEST_INPUT = 1 << 26
"""Elements of the largest constant that folding reads."""


class FoldConstants(ir.passes.InPlacePass):
    """Replace nodes by the constants that they compute, Shape and Size of static tensors among them."""

    name = "fold_constants"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run on ``model`` in place."""
        from onnxscript import optimizer

        folder_log = logging.getLogger("onnxscript.optimizer._constant_folding")
        level = folder_log.level
        folder_log.setLevel(logging.ERROR)
        try:
            result = optimizer.fold_constants(
                model,
                onnx_shape_inference=False,
                input_size_limit=LARGEST_INPUT,
                output_size_limit=LARGEST_RESULT,
            )
        finally:
            folder_log.setLevel(level)
        for node in model.graph:
            for value in node.outputs:
                value.const_value = None  # the folder's notes on values that stay computed
        _lift(model)
        return ir.passes.PassResult(model, modified=bool(getattr(result, "modified", True)))


def _lift(model: ir.Model) -> None:
    import onnx_ir.passes.common as common

    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.RemoveUnusedNodesPass()(model)
