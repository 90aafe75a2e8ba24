"""Runs tactics of this package on the CPU, through Triton's interpreter: no GPU, no torch.

TRITON_INTERPRET=1 python interpreted.py: reads pickled cases (tactic, signature, inputs) from standard input and
writes their outputs to standard output.
"""

from __future__ import annotations

import importlib
import pickle
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from tactician import OpSignature, TensorType, TritonSource

ELEMENTS = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}


class InterpretedDevice:
    """A device in host memory, as far as ``prepare`` asks for one."""

    def compile(self, source: TritonSource) -> InterpretedKernel:
        return InterpretedKernel(source)


@dataclass(frozen=True)
class InterpretedKernel:
    """A function that Triton's interpreter runs."""

    source: TritonSource

    def launch(self, stream: Any, grid: int | tuple[int, ...], *args: np.ndarray | None) -> None:
        function = getattr(importlib.import_module(str(self.source.module)), self.source.function)
        named = zip(self.source.signature, args, strict=True)
        tensors = {name: Tensor(array, ELEMENTS[kind[1:]]) for (name, kind), array in named}
        function[grid if isinstance(grid, tuple) else (grid,)](**tensors, **dict(self.source.constants))


@dataclass
class Tensor:
    """A NumPy array with what the interpreter asks of a tensor: it stands for its own storage and its own copy."""

    array: np.ndarray | None
    dtype: str

    def data_ptr(self) -> int:
        return self.array.ctypes.data if self.array is not None else 0

    def untyped_storage(self) -> Tensor:
        return self

    def cpu(self) -> Tensor:
        return self

    def copy_(self, other: Tensor) -> None:
        assert other.data_ptr() == self.data_ptr(), "the interpreter wrote elsewhere"

    def new_empty(self, size: int, device: str) -> Tensor:
        return Tensor(None, self.dtype)

    def set_(self, storage: Tensor, *geometry: Any) -> None:
        self.array = storage.array

    def storage_offset(self) -> int:
        return 0

    def size(self) -> tuple[int, ...]:
        return ()

    def stride(self) -> tuple[int, ...]:
        return ()


def run(tactic: Any, signature: OpSignature, inputs: list[np.ndarray | None]) -> np.ndarray:
    """Return what the tactic computes; memory is filled with NaN before."""
    device, output = InterpretedDevice(), signature.outputs[0]
    assert isinstance(output, TensorType)
    result = np.full(output.dims, np.nan, output.numpy_dtype)
    workspace = np.full(tactic.workspace(signature, device), 0xFF, np.uint8)
    tactic.prepare(signature, device)(inputs, [result], workspace, None)
    return result


if __name__ == "__main__":
    outputs = [run(*case) for case in pickle.load(sys.stdin.buffer)]
    pickle.dump(outputs, sys.stdout.buffer)
