"""Which inputs of which operators can't have just any values, and what they may have instead."""

from __future__ import annotations

import numpy as np
from tactician.signature import OpSignature
from tactician.tactics import operand_values as values
from tactician.tactics.operand_values import Rule


def rule_for(signature: OpSignature, index: int) -> Rule | None:
    """Return the rule for input ``index``, or None where any ordinary values will do."""
    reader, place = first_reader(signature, index)
    if reader is not signature:
        rule = rule_for(reader, place)
        return None if rule is None else lambda _, __, random: rule(reader, place, random)
    if signature.body is not None or signature.domain not in ("ai.onnx", "ai.onnx.ml"):
        return None
    rules = RULES.get(signature.op_type, {})
    return rules.get(index, rules.get(EVERY))


def first_reader(signature: OpSignature, index: int) -> tuple[OpSignature, int]:
    """Return the call within a fused node that reads input ``index`` first, and as which of its own inputs."""
    found = ((p.signature, p.inputs.index(index)) for p in signature.parts if index in p.inputs)
    return next(found, (signature, index))


EVERY = -1

RULES: dict[str, dict[int, Rule]] = {
    "Cast": {0: values.castable},
    "CastLike": {0: values.castable},
    "Log": {0: values.positive},
    "Sqrt": {0: values.positive},
    "ReduceLogSum": {0: values.positive},
    "Reciprocal": {0: values.nonzero},
    "Div": {1: values.nonzero},
    "Mod": {1: values.nonzero},
    "Pow": {0: values.base, 1: values.exponent},
    "BitShift": {0: values.integers(0, 127), 1: values.shift},
    "Acos": {0: values.uniform(-1, 1)},
    "Asin": {0: values.uniform(-1, 1)},
    "Atanh": {0: values.uniform(-0.95, 0.95)},
    "Acosh": {0: lambda s, i, random: 1 + values.positive(s, i, random)},
    "Tan": {0: values.uniform(-1.2, 1.2)},
    "ReduceProd": {0: values.small_factor},
    "CumProd": {0: values.small_factor},
    "ReduceSumSquare": {0: values.small_square},
    "BatchNormalization": {4: values.positive},
    "Clip": {
        1: lambda s, i, random: (
            -values.positive(s, i, random)
            if not values.input_type(s, i).dtype.startswith("u")
            else np.zeros(())
        ),
        2: lambda s, i, random: 1 + np.floor(4 * values.positive(s, i, random)),
    },
    "Dropout": {1: values.uniform(0.1, 0.6), 2: values.fixed(0)},
    "Gather": {1: values.gather_index},
    "GatherElements": {1: values.gather_index},
    "GatherND": {1: values.gather_nd_index},
    "Scatter": {1: values.scatter_index},
    "ScatterElements": {1: values.scatter_index},
    "ScatterND": {1: values.scatter_nd_index},
    "OneHot": {0: values.one_hot_index, 1: values.one_hot_depth},
    "NegativeLogLikelihoodLoss": {1: values.class_index, 2: values.positive},
    "SoftmaxCrossEntropyLoss": {1: values.class_index, 2: values.positive},
    "ReverseSequence": {1: values.steps},
    "LSTM": {4: values.steps},
    "GRU": {4: values.steps},
    "RNN": {4: values.steps},
    "Reshape": {1: values.output_shape},
    "Expand": {1: values.output_shape},
    "ConstantOfShape": {0: values.output_shape},
    "Tile": {1: values.repeats},
    "Resize": {2: values.scales, 3: values.sizes},
    "Upsample": {1: values.scales},
    "TopK": {1: values.top_k},
    "MaxUnpool": {1: values.unpool_index},
    "RoiAlign": {1: values.boxes, 2: values.batch_index},
    "GridSample": {1: values.uniform(-1.1, 1.1)},
    "NonMaxSuppression": {EVERY: values.uniform(0, 1)},
    "RotaryEmbedding": {3: values.position},
    "QuantizeLinear": {1: values.scale, 2: values.zero_point},
    "DequantizeLinear": {0: values.full_range, 1: values.scale, 2: values.zero_point},
    "ConvInteger": {0: values.full_range, 1: values.full_range, 2: values.zero_point, 3: values.zero_point},
    "MatMulInteger": {0: values.full_range, 1: values.full_range, 2: values.zero_point, 3: values.zero_point},
    "QLinearMatMul": dict(
        zip(
            range(8),
            (values.full_range, values.scale, values.zero_point) * 2
            + (values.output_scale, values.zero_point),
            strict=True,
        )
    ),
    "QLinearConv": dict(
        zip(
            range(8),
            (values.full_range, values.scale, values.zero_point) * 2
            + (values.output_scale, values.zero_point),
            strict=True,
        )
    )
    | {8: values.integers(-500, 500)},
}

SHAPE_LIKE: dict[str, tuple[int, ...]] = {
    "Slice": (1, 2, 3, 4),
    "Pad": (1, 3),
    "Squeeze": (1,),
    "Unsqueeze": (1,),
    "Split": (1,),
    "SplitToSequence": (1,),
    "Range": (0, 1, 2),
    "CumSum": (1,),
    "CumProd": (1,),
    "Trilu": (1,),
    "AffineGrid": (1,),
    "CenterCropPad": (1,),
    "Col2Im": (1, 2),
    "DFT": (1, 2),
    "STFT": (1, 3),
    "MaxUnpool": (2,),
    "NonMaxSuppression": (2, 3, 4),
    "HannWindow": (0,),
    "HammingWindow": (0,),
    "BlackmanWindow": (0,),
    "MelWeightMatrix": (0, 1, 2, 3, 4),
    "TensorScatter": (2,),
} | dict.fromkeys(
    (
        "ReduceSum",
        "ReduceMean",
        "ReduceMax",
        "ReduceMin",
        "ReduceProd",
        "ReduceL1",
        "ReduceL2",
        "ReduceLogSum",
        "ReduceLogSumExp",
        "ReduceSumSquare",
    ),
    (1,),
)
"""Inputs that say what to compute, not on what: a value made up for them would be another operator."""

RANDOM_OPS = frozenset(
    ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli")
)
