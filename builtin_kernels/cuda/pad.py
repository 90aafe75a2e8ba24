"""Pad in all its modes, and negative pads, which crop."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from tactician.builtin_kernels.cuda.compiler import KernelSource
from tactician.builtin_kernels.cuda.indexing import (
    Shape,
    ceil_div,
    contiguous_strides,
    index_type,
    power_of_two_below,
)
from tactician.builtin_kernels.cuda.kernel_text import specialise
from tactician.builtin_kernels.cuda.pieces import WIDEST_WORD, MovementError, integers
from tactician.builtin_kernels.cuda.strided_copy import WORDS, decline_movement
from tactician.signature import OpSignature, TensorType
from tactician.tactics.tactic import Launch, Tactic

_MAPS = {"reflect": "reflected", "edge": "clamped", "wrap": "wrapped"}


@dataclass(frozen=True)
class Pad(Tactic):
    """One thread for each word of the output."""

    op: ClassVar[str] = "ai.onnx::Pad"
    target: ClassVar[str] = "cuda"

    threads: int = 256

    @classmethod
    def candidates(cls, signature: OpSignature, device: Any) -> Iterable[Self]:
        """Yield two sizes of blocks."""
        yield cls(256)
        yield cls(128)

    def decline(self, signature: OpSignature, device: Any) -> str | None:
        """Decline unknown pads and modes."""
        return decline_movement(signature, lambda: plan_pad(signature))

    def prepare(self, signature: OpSignature, device: Any) -> Launch:
        """Compile the kernel; without elements there is nothing to launch."""
        plan = plan_pad(signature)
        if plan.count == 0:
            return lambda inputs, outputs, workspace, stream: None
        launch = device.compile(self.kernel(plan)).launch
        grid, threads = ceil_div(plan.count, self.threads), self.threads
        has_value = signature.input(2) is not None

        def run(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any) -> None:
            launch(stream, grid, threads, inputs[0], inputs[2] if has_value else None, outputs[0])

        return run

    def kernel(self, plan: PadPlan) -> KernelSource:
        """Return the kernel's source."""
        types = {"Word": WORDS[plan.word], "Item": WORDS[plan.itemsize], "Index": plan.index}
        macros: dict[str, int | str] = {
            "MAP": plan.map,
            "COUNT": f"{plan.count}u",
            "THREADS": self.threads,
            "FILL": f"{plan.fill}ull",
        }
        return specialise("pad", "pad.cu", types, macros)


TACTICS: list[type[Tactic]] = [Pad]


@dataclass(frozen=True)
class PadPlan:
    """Words of the output, their size, the C text that maps them, and the bits of the fill value."""

    count: int
    word: int
    itemsize: int
    index: str
    map: str
    fill: int


def plan_pad(signature: OpSignature) -> PadPlan:
    """Return the plan of a Pad.

    Raises
    ------
    MovementError
        If the pads are not known, or the mode doesn't exist.
    """
    source, target = signature.input(0), signature.outputs[0]
    if source is None or target is None:
        raise MovementError("the input is absent")
    if source.itemsize > 8:
        raise MovementError(f"element type {source.dtype} is not supported")
    mode = str(signature.attribute("mode", "constant"))
    if mode != "constant" and mode not in _MAPS:
        raise MovementError(f"mode '{mode}' is not supported")
    before = _pads_before(signature, len(source.dims))
    shape, padded, before = _merged(source.dims, target.dims, before)
    if mode != "constant" and target.size and not source.size:
        raise MovementError("there is nothing to repeat")
    factor = 1
    if shape[-1] == padded[-1] and before[-1] == 0:
        factor = power_of_two_below(shape[-1], WIDEST_WORD // source.itemsize)
        shape, padded = (*shape[:-1], shape[-1] // factor), (*padded[:-1], padded[-1] // factor)
    index = index_type(target.size, source.size)
    text = " ".join(_statement(d, shape, padded, before, mode) for d in range(len(shape)))
    return PadPlan(
        target.size // factor,
        source.itemsize * factor,
        source.itemsize,
        index,
        text,
        _fill_bits(signature, source),
    )


def _pads_before(signature: OpSignature, rank: int) -> Shape:
    pads = integers(signature, 1, "pads")
    if pads is None:
        raise MovementError("the pads are absent")
    axes = integers(signature, 3, "axes") or tuple(range(rank))
    before = [0] * rank
    for k, axis in enumerate(axes):
        before[axis % rank] = pads[k]
    return tuple(before)


def _merged(dims: Shape, padded: Shape, before: Shape) -> tuple[Shape, Shape, Shape]:
    """Merge neighbouring dimensions that are not padded."""
    merged: list[tuple[int, int, int]] = []
    for entry in zip(dims, padded, before, strict=True):
        plain = entry[0] == entry[1] and entry[2] == 0
        if plain and merged and merged[-1][0] == merged[-1][1] and merged[-1][2] == 0:
            merged[-1] = (merged[-1][0] * entry[0],) * 2 + (0,)
        else:
            merged.append(entry)
    shape, target, start = zip(*merged or [(1, 1, 0)], strict=True)
    return tuple(shape), tuple(target), tuple(start)


def _statement(d: int, shape: Shape, padded: Shape, before: Shape, mode: str) -> str:
    """Return the C statements that add dimension ``d`` of word ``i`` to ``place``."""
    inner = math.prod(padded[d + 1 :])
    coordinate = f"i / {max(inner, 1)}u" + (f" % {max(padded[d], 1)}u" if d else "")
    stride = contiguous_strides(shape)[d]
    if shape[d] == padded[d] and before[d] == 0:
        return f"place += ({coordinate}) * {stride}u;"
    shifted = f"(i32)({coordinate}) - ({before[d]})"
    if mode == "constant":
        test = f"inside &= c >= 0 && c < {shape[d]};"
        return f"{{ const i32 c = {shifted}; {test} place += (Index)c * {stride}u; }}"
    return f"place += (Index){_MAPS[mode]}({shifted}, {shape[d]}) * {stride}u;"


def _fill_bits(signature: OpSignature, tensor: TensorType) -> int:
    """Return the bits of the fill value that older opsets give as an attribute; 0 otherwise."""
    value = np.asarray(signature.attribute("value", 0.0)).astype(tensor.numpy_dtype)
    return int.from_bytes(value.tobytes(), "little")
