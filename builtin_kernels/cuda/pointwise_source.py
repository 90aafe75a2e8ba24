"""Pointwise programs as CUDA C++: loads chosen by how each input is broadcast, offsets baked in."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tactician.builtin_kernels.cuda.compiler import KernelSource, read_source
from tactician.builtin_kernels.cuda.indexing import (
    broadcast_strides,
    ceil_div,
    collapse,
    index_type,
    offset_expression,
)
from tactician.builtin_kernels.cuda.pointwise_ops import C_TYPES, COMPUTE_TYPES, HALF_TYPES, QUARTER_TYPES
from tactician.builtin_kernels.cuda.pointwise_program import Load, PointwiseProgram


@dataclass(frozen=True)
class PointwiseKernel:
    """Source text and launch geometry of a program for one choice of vector width, block and unrolling."""

    program: PointwiseProgram
    vector: int
    threads: int
    unroll: int

    @property
    def count(self) -> int:
        """Number of elements of an output."""
        return math.prod(self.program.shape)

    @property
    def grid(self) -> int:
        """Number of blocks; 0 where there is nothing to do."""
        vectors = ceil_div(self.count, self.vector)
        return ceil_div(vectors, self.threads * self.unroll)

    @property
    def inputs(self) -> tuple[int, ...]:
        """The inputs that are the kernel's first parameters, in order; the outputs follow."""
        return tuple(load.input for load in self.program.loads)

    def source(self) -> KernelSource:
        """Return the complete kernel."""
        text = "\n".join([read_source("common.cuh", "pointwise.cu"), self._compute(), self._kernel()])
        return KernelSource(text, "pointwise")

    @property
    def _index(self) -> str:
        sizes = [math.prod(load.shape) for load in self.program.loads]
        # the rounded-up numbers of the last block have to fit as well
        return index_type(self.grid * self.threads * self.unroll * self.vector, *sizes)

    def _compute(self) -> str:
        """Return the function that computes one element."""
        loads, outputs = self.program.loads, self.program.outputs
        parameters = [f"{_memory(load.dtype)} m{k}" for k, load in enumerate(loads)]
        parameters += [f"{_memory(dtype)}& y{k}" for k, (dtype, _) in enumerate(outputs)]
        body = [
            f"const {COMPUTE_TYPES[load.dtype]} x{k} = {_read(load.dtype, f'm{k}')};"
            for k, load in enumerate(loads)
        ]
        for e in self.program.expressions:
            compute = COMPUTE_TYPES[e.dtype]
            body.append(f"const {compute} {e.name} = ({compute})({e.code});")
        body += [f"y{k} = {_write(dtype, code)};" for k, (dtype, code) in enumerate(outputs)]
        lines = "\n    ".join(body)
        return f"__device__ __forceinline__ void compute({', '.join(parameters)}) {{\n    {lines}\n}}\n"

    def _kernel(self) -> str:
        loads, outputs, index = self.program.loads, self.program.outputs, self._index
        parameters = [f"const {_memory(x.dtype)}* __restrict__ p{k}" for k, x in enumerate(loads)]
        parameters += [f"{_memory(dtype)}* __restrict__ q{k}" for k, (dtype, _) in enumerate(outputs)]
        declare = [
            f"Pack<{_memory(x.dtype)}, {self.vector}> a{k}[{self.unroll}];" for k, x in enumerate(loads)
        ]
        fetch = [self._fetch(k, load) for k, load in enumerate(loads)]
        elements = [f"a{k}[u].at[e]" for k in range(len(loads))] + [
            f"b{k}.at[e]" for k in range(len(outputs))
        ]
        results = [f"Pack<{_memory(dtype)}, {self.vector}> b{k};" for k, (dtype, _) in enumerate(outputs)]
        stores = [
            f"*(Pack<{_memory(dtype)}, {self.vector}>*)(q{k} + first * {self.vector}u) = b{k};"
            for k, (dtype, _) in enumerate(outputs)
        ]
        return f"""
extern "C" __global__ void __launch_bounds__({self.threads}) pointwise({", ".join(parameters)}) {{
    await_predecessors();
    const {index} start = ({index})blockIdx.x * {self.threads * self.unroll}u + threadIdx.x;
    {_lines(declare, 4)}
    #pragma unroll
    for (u32 u = 0; u < {self.unroll}u; u++) {{
        const {index} first = start + u * {self.threads}u;
        if (first < {self.count // self.vector}u) {{
            {_lines(fetch, 12)}
        }}
    }}
    #pragma unroll
    for (u32 u = 0; u < {self.unroll}u; u++) {{
        const {index} first = start + u * {self.threads}u;
        if (first < {self.count // self.vector}u) {{
            {_lines(results, 12)}
            #pragma unroll
            for (u32 e = 0; e < {self.vector}u; e++) compute({", ".join(elements)});
            {_lines(stores, 12)}
        }}
    }}
{self._tail()}}}
"""

    def _fetch(self, k: int, load: Load) -> str:
        """Return the statement that fills vector ``a<k>[u]``, which starts at element ``first * vector``."""
        shape, memory, n = self.program.shape, _memory(load.dtype), self.vector
        strides = broadcast_strides(load.shape, shape)
        extents, (walk,) = collapse(shape, strides)
        offset = offset_expression(f"(first * {n}u)", shape, strides, self._index)
        together = extents[-1] % n == 0 or len(extents) == 1
        if together and walk[-1] == 0:
            return f"a{k}[u] = Pack<{memory}, {n}>::filled(p{k}[{offset}]);"
        if together and walk[-1] == 1 and all(s % n == 0 for s in walk[:-1]):
            return f"a{k}[u] = *(const Pack<{memory}, {n}>*)(p{k} + ({offset}));"
        offset = offset_expression(f"(first * {n}u + e)", shape, strides, self._index)
        # without the pragma the vector would lie in local memory
        return f'_Pragma("unroll") for (u32 e = 0; e < {n}u; e++) a{k}[u].at[e] = p{k}[{offset}];'

    def _tail(self) -> str:
        """Return the statements for what is left after the last whole vector: one thread for each element."""
        rest = self.count % self.vector
        if not rest:
            return ""
        program, shape = self.program, self.program.shape
        reads = [
            f"p{k}[{offset_expression('i', shape, broadcast_strides(load.shape, shape), self._index)}]"
            for k, load in enumerate(program.loads)
        ]
        writes = [f"q{k}[i]" for k in range(len(program.outputs))]
        return f"""    if (blockIdx.x == 0 && threadIdx.x < {rest}u) {{
        const {self._index} i = {self.count - rest}u + threadIdx.x;
        compute({", ".join(reads + writes)});
    }}
"""


def _lines(statements: list[str], indent: int) -> str:
    return ("\n" + " " * indent).join(statements)


def _memory(dtype: str) -> str:
    return C_TYPES[dtype]


def _read(dtype: str, code: str) -> str:
    if dtype in HALF_TYPES or dtype in QUARTER_TYPES:
        return f"to_float({code})"
    return f"{code} != 0" if dtype == "bool" else code


def _write(dtype: str, code: str) -> str:
    return f"narrow<{C_TYPES[dtype]}>({code})" if dtype in HALF_TYPES else f"({C_TYPES[dtype]})({code})"
