"""Root-mean-square normalisation as one operator: what it means, where models have it, and three ways to run it.

    y[r, c] = x[r, c] / sqrt(epsilon + sum over k of x[r, k]² / columns) * scale[c]

Exporters write it as six or seven operators, each of which reads and writes whole tensors. A rewrite rule finds these in
the network and puts ``rms_norm::RmsNorm`` in their place; then tactics compete for it as for any operator. Products and
sums that follow it (a gate, the modulation of a diffusion transformer, a residual) two of the tactics take in as well, so
that the operator is no fence for fusion.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from tactician import (
    Device,
    FusedForm,
    KernelSource,
    Launch,
    Op,
    OpSignature,
    RewriteRule,
    Tactic,
    TensorType,
    hookimpl,
)

TACTICIAN_DOMAINS = ("rms_norm",)
"""The operator's domain, also where this file is named and the plugin is called after it."""
DTYPES = ("float32", "float16")
DEFAULT_EPSILON = 1e-5
FLOAT, FLOAT16 = 1, 10
"""ONNX's numbers of the two types, as Cast has them."""


def infer(signature: OpSignature) -> list[TensorType]:
    """Return the type of ``y``: that of ``x``; ``scale`` has one element for each column.

    Raises
    ------
    ValueError
        If the inputs don't fit together.
    """
    x, scale = signature.input(0), signature.input(1)
    if x is None or scale is None or not x.shape or scale.shape is None:
        raise ValueError("it needs x of rank 1 or more, and scale")
    if x.dtype not in DTYPES or scale.dtype != x.dtype:
        raise ValueError(f"x and scale are of one type, {' or '.join(DTYPES)}")
    if scale.rank != 1 or scale.shape[0] != x.shape[-1] or scale.shape[0] is None:
        raise ValueError("scale is a vector with one element for each column of x")
    return [x]


def reference(signature: OpSignature, x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return ``y``; half precision is computed in single precision and rounded once."""
    kind = np.promote_types(x.dtype, np.float32)
    wide = x.astype(kind)
    mean = np.mean(wide * wide, axis=-1, keepdims=True)
    return (wide / np.sqrt(mean + kind.type(epsilon_of(signature))) * scale).astype(x.dtype)


def epsilon_of(signature: OpSignature) -> float:
    """Return what is added to the mean."""
    return float(signature.attribute("epsilon", DEFAULT_EPSILON))


RMS_NORM = Op("rms_norm::RmsNorm", infer, reference)


def pattern(op: Any, x: Any, scale: Any, epsilon: Any, axes: Any) -> Any:
    """Return what exporters write for it; half-precision models do all but the last product in single precision."""
    wide = op.either(x, op.Cast(x, to=FLOAT))
    square = op.either(op.Pow(wide, 2.0), op.Mul(wide, wide))
    mean = op.either(op.ReduceMean(square, axes), op.ReduceMean(square, axes=axes))
    root = op.Sqrt(op.Add(mean, epsilon))
    normal = op.either(op.Div(wide, root), op.Mul(wide, op.Reciprocal(root)), op.Mul(wide, op.Div(1.0, root)))
    narrow = op.either(normal, op.Cast(normal, to=FLOAT16))
    return op.Mul(narrow, scale)


def decline(match: Any) -> str | None:
    """Return why a subgraph of that form is no normalisation of rows; what ``infer`` refuses need not be said here."""
    x, axes, epsilon = match.type("x"), match.constant("axes"), match.number("epsilon")
    if x is None or not x.shape:
        return "the rank of x is not known"
    if axes is None or axes.reshape(-1).tolist() not in ([-1], [len(x.shape) - 1]):
        return "the mean is not over the last axis alone"
    if epsilon is None or not 0 <= epsilon < math.inf:
        return "epsilon is not one constant number of 0 or more"
    return None


def replacement(op: Any, match: Any) -> Any:
    """Return the one node."""
    return op.RmsNorm(match["x"], match["scale"], _domain="rms_norm", epsilon=match.number("epsilon"))


FUSE = RewriteRule("fuse_rms_norm", pattern, replacement, decline)


WITH_STEPS = FusedForm(RMS_NORM.name, epilogue=("ai.onnx::Mul", "ai.onnx::Add"), longest=4)


@dataclass(frozen=True)
class Step:
    """What becomes of the norm next: ``multiply`` says whether it is multiplied with, or added to, an input.

    That input is a tensor like x or, if ``is_row``, one row, which is for all of them.
    """

    multiply: bool
    input: int
    is_row: bool


def steps_of(signature: OpSignature) -> list[Step] | str:
    """Return what follows the norm in a fused node, or why no tactic here can do it; nothing follows a norm alone."""
    if signature.parts and signature.parts[0].inputs != (0, 1):
        return "x and scale are one tensor"
    steps = []
    for part in signature.parts[1:]:
        operands = [place for place in part.inputs if place is not None and place >= 0]
        if len(operands) != 1:
            return f"{part.signature} does not take the norm and one tensor"
        operand, x = signature.inputs[operands[0]], signature.inputs[0]
        is_row = operand.dims[-1:] == x.dims[-1:] and operand.size == x.dims[-1]
        if operand.dims != x.dims and not is_row:
            return f"{operand} is neither like {x} nor one row of it"
        steps.append(Step(part.signature.op_type == "Mul", operands[0], is_row))
    return steps


@dataclass(frozen=True)
class WholeTensor(Tactic):
    """One NumPy call for each step, over all rows at once: the fewest calls."""

    op: ClassVar[str] = RMS_NORM.name
    target: ClassVar[str] = "cpu"
    fused_forms: ClassVar[tuple[FusedForm, ...]] = (WITH_STEPS,)

    def decline(self, signature: OpSignature, device: Device) -> str | None:
        return decline_call(signature.anchor) or decline_steps(signature)

    def prepare(self, signature: OpSignature, device: Device) -> Launch:
        epsilon = np.float32(epsilon_of(signature.anchor))
        steps = [(np.multiply if step.multiply else np.add, step.input) for step in steps_of(signature)]

        def launch(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any) -> None:
            x, scale = (a.astype(np.float32, copy=False) for a in inputs[:2])
            mean = np.mean(np.square(x), axis=-1, keepdims=True)
            normal = x / np.sqrt(mean + epsilon)
            np.multiply(normal, scale, out=normal)
            for combine, operand in steps:
                combine(normal, inputs[operand], out=normal)
            np.copyto(outputs[0], normal, casting="same_kind")

        return launch


@dataclass(frozen=True)
class RowBlocks(Tactic):
    """``rows`` rows at a time, so that a row is still in the cache when it is read again.

    The sum of squares is a product of each row with itself (einsum), with no tensor of squares in between; x is read
    from memory once, and y written once.
    """

    op: ClassVar[str] = RMS_NORM.name
    target: ClassVar[str] = "cpu"

    rows: int = 16

    @classmethod
    def candidates(cls, signature: OpSignature, device: Device) -> Iterable[Self]:
        return (cls(rows) for rows in (16, 4, 64, 256))

    def decline(self, signature: OpSignature, device: Device) -> str | None:
        reason = decline_call(signature)
        if reason is None and self.rows > max(rows_and_columns(signature)[0], 4):
            return f"there are {rows_and_columns(signature)[0]} rows, fewer than one block of {self.rows}"
        return reason

    def workspace(self, signature: OpSignature, device: Device) -> int:
        """Return the bytes of the factors of a block's rows and, for half precision, of the block in float32."""
        columns = rows_and_columns(signature)[1]
        return 4 * self.rows * (1 + (columns if signature.inputs[0].dtype == "float16" else 0))

    def prepare(self, signature: OpSignature, device: Device) -> Launch:
        count, columns = rows_and_columns(signature)
        epsilon, block, half = epsilon_of(signature), self.rows, signature.inputs[0].dtype == "float16"

        def launch(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any) -> None:
            x, y = inputs[0].reshape(count, columns), outputs[0].reshape(count, columns)
            scale, scratch = inputs[1].astype(np.float32, copy=False), workspace.view(np.float32)
            wide = scratch[block:].reshape(block, columns) if half else None
            for start in range(0, count, block):
                part, result = x[start : start + block], y[start : start + block]
                if wide is not None:
                    np.copyto(wide[: len(part)], part)
                    part = wide[: len(part)]
                normalise(part, scale, epsilon, scratch[: len(part)], result)

        return launch


def normalise(x: np.ndarray, scale: np.ndarray, epsilon: float, factors: np.ndarray, y: np.ndarray) -> None:
    """Write the normalised rows of ``x`` to ``y``.

    Parameters
    ----------
    x, y
        float32[rows, columns]; ``y`` may be float16.
    scale
        float32[columns].
    factors
        float32[rows], scratch: 1 / sqrt(mean + epsilon) of each row.
    """
    np.einsum("rc,rc->r", x, x, out=factors)
    np.multiply(factors, np.float32(1 / x.shape[1]), out=factors)
    np.add(factors, np.float32(epsilon), out=factors)
    np.divide(np.float32(1), np.sqrt(factors, out=factors), out=factors)
    wide = y if y.dtype == x.dtype else x  # the block of x is a copy where y is narrower
    np.multiply(x, factors[:, None], out=wide)
    np.multiply(wide, scale, out=y, casting="same_kind")


@dataclass(frozen=True)
class BlockPerRow(Tactic):
    """One thread block of ``threads`` threads for each row, loads and stores of ``vector`` elements."""

    op: ClassVar[str] = RMS_NORM.name
    target: ClassVar[str] = "cuda"
    fused_forms: ClassVar[tuple[FusedForm, ...]] = (WITH_STEPS,)

    threads: int = 256
    vector: int = 4

    @classmethod
    def candidates(cls, signature: OpSignature, device: Device) -> Iterable[Self]:
        widest = 8 if signature.inputs[0].dtype == "float16" else 4  # 16 bytes
        return (cls(threads, vector) for vector in (widest, widest // 4, 1) for threads in (256, 128, 1024))

    def decline(self, signature: OpSignature, device: Device) -> str | None:
        reason = decline_call(signature.anchor) or decline_steps(signature)
        if reason is None:
            rows, columns = rows_and_columns(signature)
            if columns % self.vector:
                return f"rows of {columns} elements are no whole number of vectors of {self.vector}"
            if rows >= 1 << 31:
                return f"{rows} rows are more than a grid has blocks"
        return reason

    def prepare(self, signature: OpSignature, device: Device) -> Launch:
        rows, columns = rows_and_columns(signature)
        defines = {
            "THREADS": self.threads,
            "VECTOR": self.vector,
            "HALF": int(signature.inputs[0].dtype == "float16"),
        }
        steps = steps_of(signature)
        for number, step in enumerate(steps):
            # the steps that there are become part of the source; an operand that is one row starts anew in each
            defines[f"STEP_{number}"] = "value * operand" if step.multiply else "value + operand"
            defines[f"ROW_{number}"] = 0 if step.is_row else "blockIdx.x"
        # compile() is the cuda device's own method: this tactic's target is "cuda", so it is there
        kernel = device.compile(KernelSource(BLOCK_PER_ROW, "rms_norm", tuple(defines.items())))
        epsilon, unused = np.float32(epsilon_of(signature.anchor)), 3 - len(steps)

        def launch(inputs: Sequence[Any], outputs: Sequence[Any], workspace: Any, stream: Any) -> None:
            operands = [inputs[step.input] for step in steps] + [inputs[1]] * unused
            kernel.launch(
                stream, rows, self.threads, *inputs[:2], outputs[0], np.int64(columns), epsilon, *operands
            )

        return launch


def rows_and_columns(signature: OpSignature) -> tuple[int, int]:
    """Return how many rows ``x`` has, and their length."""
    x = signature.inputs[0]
    return x.size // x.dims[-1], x.dims[-1]


def decline_call(signature: OpSignature) -> str | None:
    """Return why none of these tactics runs ``signature``, or None."""
    x, scale = signature.input(0), signature.input(1)
    if x is None or scale is None or not signature.is_static:
        return "needs static shapes"
    if x.dtype not in DTYPES or scale.dtype != x.dtype:
        return f"float32 or float16 only, not {x.dtype} with {scale.dtype}"
    if x.rank == 0 or scale.dims != x.dims[-1:]:
        return f"scale {scale} has not one element for each column of {x}"
    return None if x.size else "nothing to normalise"


def decline_steps(signature: OpSignature) -> str | None:
    """Return why none of these tactics does what follows the norm, or None."""
    steps = steps_of(signature)
    return steps if isinstance(steps, str) else None


BLOCK_PER_ROW = r"""
// y[r, c] = steps(x[r, c] * f[r] * scale[c]),   f[r] = 1 / sqrt(epsilon + sum over c of x[r, c]^2 / columns)
//
//   steps: up to three products with, or sums of, T[rows, columns] or one row T[columns]; none without STEP_0
//   x, y : T[rows, columns], row-major; scale : T[columns]; T is float, or half precision if HALF; 16-byte aligned
//   moves (2 * rows + 1) * columns * sizeof(T) bytes, and reads a row again from the cache
//   block r has row r; its THREADS threads take vectors of VECTOR elements in turn        arithmetic is in float
//   set by the tactic: THREADS (a multiple of 32), VECTOR (divides columns), HALF, and for step s STEP_s, an expression
//   of value and operand, and ROW_s, the row of its operand

#if HALF
typedef unsigned short T;  // the bits of a half: no header is needed
__device__ __forceinline__ float widen(T bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}
__device__ __forceinline__ T narrow(float value) {
    T bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
#else
typedef float T;
__device__ __forceinline__ float widen(T value) { return value; }
__device__ __forceinline__ T narrow(float value) { return value; }
#endif

struct __align__(sizeof(T) * VECTOR) Vector {
    T at[VECTOR];
};

#define APPLY(s)                                                                       \
    {                                                                                  \
        const Vector step = ((const Vector*)(operands_##s + ROW_##s * columns))[v];    \
        for (int i = 0; i < VECTOR; ++i) {                                             \
            const float value = values[i], operand = widen(step.at[i]);                \
            values[i] = STEP_##s;                                                      \
        }                                                                              \
    }

__device__ __forceinline__ float warp_sum(float sum) {
    #pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, distance);
    return sum;
}

extern "C" __global__ void __launch_bounds__(THREADS)
rms_norm(
    const T* __restrict__ x, const T* __restrict__ scale, T* __restrict__ y, long long columns, float epsilon,
    const T* __restrict__ operands_0, const T* __restrict__ operands_1, const T* __restrict__ operands_2
) {
    __shared__ float warp_sums[THREADS / 32];
    const long long vectors = columns / VECTOR;
    const Vector* row = (const Vector*)(x + blockIdx.x * columns);
    const Vector* scales = (const Vector*)scale;
    Vector* result = (Vector*)(y + blockIdx.x * columns);

    // 1. each thread sums the squares of its vectors
    float sum = 0.0f;
    for (long long v = threadIdx.x; v < vectors; v += THREADS) {
        const Vector part = row[v];
        #pragma unroll
        for (int i = 0; i < VECTOR; ++i) sum += widen(part.at[i]) * widen(part.at[i]);
    }
    // 2. the sum of the block: within the warps, then every thread adds up the warps' sums in the same order
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = sum;
    __syncthreads();
    float total = 0.0f;
    #pragma unroll
    for (int warp = 0; warp < THREADS / 32; ++warp) total += warp_sums[warp];
    const float factor = 1.0f / sqrtf(total / (float)columns + epsilon);
    // 3. the row again, from the cache
    for (long long v = threadIdx.x; v < vectors; v += THREADS) {
        const Vector part = row[v], factors = scales[v];
        float values[VECTOR];
        #pragma unroll
        for (int i = 0; i < VECTOR; ++i) values[i] = widen(part.at[i]) * factor * widen(factors.at[i]);
#ifdef STEP_0
        APPLY(0)
#endif
#ifdef STEP_1
        APPLY(1)
#endif
#ifdef STEP_2
        APPLY(2)
#endif
        Vector out;
        #pragma unroll
        for (int i = 0; i < VECTOR; ++i) out.at[i] = narrow(values[i]);
        result[v] = out;
    }
}
"""


@hookimpl
def ops() -> list[Op]:
    return [RMS_NORM]


@hookimpl
def passes() -> list[RewriteRule]:
    return [FUSE]


@hookimpl
def tactics() -> list[type[Tactic]]:
    return [WholeTensor, RowBlocks, BlockPerRow]
