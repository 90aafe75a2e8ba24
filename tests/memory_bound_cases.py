"""Calls of memory-bound operators with awkward shapes, for the interpreter, the compiler and GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ml_dtypes
import numpy as np
from tactician.builtin_kernels.cuda.pointwise_ops import RULES
from tactician.signature import Blob

Array = np.ndarray[Any, Any]
BF16 = np.dtype(ml_dtypes.bfloat16)
E4M3, E5M2 = np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.float8_e5m2)


@dataclass(frozen=True)
class Case:
    """One call: operator, inputs, attributes, indices of constants, number of outputs and opset version."""

    op: str
    inputs: Sequence[Array | None]
    attributes: dict[str, Any] = field(default_factory=dict)
    constants: tuple[int, ...] = ()
    outputs: int = 1
    version: int | None = None

    def __str__(self) -> str:
        shapes = ",".join("-" if a is None else f"{a.dtype.name}{list(a.shape)}" for a in self.inputs)
        attributes = "".join(f",{k}={v}" for k, v in self.attributes.items())
        return f"{self.op}({shapes}{attributes})".replace(" ", "")


_rng = np.random.default_rng(20)


def normal(*shape: int, dtype: Any = np.float32) -> Array:
    """Return normally distributed numbers."""
    return _rng.standard_normal(shape).astype(dtype)


def every_byte(dtype: Any) -> Array:
    """Return each value of a type of 8 bits, NaN and infinities among them."""
    return np.arange(256, dtype=np.uint8).reshape(8, 32).view(dtype)


def positive(*shape: int, dtype: Any = np.float32) -> Array:
    """Return numbers of 0.1 and more."""
    return (np.abs(_rng.standard_normal(shape)) + 0.1).astype(dtype)


def unit(*shape: int) -> Array:
    """Return numbers between -0.9 and 0.9."""
    return _rng.uniform(-0.9, 0.9, shape).astype(np.float32)


def whole(*shape: int, dtype: Any = np.int32, low: int = -50, high: int = 50) -> Array:
    """Return integers from ``low`` up to, but without, ``high``."""
    return _rng.integers(max(low, 0) if np.dtype(dtype).kind == "u" else low, high, shape).astype(dtype)


def numbered(*shape: int, dtype: Any = np.float32) -> Array:
    """Return elements that differ from their neighbours in every direction, so that no exchange goes unseen."""
    return (np.arange(np.prod(shape)) % 251).reshape(shape).astype(dtype)


def boolean(*shape: int) -> Array:
    """Return random truth values."""
    return _rng.integers(0, 2, shape).astype(bool)


def i64(*values: Any) -> Array:
    """Return a vector of int64."""
    return np.array(values, np.int64)


def scalar(value: float, dtype: Any = np.float32) -> Array:
    """Return an array of rank 0."""
    return np.array(value, dtype)


def tensor_attribute(array: Array) -> Blob:
    """Return ``array`` as the value of an attribute."""
    from onnx import numpy_helper

    return Blob("tensor", (numpy_helper.from_array(array).SerializeToString(),))


def _special() -> Array:
    return np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.5, -2.5, 3e38, 1e-38], np.float32)


_UNARY = (
    "Reciprocal", "Exp", "Sin", "Cos", "Tan", "Atan", "Sinh", "Cosh", "Tanh", "Asinh", "Erf", "Sigmoid",
    "Softplus", "Relu", "LeakyRelu", "Elu", "Celu", "Selu", "Gelu", "HardSigmoid", "HardSwish", "Mish",
    "Softsign", "Swish", "ThresholdedRelu", "Shrink", "Neg", "Abs", "Sign", "Floor", "Ceil", "Round",
    "Identity", "Dropout",
)  # fmt: skip
_COMPARISONS = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
_TYPES = {
    "float32": 1, "uint8": 2, "int8": 3, "uint16": 4, "int16": 5, "int32": 6, "int64": 7,
    "bool": 9, "float16": 10, "float64": 11, "uint32": 12, "uint64": 13, "bfloat16": 16,
}  # fmt: skip


def _casts() -> list[Case]:
    cases = []
    for source in _TYPES:
        dtype = BF16 if source == "bfloat16" else np.dtype(source)
        low = 0 if dtype.kind in "ub" else -100
        values = whole(37, dtype=np.int64, low=low, high=2 if dtype.kind == "b" else 100)
        array = (values / 3 if dtype.kind in "fV" else values).astype(dtype)
        # a negative fraction to an unsigned type is undefined, so those pairs get positive numbers
        for name, number in _TYPES.items():
            cases.append(Case("Cast", [np.abs(array) if name.startswith("uint") else array], {"to": number}))
    return cases


POINTWISE = [
    *(Case(op, [normal(7, 43)]) for op in _UNARY),
    *(Case(op, [normal(3, 24, dtype=np.float16)]) for op in _UNARY),
    *(Case(op, [unit(301)]) for op in ("Asin", "Acos", "Atanh")),
    *(Case(op, [positive(300)]) for op in ("Sqrt", "Log")),
    *(Case(op, [positive(33, dtype=BF16)]) for op in ("Sqrt", "Log")),
    Case("Acosh", [positive(300) + 1]),
    *(Case(op, [positive(3, 5, 7), positive(5, 1)]) for op in ("Add", "Sub", "Mul", "Div", "Pow")),
    *(
        Case(op, [normal(4, 1, 16, dtype=BF16), positive(3, 16, dtype=BF16)])
        for op in ("Add", "Sub", "Mul", "Div")
    ),
    *(
        Case(op, [normal(3, 5, dtype=np.float64), positive(3, 5, dtype=np.float64)])
        for op in ("Add", "Mul", "Div")
    ),
    *(
        Case(op, [whole(33, dtype=np.int64), whole(33, dtype=np.int64, low=1)])
        for op in ("Add", "Sub", "Mul", "Div")
    ),
    Case("Add", [normal(3, 1), normal(1, 5)]),
    Case("Mul", [normal(2, 6, 9, 5), normal(6, 1, 1)]),
    Case("Add", [scalar(2.5), normal(7)], constants=(0,)),
    Case("Add", [normal(40007), normal(40007)]),
    Case("Mul", [normal(40000, dtype=np.float16), normal(40000, dtype=np.float16)]),
    Case("Add", [normal(3, 0, 4), normal(4)]),
    Case("Pow", [positive(7), scalar(2)], constants=(1,)),
    Case("Pow", [normal(7), scalar(3, np.int64)]),
    Case("Pow", [np.array([1, 2, 3, -2], np.int32), np.array([3, 0, 5, 3], np.int32)]),
    *(Case(op, [normal(3, 4), normal(4), normal(3, 1)]) for op in ("Sum", "Mean", "Min", "Max")),
    *(Case(op, [_special(), normal(9)]) for op in ("Min", "Max")),
    Case("Mod", [whole(40), whole(40, low=1, high=9) * np.array([1, -1] * 20, np.int32)]),
    Case("Mod", [normal(40) * 9, normal(40)], {"fmod": 1}),
    Case("Mod", [whole(40, dtype=np.int64), np.full(40, -7)], {"fmod": 1}),
    *(Case(op, [boolean(5, 3), boolean(3)]) for op in ("And", "Or", "Xor")),
    Case("Not", [boolean(17)]),
    *(Case(op, [whole(9), whole(9)]) for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")),
    Case("BitwiseNot", [whole(9, dtype=np.int8)]),
    Case(
        "BitShift", [np.arange(100, 109, dtype=np.uint8), np.arange(9, dtype=np.uint8)], {"direction": "LEFT"}
    ),
    Case(
        "BitShift",
        [np.arange(100, 104, dtype=np.uint32), np.arange(4, dtype=np.uint32)],
        {"direction": "RIGHT"},
    ),
    *(
        Case(
            "BitShift",
            [whole(60, dtype=t), np.arange(60).astype(t)],
            {"direction": d},
        )
        for t in (np.int8, np.int32)
        for d in ("LEFT", "RIGHT")
    ),
    *(Case(op, [np.round(normal(5, 8)), np.round(normal(8))]) for op in _COMPARISONS),
    *(Case(op, [whole(40, low=-2, high=2), whole(40, low=-2, high=2)]) for op in _COMPARISONS),
    Case("Equal", [boolean(9), boolean(9)]),
    Case("Where", [boolean(4, 1), normal(3, 4, 5), normal(5)]),
    Case(
        "Where", [boolean(4, 8), normal(4, 8, dtype=np.float16), scalar(-np.inf, np.float16)], constants=(2,)
    ),
    Case("Where", [boolean(3, 4), whole(3, 4, dtype=np.int64), scalar(-1, np.int64)], constants=(2,)),
    *(Case(op, [whole(33)]) for op in ("Neg", "Abs", "Sign")),
    Case("Round", [np.array([0.5, 1.5, 2.5, -0.5, -1.5, 1e9], np.float32)]),
    Case("Gelu", [normal(99)], {"approximate": "tanh"}),
    *(Case(op, [normal(33)], {"alpha": 0.3}) for op in ("LeakyRelu", "Elu", "Celu")),
    Case("PRelu", [normal(2, 6, 5), normal(6, 1)]),
    *(Case(op, [_special()]) for op in ("IsNaN", "IsInf", "Relu", "Sigmoid", "Tanh")),
    Case("IsInf", [_special()], {"detect_negative": 0}),
    Case("Clip", [normal(33), scalar(-0.5), scalar(0.3)], constants=(1, 2)),
    Case("Clip", [normal(33), None, scalar(0.3)]),
    Case("Clip", [whole(33), scalar(3, np.int32)]),
    Case("Clip", [normal(33)], {"min": -0.1, "max": 0.2}, version=6),
    *_casts(),
    Case("CastLike", [normal(9), whole(2, dtype=np.int64)]),
    Case("QuantizeLinear", [normal(4, 6) * 9, scalar(0.1), scalar(3, np.int8)]),
    Case("QuantizeLinear", [normal(4, 6, 5) * 9, positive(6), whole(6, dtype=np.uint8)], {"axis": 1}),
    Case("QuantizeLinear", [normal(4, 6) * 9, scalar(0.1)], constants=(1,)),
    Case(
        "DequantizeLinear", [whole(4, 6, 5, dtype=np.int8), positive(6), whole(6, dtype=np.int8)], {"axis": 1}
    ),
    Case(
        "DequantizeLinear",
        [whole(4, 6, dtype=np.uint8), scalar(0.1), scalar(128, np.uint8)],
        constants=(1, 2),
    ),
    Case("DequantizeLinear", [whole(4, 6), scalar(0.1)]),
    *(Case("Cast", [every_byte(t)], {"to": to}) for t in (E4M3, E5M2) for to in (1, 10)),
    *(Case("DequantizeLinear", [every_byte(t), scalar(0.1)]) for t in (E4M3, E5M2)),
    Case("DequantizeLinear", [every_byte(E4M3), scalar(0.1, np.float16), scalar(0, E4M3)], constants=(2,)),
    Case("DequantizeLinear", [every_byte(E4M3), positive(8)], {"axis": 0}),
]

_SUMS = ("Sum", "Mean", "Max", "Min", "L1", "L2", "LogSumExp", "SumSquare")
REDUCE = [
    *(Case(f"Reduce{name}", [normal(5, 37), i64(1)], constants=(1,)) for name in _SUMS),
    *(Case(f"Reduce{name}", [normal(5, 6, 7), i64(1)], {"keepdims": 0}, (1,)) for name in _SUMS),
    *(
        Case(f"Reduce{name}", [positive(9, 16), i64(d)], constants=(1,))
        for name in ("Prod", "LogSum")
        for d in (0, 1)
    ),
    Case("ReduceSum", [normal(4, 5, 6, 7), i64(0, 2, 3)], constants=(1,)),
    Case("ReduceSum", [normal(4, 5, 6, 8), i64(0, -2)], constants=(1,)),
    Case("ReduceMean", [normal(2, 6, 7, 7), i64(2, 3)], constants=(1,)),
    Case("ReduceSum", [normal(90001)]),
    Case("ReduceMax", [normal(3, 40000, dtype=np.float16), i64(1)], constants=(1,)),
    Case("ReduceMean", [normal(5000, 9, dtype=BF16), i64(0)], constants=(1,)),
    Case("ReduceLogSumExp", [normal(2, 50000) * 30, i64(1)], constants=(1,)),
    Case("ReduceSum", [whole(7, 40), i64(1)], constants=(1,)),
    Case("ReduceMean", [whole(7, 40, dtype=np.int64), i64(1)], constants=(1,)),
    Case("ReduceMax", [whole(7, 40, dtype=np.int8), i64(0)], constants=(1,)),
    Case("ReduceMin", [whole(7, 40, dtype=np.uint64), i64(0)], constants=(1,)),
    Case("ReduceMean", [normal(5, 6, 7)], {"axes": [2]}, version=13),
    Case("ReduceSum", [normal(3, 4)], {"noop_with_empty_axes": 1}),
    Case("ReduceSum", [normal(6, 50, dtype=np.float64), i64(1)], constants=(1,)),
    Case("ReduceSum", [scalar(1.5)]),
    *(
        Case(
            op,
            [whole(5, 40, low=0, high=4).astype(np.float32)],
            {"axis": axis, "select_last_index": last, "keepdims": last},
        )
        for op in ("ArgMax", "ArgMin")
        for axis in (0, 1)
        for last in (0, 1)
    ),
    Case("ArgMax", [whole(2, 30000, low=0, high=1000).astype(np.float32)], {"axis": 1}),
]

SOFTMAX = [
    Case("Softmax", [normal(5, 7)]),
    Case("Softmax", [normal(3, 4, 64, dtype=np.float16)]),
    Case("Softmax", [normal(9, 1000, dtype=BF16)]),
    Case("Softmax", [normal(3, 70001) * 5]),
    Case("Softmax", [np.where(boolean(6, 40), -np.inf, normal(6, 40)).astype(np.float32)]),
    Case("Softmax", [np.where(boolean(40, 5), -np.inf, normal(40, 5)).astype(np.float32)], {"axis": 0}),
    Case("Softmax", [normal(2, 33, 5)], {"axis": 1}),
    Case("Softmax", [normal(3, 70, dtype=np.float64)]),
    Case("Softmax", [normal(3, 9)], {"axis": 1}, version=11),
    Case("LogSoftmax", [normal(4, 300) * 9]),
    Case("LogSoftmax", [normal(3, 9, 40)], {"axis": 0}),
]

LAYER_NORM = [
    Case("LayerNormalization", [normal(5, 7), normal(7), normal(7)]),
    Case("LayerNormalization", [normal(2, 3, 256) + 3, normal(256), normal(256)], outputs=3),
    Case("LayerNormalization", [normal(3, 768, dtype=np.float16), normal(768, dtype=np.float16)]),
    Case(
        "LayerNormalization", [normal(9, 130, dtype=BF16), normal(130, dtype=BF16), normal(130, dtype=BF16)]
    ),
    Case("LayerNormalization", [normal(2, 3, 40), normal(3, 40), normal(3, 40)], {"axis": 1}),
    Case("LayerNormalization", [normal(2, 70016), normal(70016), normal(70016)]),
    Case("RMSNormalization", [normal(5, 64), normal(64)]),
    Case("InstanceNormalization", [normal(2, 3, 5, 7), normal(3), normal(3)]),
    Case("GroupNormalization", [normal(2, 6, 5, 4), normal(6), normal(6)], {"num_groups": 3}),
]

MOVEMENT = [
    Case("Transpose", [normal(3, 5, 7)], {"perm": [2, 0, 1]}),
    Case("Transpose", [normal(2, 40, 70, dtype=np.float16)], {"perm": [0, 2, 1]}),
    Case("Transpose", [normal(2, 3, 33, 4)], {"perm": [0, 2, 1, 3]}),
    Case("Transpose", [normal(2, 5, 6, 9)], {"perm": [0, 2, 3, 1]}),
    Case("Transpose", [whole(5, 6, 37, dtype=np.uint8)]),
    Case("Transpose", [normal(9, 65, dtype=np.float64)]),
    Case("Transpose", [normal(1, 5, 1, 7)], {"perm": [2, 1, 0, 3]}),
    # every width of vectors, each with whole and with overhanging tiles, and both sides unlike
    *(
        Case("Transpose", [numbered(rows, columns, dtype=t)])
        for t in (np.uint8, np.float16, np.float32, np.float64)
        for rows, columns in ((64, 128), (136, 72), (36, 300), (70, 33), (4, 513), (1000, 8))
    ),
    Case("Transpose", [numbered(2, 24, 12, 12, dtype=np.float16)], {"perm": [0, 2, 3, 1]}),
    Case("Transpose", [numbered(2, 24, 11, 7, dtype=np.float16)], {"perm": [0, 2, 3, 1]}),
    Case("Transpose", [numbered(2, 11, 7, 40, dtype=np.float16)], {"perm": [0, 3, 1, 2]}),
    Case("Transpose", [numbered(16, 3, 72, dtype=np.float16)], {"perm": [2, 1, 0]}),
    Case("Transpose", [numbered(8, 5, 4, 20, dtype=np.float32)], {"perm": [3, 2, 1, 0]}),
    # more rows of tiles than run together, the last of them fewer
    Case("Transpose", [numbered(1160, 72, dtype=np.float16)]),
    Case("DepthToSpace", [normal(2, 8, 6, 5)], {"blocksize": 2}),
    Case("DepthToSpace", [normal(2, 8, 6, 5)], {"blocksize": 2, "mode": "CRD"}),
    Case("SpaceToDepth", [normal(2, 3, 6, 4)], {"blocksize": 2}),
    Case("Concat", [normal(2, 3, 4), normal(2, 5, 4), normal(2, 0, 4), normal(2, 1, 4)], {"axis": 1}),
    Case("Concat", [normal(2, 3, dtype=np.float16), normal(2, 5, dtype=np.float16)], {"axis": -1}),
    Case("Concat", [normal(1, 2) for _ in range(19)], {"axis": 0}),
    Case("Split", [normal(2, 9, 4), i64(2, 3, 4)], {"axis": 1}, (1,), outputs=3),
    Case("Slice", [normal(5, 9, 4), i64(1, -2), i64(4, -9), i64(0, 1), i64(2, -3)], constants=(1, 2, 3, 4)),
    Case("Slice", [normal(5, 9), i64(8), i64(-1000), i64(1), i64(-1)], constants=(1, 2, 3, 4)),
    Case("Slice", [normal(5, 8, 4), i64(2), i64(6), i64(1)], constants=(1, 2, 3)),
    Case("Slice", [boolean(5, 9), i64(1), i64(4)], constants=(1, 2)),
    Case("Tile", [normal(2, 3, 4), i64(2, 1, 3)], constants=(1,)),
    Case("Reshape", [normal(2, 3, 5), i64(5, -1)], constants=(1,)),
    Case("Expand", [normal(3, 1, 4), i64(2, 3, 6, 4)], constants=(1,)),
    Case("Unsqueeze", [normal(7, 3, dtype=np.float16), i64(0)], constants=(1,)),
    Case("Squeeze", [normal(2, 1, 5)]),
    Case("Flatten", [normal(2, 3, 5)]),
    Case("Gather", [normal(5, 7, 4), np.array([[0, -1], [4, 2]])], {"axis": 1}),
    Case("Gather", [normal(50, 24, dtype=np.float16), np.array([3, -50, 49], np.int32)]),
    Case("Gather", [normal(3, 4), np.array(2)], {"axis": 1}),
    Case("GatherElements", [normal(4, 5), whole(3, 5, dtype=np.int64, low=-4, high=4)], {"axis": 0}),
    Case("GatherND", [normal(4, 5, 6), whole(3, 2, dtype=np.int64, low=-4, high=4)]),
    Case("GatherND", [normal(3, 4, 5, 6), whole(3, 2, 1, dtype=np.int64, low=0, high=4)], {"batch_dims": 1}),
    Case("ScatterND", [normal(8, 5), np.array([[1], [-2], [4]]), normal(3, 5)]),
    Case("ScatterElements", [normal(3, 6), np.array([[1, -2, 3], [0, 2, 5]]), normal(2, 3)], {"axis": 1}),
    Case("Pad", [normal(2, 3, 5), i64(0, 1, 2, 1, 0, 3)], constants=(1,)),
    Case(
        "Pad",
        [normal(2, 3, 8, dtype=np.float16), i64(1, 2, 0, 0, 1, 0), scalar(1.5, np.float16)],
        constants=(1,),
    ),
    *(
        Case("Pad", [normal(2, 4, 5), i64(0, 3, 2, 0, 1, 4)], {"mode": m}, (1,))
        for m in ("reflect", "edge", "wrap")
    ),
    Case("Pad", [normal(4, 5), i64(2, 1), None, i64(1)], constants=(1, 3)),
    Case("ConstantOfShape", [i64(3, 4)], {"value": tensor_attribute(np.array([1.5], np.float16))}, (0,)),
    Case("ConstantOfShape", [i64(5)], constants=(0,)),
    Case("Shape", [normal(3, 4, 5)], {"start": 1}),
    Case("Size", [normal(3, 4, 5)]),
    Case("EyeLike", [normal(3, 5)], {"k": 1}),
    Case("Trilu", [normal(2, 5, 7)]),
    Case("Trilu", [normal(2, 5, 7, dtype=np.float16), scalar(-1, np.int64)], {"upper": 0}, (1,)),
    Case("Range", [scalar(1.5), scalar(9), scalar(0.5)]),
    Case("Range", [scalar(10, np.int64), scalar(0, np.int64), scalar(-3, np.int64)]),
    Case(
        "OneHot",
        [whole(3, 4, dtype=np.int64, low=-5, high=5), np.array(5), np.array([0, 2], np.float32)],
        {"axis": 1},
    ),
    *(
        Case("CumSum", [normal(3, 70, 5), scalar(1, np.int64)], {"exclusive": e, "reverse": r}, (1,))
        for e in (0, 1)
        for r in (0, 1)
    ),
    Case("TopK", [whole(4, 300, low=0, high=40).astype(np.float32), i64(7)], {}, (1,), outputs=2),
    Case("TopK", [normal(3, 50, 4), i64(5)], {"axis": 1, "largest": 0}, (1,), outputs=2),
    *(
        Case(
            "Resize",
            [normal(1, 2, 5, 6), None, None, i64(1, 2, 3, 11)],
            {"mode": m, "coordinate_transformation_mode": t},
            (3,),
        )
        for m in ("nearest", "linear")
        for t in ("asymmetric", "half_pixel", "align_corners", "pytorch_half_pixel")
    ),
    # extents that are rounded down, and one that stays although it is scaled
    *(
        Case(
            "Resize",
            [normal(1, 2, 5, 6), None, np.array([1, 1, *scales], np.float32)],
            {"mode": "linear", "coordinate_transformation_mode": t},
            (2,),
        )
        for scales in ((2, 1.5), (0.7, 1.1))
        for t in ("asymmetric", "half_pixel", "align_corners", "pytorch_half_pixel")
    ),
]

FAMILIES = {
    "pointwise": POINTWISE,
    "reduce": REDUCE,
    "softmax": SOFTMAX,
    "layer_norm": LAYER_NORM,
    "movement": MOVEMENT,
}


def untested_rules() -> set[str]:
    """Return the elementwise operators that no case calls."""
    return set(RULES) - {case.op for case in POINTWISE}


def blank(*shape: int, dtype: Any = np.float32) -> Array:
    """Return an array that takes no memory, to be filled when it is needed."""
    return np.broadcast_to(np.zeros((), dtype), shape)


def filled(case: Case) -> Case:
    """Return ``case`` with random numbers in place of blanks."""
    inputs = [a if a is None or any(a.strides) or a.ndim == 0 else _random(a) for a in case.inputs]
    return replace(case, inputs=inputs)


def _random(array: Array) -> Array:
    return _rng.standard_normal(array.shape, dtype=np.float32).astype(array.dtype)


LARGE = {
    "pointwise": [
        Case("Add", [blank(16, 512, 1024, dtype=np.float16), blank(1024, dtype=np.float16)]),
        Case("Gelu", [blank(3, 1001, 1021)]),
        Case("Mul", [blank(8, 64, 113, 113), blank(64, 1, 1)]),
        Case("Cast", [blank(1023, 4097)], {"to": 10}),
    ],
    "reduce": [
        Case("ReduceSum", [blank(4096, 4100), i64(1)], constants=(1,)),
        Case("ReduceMean", [blank(4096, 4100), i64(0)], constants=(1,)),
        Case("ReduceMean", [blank(32, 64, 56, 56), i64(2, 3)], constants=(1,)),
        Case("ReduceSum", [blank(8, 3, 777, 5), i64(0, 2)], constants=(1,)),
        Case("ReduceMax", [blank(16_000_001)]),
    ],
    "softmax": [
        Case("Softmax", [blank(8, 12, 384, 384, dtype=np.float16)]),
        Case("Softmax", [blank(128, 50257)]),
        Case("Softmax", [blank(16, 21, 129, 130)], {"axis": 1}),
        Case("LogSoftmax", [blank(4, 1_000_003)]),
    ],
    "layer_norm": [
        Case("LayerNormalization", [blank(32, 384, 768), blank(768), blank(768)]),
        Case("RMSNormalization", [blank(2048, 4096, dtype=BF16), blank(4096, dtype=BF16)]),
        Case("LayerNormalization", [blank(64, 12289, dtype=np.float16), blank(12289, dtype=np.float16)]),
        Case("GroupNormalization", [blank(4, 64, 65, 65), blank(64), blank(64)], {"num_groups": 32}),
    ],
    "movement": [
        Case("Transpose", [blank(8, 384, 12, 64, dtype=np.float16)], {"perm": [0, 2, 1, 3]}),
        Case("Transpose", [blank(8, 64, 113, 113)], {"perm": [0, 2, 3, 1]}),
        Case("Transpose", [blank(2049, 4099, dtype=np.float16)]),
        *(Case("Transpose", [blank(4096, 2048, dtype=t)]) for t in (np.uint8, np.float16, np.float64)),
        Case("Transpose", [blank(8, 64, 112, 112, dtype=np.float16)], {"perm": [0, 2, 3, 1]}),
        Case("Transpose", [blank(8, 113, 113, 64, dtype=np.float16)], {"perm": [0, 3, 1, 2]}),
        Case("Concat", [blank(8, 64, 56, 56), blank(8, 32, 56, 56)], {"axis": 1}),
        Case("Gather", [blank(30522, 768), whole(32, 384, dtype=np.int64, low=0, high=30522)]),
        Case("Slice", [blank(64, 1024, 768), i64(1), i64(1023), i64(1)], constants=(1, 2, 3)),
        Case("Pad", [blank(8, 64, 56, 56), i64(0, 0, 1, 1, 0, 0, 1, 1)], constants=(1,)),
        Case("Expand", [blank(8, 1, 64, 384), i64(8, 12, 64, 384)], constants=(1,)),
    ],
}
"""Shapes of real networks, for GPUs and compilers only; ``filled`` puts numbers in."""
