"""Reductions as offsets: which elements each output is made of, and what is done with them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tactician.builtin_kernels.cuda.indexing import (
    Shape,
    collapse,
    contiguous_strides,
    index_type,
    offset_expression,
    power_of_two_below,
)
from tactician.builtin_kernels.cuda.pieces import MovementError, integers
from tactician.builtin_kernels.cuda.pointwise_ops import C_TYPES, FLOAT_TYPES, literal
from tactician.signature import OpSignature

KIND_PLAIN, KIND_ARG, KIND_LOG_SUM_EXP = 0, 1, 2


class ReduceError(Exception):
    """A call that the kernels can't run; the message is the reason to decline with."""


@dataclass(frozen=True)
class ReduceProblem:
    """Kept and reduced dimensions of a reduction, with their strides in elements; both collapsed."""

    kept: Shape
    kept_strides: Shape
    reduced: Shape
    reduced_strides: Shape
    elements: int

    @classmethod
    def of(cls, signature: OpSignature) -> ReduceProblem:
        """Return the problem of a static signature.

        Raises
        ------
        ReduceError
            If the axes are not known, or nothing is left to combine.
        """
        tensor = signature.inputs[0]
        assert tensor is not None
        dims = tensor.dims
        axes = _axes(signature, len(dims))
        own = contiguous_strides(dims)
        parts = []
        for reduce in (False, True):
            chosen = [d for d in range(len(dims)) if (d in axes) == reduce]
            shape, (strides,) = collapse([dims[d] for d in chosen], [own[d] for d in chosen])
            parts += [shape, strides]
        problem = cls(parts[0], parts[1], parts[2], parts[3], tensor.size)
        if problem.outputs and not problem.length:
            raise ReduceError("combines no elements")
        return problem

    @property
    def outputs(self) -> int:
        """Number of outputs."""
        return math.prod(self.kept)

    @property
    def length(self) -> int:
        """Number of elements that are combined for each output."""
        return math.prod(self.reduced)

    @property
    def in_rows(self) -> bool:
        """Whether neighbouring elements belong to the same output."""
        return self.reduced_strides[-1] == 1 and self.length > 1

    def vector(self, itemsize: int) -> int:
        """Return the elements of the widest access along the innermost dimension."""
        inner, outer = (self.reduced, self.kept) if self.in_rows else (self.kept, self.reduced)
        inner_strides, outer_strides = (
            (self.reduced_strides, self.kept_strides)
            if self.in_rows
            else (self.kept_strides, self.reduced_strides)
        )
        if inner_strides[-1] != 1:
            return 1
        walks = [s for s, n in zip(outer_strides, outer, strict=True) if n > 1]
        return power_of_two_below(math.gcd(inner[-1], *inner_strides[:-1], *walks), max(16 // itemsize, 1))

    def macros(self) -> dict[str, int | str]:
        """Return the macros that describe the offsets."""
        index = self.index
        return {
            "KEPT(i)": offset_expression("(i)", self.kept, self.kept_strides, index),
            "REDUCED(i)": offset_expression("(i)", self.reduced, self.reduced_strides, index),
            "OUTPUTS": f"{self.outputs}u",
            "LENGTH": f"{self.length}u",
        }

    @property
    def index(self) -> str:
        """The C type of indices; the last block may overhang, hence the margin."""
        return index_type(self.elements + (1 << 20))


def arithmetic_macros(signature: OpSignature) -> tuple[dict[str, str], dict[str, int | str]]:
    """Return the types and macros that say what is done with the elements.

    Raises
    ------
    ReduceError
        If the kernels can't do this operator for this element type.
    """
    x, y = signature.inputs[0], signature.outputs[0]
    assert x is not None
    if y is None or x.dtype not in C_TYPES:
        raise ReduceError(f"element type {x.dtype} is not supported")
    accumulator = _accumulator(x.dtype)
    double = accumulator == "double"
    types = {"T": C_TYPES[x.dtype], "O": C_TYPES[y.dtype], "A": accumulator}
    macros: dict[str, int | str] = {"KIND_ARG": KIND_ARG, "KIND_LOG_SUM_EXP": KIND_LOG_SUM_EXP}
    op = signature.op_type
    if op in ("ArgMax", "ArgMin"):
        last = int(signature.attribute("select_last_index", 0))
        return types, macros | {"KIND": KIND_ARG, "LARGEST": int(op == "ArgMax"), "LAST": last}
    if op in ("ReduceLogSumExp", "ReduceLogSum") and x.dtype not in FLOAT_TYPES:
        raise ReduceError(f"a logarithm of {x.dtype} is not supported")
    if op == "ReduceLogSumExp":
        functions = {
            "EXP": "exp" if double else "expf",
            "LOGARITHM": "log" if double else "logf",
            "INFINITE": literal(math.inf, "float64" if double else "float32"),
        }
        return types, macros | functions | {"KIND": KIND_LOG_SUM_EXP}
    return types, macros | {"KIND": KIND_PLAIN} | _plain(
        op, x.dtype, accumulator, ReduceProblem.of(signature).length
    )


def partial_bytes(signature: OpSignature) -> int:
    """Return the bytes of one partial result."""
    types, macros = arithmetic_macros(signature)
    size = 4 if types["A"] == "float" else 8
    return {KIND_PLAIN: size, KIND_ARG: 16, KIND_LOG_SUM_EXP: 2 * size}[int(macros["KIND"])]


def _axes(signature: OpSignature, rank: int) -> set[int]:
    if signature.op_type in ("ArgMax", "ArgMin"):
        return {int(signature.attribute("axis", 0)) % max(rank, 1)}
    try:
        axes = integers(signature, 1, "axes")
    except MovementError as reason:
        raise ReduceError(str(reason)) from reason
    if axes:
        return {a % rank for a in axes}
    if not signature.attribute("noop_with_empty_axes", 0):
        return set(range(rank))
    if signature.op_type not in ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd"):
        raise ReduceError("no axes and noop_with_empty_axes")
    return set()


def _accumulator(dtype: str) -> str:
    if dtype in FLOAT_TYPES:
        return "double" if dtype == "float64" else "float"
    return "u64" if dtype == "uint64" else "i64"


def _plain(op: str, dtype: str, accumulator: str, length: int) -> dict[str, int | str]:
    """Return identity, map, combination and last step of a reduction to one number."""
    real = dtype in FLOAT_TYPES
    root = "sqrtf(a)" if accumulator == "float" else "sqrt((double)a)"
    log = "logf(a)" if accumulator == "float" else "log(a)"
    mean = f"a / (A){length}"
    extremes = {"float": math.inf, "double": math.inf, "i64": 2**63 - 1, "u64": 2**64 - 1}
    names = {"float": "float32", "double": "float64", "i64": "int64", "u64": "uint64"}
    top = literal(extremes[accumulator], names[accumulator])
    bottom = f"(-{top})" if real else "0ull" if accumulator == "u64" else f"(-{top} - 1)"
    nan = " || a != a" if real else ""
    size = "x < 0 ? -x : x" if accumulator != "u64" else "x"
    table: dict[str, tuple[str, str, str, str]] = {
        "ReduceSum": ("0", "x", "a + b", "a"),
        "ReduceMean": ("0", "x", "a + b", mean),
        "ReduceProd": ("1", "x", "a * b", "a"),
        "ReduceMax": (bottom, "x", f"a > b{nan} ? a : b", "a"),
        "ReduceMin": (top, "x", f"a < b{nan} ? a : b", "a"),
        "ReduceL1": ("0", size, "a + b", "a"),
        "ReduceL2": ("0", "x * x", "a + b", root),
        "ReduceSumSquare": ("0", "x * x", "a + b", "a"),
        "ReduceLogSum": ("0", "x", "a + b", log),
    }
    return dict(zip(("IDENTITY", "MAP", "COMBINE", "FINISH"), table[op], strict=True))
