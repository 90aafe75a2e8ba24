"""BatchNormalization after Conv, ConvTranspose or Gemm with constant weights is folded into these, by onnxscript's rules."""

from __future__ import annotations

import onnx_ir as ir


class FoldBatchNorm(ir.passes.InPlacePass):
    """y = scale * (conv(x, w) - mean) / sqrt(var + eps) + bias becomes conv(x, w') + b'."""

    name = "fold_batch_norm"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Run on ``model`` in place."""
        from onnxscript.rewriter import rewrite
        from onnxscript.rewriter.rules.common import (
            fuse_batchnorm_into_conv_rule,
            fuse_batchnorm_into_conv_transpose_rule,
            fuse_batchnorm_into_gemm_rule,
        )

        if not any(node.op_type == "BatchNormalization" for node in model.graph):
            return ir.passes.PassResult(model, modified=False)
        rules = [
            fuse_batchnorm_into_conv_rule,
            fuse_batchnorm_into_conv_transpose_rule,
            fuse_batchnorm_into_gemm_rule,
        ]
        names = {id(v): v.name for v in model.graph.outputs}
        rewrite(model, pattern_rewrite_rules=rules)
        for value in model.graph.outputs:
            value.name = names.get(id(value), value.name)
        _name_new_nodes(model)
        return ir.passes.PassResult(model, modified=True)


def _name_new_nodes(model: ir.Model) -> None:
    taken = {node.name for node in model.graph if node.name}
    for position, node in enumerate(model.graph):
        if not node.name:
            stem = f"{node.op_type}_folded_{position}"
            while stem in taken:
                stem += "_"
            node.name = stem
            taken.add(stem)
