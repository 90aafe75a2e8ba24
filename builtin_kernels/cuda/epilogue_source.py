"""Epilogues as CUDA C++: what a kernel reads for a few neighbouring results, and what it makes of their sums."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from tactician.builtin_kernels.cuda.epilogue import FusedCall
from tactician.builtin_kernels.cuda.indexing import broadcast_strides, collapse, index_type, offset_expression
from tactician.builtin_kernels.cuda.pointwise_ops import C_TYPES, COMPUTE_TYPES, HALF_TYPES, QUARTER_TYPES
from tactician.builtin_kernels.cuda.pointwise_program import Load, PointwiseProgram

_STAGED = ("float32", *HALF_TYPES)
"""Types of vectors that are kept in shared memory as float32."""


@dataclass(frozen=True)
class Epilogue:
    """What a kernel does to its results, [..., N] in rows of N, the last ``rows`` of which make one matrix.

    Parameters
    ----------
    call
        The node.
    rows
        Of a matrix; where every row is read alike in all of a matrix, what is read is one vector of it.
    """

    call: FusedCall | None
    rows: int

    @property
    def vectors(self) -> int:
        """The vectors of a tile's columns that a kernel keeps in shared memory."""
        return sum(self._is_vector(load) for _, load in self._loads())

    @property
    def headers(self) -> tuple[str, ...]:
        """The files that ``text`` needs before it, and before any macros."""
        return ("epilogue.cuh",) if self._program is None else ("pointwise.cu", "epilogue.cuh")

    def text(self) -> str:
        """Return ``Epilogue`` with all that ``wgmma_tiles.cuh`` asks of it, and the macros of a kernel's parameters.

        ``Operands<W>`` is what ``fetch`` reads for W neighbouring columns of a row, but for ``VECTORS`` vectors of columns,
        which ``vector`` gives by their numbers; ``finish`` makes a result of a sum, the operands and the vectors' values.
        ``finish_at`` is for kernels that go by elements: it reads what it needs for one.
        """
        loads = list(self._loads())
        pointers = [f"const {C_TYPES[load.dtype]}* p{k};" for k, load in loads]
        parameters = "".join(f", const {C_TYPES[load.dtype]}* __restrict__ p{k}" for k, load in loads)
        arguments = ", ".join(f"p{k}" for k, _ in loads)
        reads = [(k, load) for k, load in loads if not self._is_vector(load)]
        vectors = [(k, load) for k, load in loads if self._is_vector(load)]
        held = [f"Pack<{C_TYPES[load.dtype]}, W> m{k};" for k, load in reads]
        fetch = [f"to.m{k} = {self._read(k, load)};" for k, load in reads]
        kept = [
            f"if (number == {i}u) return to_float(p{k}[{self._vector_offset(load)} + column]);"
            for i, (k, load) in enumerate(vectors)
        ]
        return f"""
#define EPILOGUE_PARAMETERS {parameters}
#define EPILOGUE_ARGUMENTS {arguments}
template <u32 W> struct Operands {{
    {_lines(held)}
}};
struct Epilogue {{
    static constexpr bool EMPTY = {str(self._program is None).lower()};
    static constexpr u32 VECTORS = {len(vectors)}u, READS = {len(reads)}u;
    {_lines(pointers)}
    template <u32 W> __device__ __forceinline__ void fetch(Operands<W>& to, {self._index} row, u32 column) const {{
        {_lines(fetch, 8)}
    }}
    __device__ __forceinline__ float vector(u32 number, u32 matrix, u32 column) const {{
        {_lines(kept, 8)}
        return 0;
    }}
    template <u32 W> __device__ __forceinline__ float finish(float sum, const Operands<W>& of, u32 e, const float* vectors) const {{
        {_lines(self._compute(reads, vectors), 8)}
    }}
    template <typename A> __device__ __forceinline__ A finish_at(A sum, {self._index} at) const {{
        {_lines(self._compute_at(), 8)}
    }}
}};
"""

    @property
    def _index(self) -> str:
        sizes = [math.prod(load.shape) for _, load in self._loads()]
        return index_type(math.prod(self._shape), *sizes)

    @property
    def _shape(self) -> tuple[int, ...]:
        return self._program.shape if self._program is not None else (1, 1)

    @property
    def _program(self) -> PointwiseProgram | None:
        return None if self.call is None else self.call.program

    @property
    def _anchor_load(self) -> int | None:
        return None if self.call is None else self.call.anchor_load

    def _loads(self) -> Iterator[tuple[int, Load]]:
        loads = self._program.loads if self._program is not None else ()
        return ((k, load) for k, load in enumerate(loads) if k != self._anchor_load)

    def _is_vector(self, load: Load) -> bool:
        """Return whether a load is of one vector of columns for all rows of a matrix."""
        strides = broadcast_strides(load.shape, self._shape)
        if load.dtype not in _STAGED or not strides or strides[-1] != 1:
            return False
        extents, (walk,) = collapse(self._shape[:-1], strides[:-1])
        return not any(walk) or (walk[-1] == 0 and extents[-1] % self.rows == 0) or extents == (1,)

    def _vector_offset(self, load: Load) -> str:
        strides = broadcast_strides(load.shape, self._shape)
        return offset_expression(f"(matrix * {self.rows}u)", self._shape[:-1], strides[:-1], "u64")

    def _read(self, k: int, load: Load) -> str:
        """Return what reads W values, for a row and a column, which is a multiple of W."""
        pack = f"Pack<{C_TYPES[load.dtype]}, W>"
        strides = broadcast_strides(load.shape, self._shape)
        offset = offset_expression("row", self._shape[:-1], strides[:-1], self._index)
        if not strides or strides[-1] == 0:
            return f"{pack}::filled(p{k}[{offset}])"
        return f"read_once<{pack}>(p{k} + ({offset} + column))"

    def _compute(self, reads: list[tuple[int, Load]], vectors: list[tuple[int, Load]]) -> list[str]:
        body = [
            f"const {COMPUTE_TYPES[x.dtype]} x{k} = {_value(x.dtype, f'of.m{k}.at[e]')};" for k, x in reads
        ]
        body += [f"const float x{k} = vectors[{i}];" for i, (k, _) in enumerate(vectors)]
        return [*body, *self._result()]

    def _compute_at(self) -> list[str]:
        """Return the statements that make a result of ``sum``, which is element ``at`` of the anchor's result."""
        body = []
        for k, load in self._loads():
            strides = broadcast_strides(load.shape, self._shape)
            read = f"p{k}[{offset_expression('at', self._shape, strides, self._index)}]"
            body.append(f"const {COMPUTE_TYPES[load.dtype]} x{k} = {_value(load.dtype, read)};")
        return [*body, *self._result()]

    def _result(self) -> list[str]:
        program = self._program
        if program is None:
            return ["return sum;"]
        body = [] if self._anchor_load is None else [f"const float x{self._anchor_load} = sum;"]
        for e in program.expressions:
            compute = COMPUTE_TYPES[e.dtype]
            body.append(f"const {compute} {e.name} = ({compute})({e.code});")
        return [*body, f"return (float)({program.outputs[0][1]});"]


def _value(dtype: str, code: str) -> str:
    if dtype in (*HALF_TYPES, *QUARTER_TYPES):
        return f"to_float({code})"
    return f"{code} != 0" if dtype == "bool" else code


def _lines(statements: list[str], indent: int = 4) -> str:
    return ("\n" + " " * indent).join(statements)
