"""Pointwise programs: what a pointwise kernel loads, computes and stores."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from tactician.builtin_kernels.cuda.indexing import Shape
from tactician.builtin_kernels.cuda.pointwise_ops import (
    C_TYPES,
    COMPUTE_TYPES,
    Call,
    Operand,
    UnsupportedError,
    apply_rule,
    literal,
)
from tactician.signature import OpSignature, dtype_name

_SHAPED_BY_FIRST = ("Cast", "CastLike", "Dropout", "QuantizeLinear", "DequantizeLinear")
_LOAD_NAME = re.compile(r"\bx(\d+)\b")


class Load(msgspec.Struct, frozen=True):
    """An input that is read as if it had ``shape``, which broadcasts to the program's shape."""

    input: int
    dtype: str
    shape: tuple[int, ...]


class PointwiseExpression(msgspec.Struct, frozen=True):
    """One statement: ``const <dtype> name = code``."""

    name: str
    dtype: str
    code: str


class PointwiseProgram(msgspec.Struct, frozen=True):
    """An expression graph over the elements of ``shape``; load ``k`` is called ``x<k>``."""

    shape: tuple[int, ...]
    loads: tuple[Load, ...]
    expressions: tuple[PointwiseExpression, ...]
    outputs: tuple[tuple[str, str], ...]
    """Element type and C text of the value of each output."""

    def encode(self) -> bytes:
        """Return the program as JSON."""
        return msgspec.json.encode(self)

    @staticmethod
    def decode(data: bytes) -> PointwiseProgram:
        """Return the program that ``encode`` wrote."""
        return msgspec.json.decode(data, type=PointwiseProgram)


class ProgramBuilder:
    """Collects loads and statements while operators are applied one after the other."""

    def __init__(self, signature: OpSignature) -> None:
        self._signature = signature
        self._loads: list[Load] = []
        self._expressions: list[PointwiseExpression] = []

    def operand(self, index: int) -> Operand | None:
        """Return input ``index``, as a literal where it is a known scalar; None where it is absent."""
        tensor = self._signature.input(index)
        if tensor is None:
            return None
        if tensor.dtype not in C_TYPES:
            raise UnsupportedError(f"element type {tensor.dtype} is not supported")
        known = self._signature.known(index)
        if known is not None and known.size == 1:
            return constant(known)
        return self._load(Load(index, tensor.dtype, tensor.dims))

    def apply(
        self, op: str, version: int, attributes: Mapping[str, Any], operands: Sequence[Operand | None]
    ) -> Operand:
        """Return the result of an operator."""
        if op in ("QuantizeLinear", "DequantizeLinear"):
            operands = self._align_parameters(operands, int(attributes.get("axis", 1)))
        dtype, code = apply_rule(Call(op, version, attributes, tuple(operands)))
        shapes = [o.shape for o in operands if o is not None]
        try:
            shape = shapes[0] if op in _SHAPED_BY_FIRST else np.broadcast_shapes(*shapes)
        except ValueError as error:
            raise UnsupportedError(f"shapes of {op} don't broadcast: {error}") from error
        name = f"v{len(self._expressions)}"
        self._expressions.append(PointwiseExpression(name, dtype, code))
        return Operand(name, dtype, tuple(shape))

    def finish(self, outputs: Sequence[Operand]) -> PointwiseProgram:
        """Return the program whose results are ``outputs``, checked against the signature's types."""
        shape = outputs[0].shape
        for output, tensor in zip(outputs, self._signature.outputs, strict=False):
            if tensor is None:
                raise UnsupportedError("an output is absent")
            if tensor.dims != shape or output.shape != shape:
                raise UnsupportedError(f"outputs of shapes {tensor.dims} and {shape} don't share one loop")
            if tensor.dtype != output.dtype:
                raise UnsupportedError(
                    f"the output is declared {tensor.dtype}, but is computed as {output.dtype}"
                )
        if len(self._signature.outputs) != len(outputs):
            raise UnsupportedError("more outputs than the kernel writes")
        results = tuple((o.dtype, o.code) for o in outputs)
        return _without_unused_loads(
            PointwiseProgram(shape, tuple(self._loads), tuple(self._expressions), results)
        )

    def _load(self, load: Load, shape: Shape | None = None) -> Operand:
        """Return ``load``, a new one or the same as before; ``shape`` is what shape inference sees."""
        if load not in self._loads:
            self._loads.append(load)
        return Operand(f"x{self._loads.index(load)}", load.dtype, shape or load.shape, source=load.input)

    def _align_parameters(self, operands: Sequence[Operand | None], axis: int) -> list[Operand | None]:
        """Line up scale and zero point of a (de)quantisation with dimension ``axis`` of the first operand."""
        x = operands[0]
        aligned = [x]
        for parameter in operands[1:]:
            if parameter is None or x is None or np.prod(parameter.shape) == 1:
                # one element: read as a scalar, whatever its rank
                aligned.append(None if parameter is None else self._scalar(parameter))
                continue
            if parameter.source is None or len(parameter.shape) != 1:
                raise UnsupportedError("the scale is no vector that comes straight from an input")
            trailing = len(x.shape) - axis % len(x.shape) - 1
            shape = parameter.shape + (1,) * trailing
            aligned.append(self._load(Load(parameter.source, parameter.dtype, shape)))
        return aligned

    def _scalar(self, parameter: Operand) -> Operand:
        if parameter.source is None:
            return Operand(parameter.code, parameter.dtype, (), parameter.value)
        return self._load(Load(parameter.source, parameter.dtype, ()))


def _without_unused_loads(program: PointwiseProgram) -> PointwiseProgram:
    """Drop loads that nothing reads, such as the second operand of CastLike, and number the others anew."""
    codes = [e.code for e in program.expressions] + [code for _, code in program.outputs]
    used = sorted({int(k) for code in codes for k in _LOAD_NAME.findall(code)})

    def renamed(code: str) -> str:
        return _LOAD_NAME.sub(lambda match: f"x{used.index(int(match[1]))}", code)

    return PointwiseProgram(
        program.shape,
        tuple(program.loads[k] for k in used),
        tuple(PointwiseExpression(e.name, e.dtype, renamed(e.code)) for e in program.expressions),
        tuple((dtype, renamed(code)) for dtype, code in program.outputs),
    )


def constant(array: np.ndarray[Any, Any]) -> Operand:
    """Return an array of one element as a literal operand."""
    dtype = dtype_name(array.dtype)
    if dtype not in COMPUTE_TYPES:
        raise UnsupportedError(f"element type {dtype} is not supported")
    scalar = array.reshape(-1)[0]
    value: int | float | bool = (
        bool(scalar) if dtype == "bool" else float(scalar) if "float" in dtype else int(scalar)
    )
    return Operand(literal(value, dtype), dtype, array.shape, value)


def operator_program(signature: OpSignature) -> PointwiseProgram:
    """Return the program of a single elementwise operator.

    Raises
    ------
    UnsupportedError
        With the reason, if it can't be expressed.
    """
    builder = ProgramBuilder(signature)
    operands = [builder.operand(i) for i in range(len(signature.inputs))]
    attributes = dict(signature.attributes)
    return builder.finish([builder.apply(signature.op_type, signature.version, attributes, operands)])


def copy_program(dtype: str, shape: Shape, source_shape: Shape) -> PointwiseProgram:
    """Return the program that reads input 0 of ``source_shape``, broadcast, and writes it."""
    return PointwiseProgram(shape, (Load(0, dtype, source_shape),), (), ((dtype, "x0"),))
