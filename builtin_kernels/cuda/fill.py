"""ConstantOfShape, Shape, Size, EyeLike, Range, OneHot and Trilu: elements that follow from their place."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from tactician.builtin_kernels.cuda.indexing import ceil_div, index_type
from tactician.builtin_kernels.cuda.kernel_text import specialise
from tactician.builtin_kernels.cuda.pieces import MovementError
from tactician.builtin_kernels.cuda.pointwise_ops import C_TYPES
from tactician.builtin_kernels.cuda.strided_copy import WORDS, decline_movement
from tactician.plugins.target import Artifacts
from tactician.signature import Blob, OpSignature, TensorType
from tactician.tactics.tactic import Launch, Tactic


@dataclass(frozen=True)
class Formula:
    """C text of the value of element ``i``, its types, and which inputs it reads as a and b."""

    value: str
    types: tuple[str, str, str]
    """C types T, TA and TB."""
    reads: tuple[int, ...] = ()


@dataclass(frozen=True)
class Fill(Tactic):
    """One thread for each element."""

    op: ClassVar[tuple[str, ...]] = tuple(
        f"ai.onnx::{name}"
        for name in ("ConstantOfShape", "Shape", "Size", "EyeLike", "Range", "OneHot", "Trilu")
    )
    target: ClassVar[str] = "cuda"

    threads: int = 256

    @classmethod
    def candidates(cls, signature: OpSignature, device: Any) -> Iterable[Self]:
        """Yield one size of block: the kernel is a plain store."""
        yield cls()

    def decline(self, signature: OpSignature, device: Any) -> str | None:
        """Decline dynamic shapes, and parameters that are not known."""
        if signature.op_type == "ConstantOfShape":
            return decline_movement(signature, lambda: None)
        return decline_movement(signature, lambda: _FORMULAS[signature.op_type](signature))

    def prepare(self, signature: OpSignature, device: Any) -> Launch:
        """Compile the kernel; without elements there is nothing to launch."""
        formula = (
            _constant(signature, device)
            if signature.op_type == "ConstantOfShape"
            else _FORMULAS[signature.op_type](signature)
        )
        count = _type(signature.outputs[0]).size
        if count == 0:
            return lambda inputs, outputs, workspace, stream: None
        types = dict(zip(("T", "TA", "TB"), formula.types, strict=True)) | {"Index": index_type(count)}
        macros: dict[str, int | str] = {"VALUE": formula.value, "COUNT": f"{count}u", "THREADS": self.threads}
        launch = device.compile(specialise("fill", "fill.cu", types, macros)).launch
        grid, threads, reads = ceil_div(count, self.threads), self.threads, formula.reads

        def run(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any) -> None:
            a, b = (*(inputs[i] for i in reads), None, None)[:2]
            launch(stream, grid, threads, a, b, outputs[0])

        return run


TACTICS: list[type[Tactic]] = [Fill]


def _type(tensor: TensorType | None) -> TensorType:
    if tensor is None:
        raise MovementError("an input or output is absent")
    return tensor


def _constant(signature: OpSignature, device: Any) -> Formula:
    """Return the formula of one repeated value. Its bytes are an artifact: reading them needs onnx."""
    output = _type(signature.outputs[0])
    word = WORDS[output.itemsize]
    key = Artifacts.key("constant-of-shape", signature.key)
    data = device.artifacts.get(key, lambda: _value_bytes(signature.attribute("value"), output))
    return Formula(f"{int.from_bytes(data, 'little')}ull", (word, "u8", "u8"))


def _value_bytes(value: Blob | None, output: TensorType) -> bytes:
    if value is None:
        return np.zeros(1, output.numpy_dtype).tobytes()
    import onnx
    from onnx import numpy_helper

    return bytes(numpy_helper.to_array(onnx.TensorProto.FromString(value.data[0])).tobytes())


def _shape(signature: OpSignature) -> Formula:
    dims = _type(signature.input(0)).dims
    start, end = signature.attribute("start", 0), signature.attribute("end", len(dims))
    values = dims[slice(start, end)]
    text = "".join(f"i == {k}u ? {d}ll : " for k, d in enumerate(values)) + "0ll"
    return Formula(text, ("i64", "u8", "u8"))


def _size(signature: OpSignature) -> Formula:
    return Formula(f"{_type(signature.input(0)).size}ll", ("i64", "u8", "u8"))


def _eye(signature: OpSignature) -> Formula:
    output = _type(signature.outputs[0])
    one = int.from_bytes(np.ones(1, output.numpy_dtype).tobytes(), "little")
    width = max(output.dims[1], 1)
    value = (
        f"(i64)(i % {width}u) == (i64)(i / {width}u) + ({int(signature.attribute('k', 0))}) ? {one}ull : 0ull"
    )
    return Formula(value, (WORDS[output.itemsize], "u8", "u8"))


def _range(signature: OpSignature) -> Formula:
    output = _type(signature.outputs[0])
    if output.dtype not in ("float32", "float64", "int16", "int32", "int64"):
        raise MovementError(f"element type {output.dtype} is not supported")
    c = C_TYPES[output.dtype]
    return Formula("*a + (T)i * *b", (c, c, c), (0, 2))


def _one_hot(signature: OpSignature) -> Formula:
    indices, values = _type(signature.input(0)), _type(signature.input(2))
    output = _type(signature.outputs[0])
    if indices.dtype not in ("int32", "int64"):
        raise MovementError(f"indices of type {indices.dtype} are not supported")
    axis = int(signature.attribute("axis", -1)) % len(output.dims)
    depth, inner = output.dims[axis], max(math.prod(output.dims[axis + 1 :]), 1)
    entry = f"(i64)a[i / {max(depth * inner, 1)}u * {inner}u + i % {inner}u]"
    place = f"(i64)(i / {inner}u % {max(depth, 1)}u)"
    value = f"{entry} == {place} || {entry} + {depth} == {place} ? b[1] : b[0]"
    word = WORDS[values.itemsize]
    return Formula(value, (word, C_TYPES[indices.dtype], word), (0, 2))


def _triangle(signature: OpSignature) -> Formula:
    x = _type(signature.input(0))
    shift = 0
    if signature.input(1) is not None:
        known = signature.known(1)
        if known is None:
            raise MovementError("'k' is not a known constant")
        shift = int(known.reshape(-1)[0])
    if x.itemsize not in (1, 2, 4, 8):
        raise MovementError(f"element type {x.dtype} is not supported")
    height, width = max(x.dims[-2], 1), max(x.dims[-1], 1)
    test = ">=" if signature.attribute("upper", 1) else "<="
    keep = f"(i64)(i % {width}u) {test} (i64)(i / {width}u % {height}u) + ({shift})"
    word = WORDS[x.itemsize]
    return Formula(f"{keep} ? a[i] : (TA)0", (word, word, "u8"), (0,))


_FORMULAS: dict[str, Callable[[OpSignature], Formula]] = {
    "Shape": _shape,
    "Size": _size,
    "EyeLike": _eye,
    "Range": _range,
    "OneHot": _one_hot,
    "Trilu": _triangle,
}
