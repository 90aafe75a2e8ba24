"""A CUDA device without a GPU: NVRTC makes PTX, and the interpreter runs it on a NumPy arena."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ptx_interpreter import PtxKernel, add_steps
from ptx_memory import Memory
from ptx_tensor import STEPS
from tactician.builtin_kernels.cuda.compiler import KernelSource
from tactician.builtin_kernels.cuda.tensor import DeviceTensor
from tactician.errors import TacticError
from tactician.plugins.target import Artifacts
from tactician.signature import OpSignature, dtype_name
from tactician.tactics.tactic import Tactic

Array = np.ndarray[Any, np.dtype[Any]]

add_steps(STEPS)

POISON = 0xFF
"""Byte that outputs and workspaces are filled with: NaN in every floating-point type."""


SUFFIXES = {80: "", 90: "a"}
"""What follows the compute capabilities that kernels are compiled for in their names."""


class PtxDevice:
    """The part of the ``cuda`` device that tactics use, with the facts of a small GPU: sm_80, or another of ``SUFFIXES``."""

    target = "cuda"

    def __init__(self, sm: int = 80) -> None:
        self.index = 0
        self.name = "PTX interpreter"
        self.artifacts = Artifacts()
        self.memory = Memory()
        self.facts: Mapping[str, int | float | str] = {
            "arch": f"sm_{sm}{SUFFIXES[sm]}", "sm": sm, "compute_capability": f"{sm // 10}.{sm % 10}", "driver": "",
            "multiprocessors": 4,
            "l2_bytes": 1 << 20, "shared_bytes_per_block": 166912, "memory_bytes": 1 << 26,
        }  # fmt: skip

    def compile(self, source: KernelSource) -> InterpretedKernel:
        """Return the kernel, ready to be interpreted."""
        return InterpretedKernel(source, self.memory, int(self.facts["sm"]))

    def upload(self, array: Array) -> DeviceTensor:
        """Return a new tensor that holds ``array``."""
        tensor = DeviceTensor(self.memory.allocate(array.nbytes), array.shape, dtype_name(array.dtype))
        self.memory.bytes_at(tensor.pointer, tensor.nbytes)[:] = (
            np.ascontiguousarray(array).view(np.uint8).reshape(-1)
        )
        return tensor

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> DeviceTensor:
        """Return a new tensor full of poison."""
        tensor = DeviceTensor(
            self.memory.allocate(int(np.prod(shape)) * dtype.itemsize), shape, dtype_name(dtype)
        )
        self.memory.bytes_at(tensor.pointer, tensor.nbytes)[:] = POISON
        return tensor

    def download(self, tensor: DeviceTensor) -> Array:
        """Return a copy of ``tensor``."""
        return (
            self.memory.bytes_at(tensor.pointer, tensor.nbytes)
            .copy()
            .view(tensor.numpy_dtype)
            .reshape(tensor.shape)
        )


class InterpretedKernel:
    """A kernel with the launch interface of the ``cuda`` device's."""

    registers = 0

    def __init__(self, source: KernelSource, memory: Memory, sm: int = 80) -> None:
        self._ptx = _compile_ptx(source, sm)
        self._name, self._memory = source.name, memory

    def launch(self, stream: Any, grid: Any, block: Any, *args: Any, shared_bytes: int = 0) -> None:
        """Run the kernel to its end."""
        values = [a.pointer if isinstance(a, DeviceTensor) else 0 if a is None else a for a in args]
        PtxKernel(self._ptx, self._name, self._memory).launch(
            _three(grid), _three(block), values, shared_bytes
        )


def run_tactic(
    device: PtxDevice, tactic: Tactic, signature: OpSignature, inputs: Sequence[Array | None]
) -> list[Array | None]:
    """Prepare and run ``tactic`` through the code that runs on a GPU, and return its outputs."""
    reason = tactic.decline(signature, device)  # type: ignore[arg-type]  # has what tactics use of a device
    assert reason is None, reason
    device.memory.release()
    tensors = [None if a is None else device.upload(a) for a in inputs]
    outputs = [None if t is None else device.empty(t.dims, t.numpy_dtype) for t in signature.outputs]
    nbytes = tactic.workspace(signature, device)  # type: ignore[arg-type]  # as above
    workspace = device.empty((nbytes,), np.dtype(np.uint8)) if nbytes else None
    tactic.prepare(signature, device)(tensors, outputs, workspace, None)  # type: ignore[arg-type]  # as above
    for array, tensor in zip(inputs, tensors, strict=True):
        if array is not None and tensor is not None:
            assert device.download(tensor).tobytes() == np.ascontiguousarray(array).tobytes(), (
                "an input was changed"
            )
    return [None if o is None else device.download(o) for o in outputs]


def _three(extent: Any) -> tuple[int, int, int]:
    x, y, z = (*((extent,) if isinstance(extent, int) else extent), 1, 1)[:3]
    return x, y, z


def _compile_ptx(source: KernelSource, sm: int) -> str:
    from cuda.bindings import nvrtc

    options = [f"--gpu-architecture=compute_{sm}{SUFFIXES[sm]}".encode(), b"-std=c++17"]
    options += [f"-D{name}={value}".encode() for name, value in source.defines]
    _, program = nvrtc.nvrtcCreateProgram(source.text.encode(), b"kernel.cu", 0, [], [])
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    if int(status) != 0:
        _, size = nvrtc.nvrtcGetProgramLogSize(program)
        log = b" " * size
        nvrtc.nvrtcGetProgramLog(program, log)
        raise TacticError(f"kernel '{source.name}' does not compile:\n{log.decode()}")
    _, size = nvrtc.nvrtcGetPTXSize(program)
    text = b" " * size
    nvrtc.nvrtcGetPTX(program, text)
    nvrtc.nvrtcDestroyProgram(program)
    return text.rstrip(b"\0 ").decode()
