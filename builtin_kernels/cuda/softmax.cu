// y[i, j] = exp(x[i, j] - m[i]) / sum_j exp(x[i, j] - m[i]),   m[i] = max_j x[i, j]
// or, with LOG,  y[i, j] = x[i, j] - m[i] - log sum_j exp(x[i, j] - m[i])
//
//   x, y : T[OUTER, LENGTH, INNER], row-major, 16-byte aligned     moves 2 * OUTER * LENGTH * INNER * sizeof(T) bytes
//
// softmax_rows, for INNER = 1: GROUP threads share a row and take vectors of VECTOR elements in turn. HELD rows stay
// in registers between the passes; longer ones are read twice, with a running maximum and sum.
// softmax_columns: lane l of a warp has column 32 * block + l; the SLICES warps of a block share the columns' rows.
// Arithmetic is in A, float or double.

struct Running { A maximum, sum; };  // of exp(x - maximum)

__device__ __forceinline__ Running merge(Running a, Running b) {
    const A m = maximum(a.maximum, b.maximum);
    // nothing seen on one side: its sum is 0, and the difference of two infinities must not come in
    const A left = a.maximum == m ? a.sum : a.sum * EXP(a.maximum - m);
    const A right = b.maximum == m ? b.sum : b.sum * EXP(b.maximum - m);
    return {m, left + right};
}
__device__ __forceinline__ Running include(Running a, A x) {
    if (x <= a.maximum) return {a.maximum, a.sum + (x == -INFINITE ? 0 : EXP(x - a.maximum))};
    return {x, (a.sum == 0 ? 0 : a.sum * EXP(a.maximum - x)) + EXP(x - x)};
}
__device__ __forceinline__ A result(A x, A m, A log_or_inverse) {
    return LOG ? x - m - log_or_inverse : EXP(x - m) * log_or_inverse;
}
__device__ __forceinline__ A log_or_inverse(A sum) { return LOG ? LOGARITHM(sum) : 1 / sum; }

#ifdef ROWS_KERNEL
extern "C" __global__ void __launch_bounds__(THREADS) softmax_rows(const T* __restrict__ x, T* __restrict__ y) {
    await_predecessors();
    typedef Pack<T, VECTOR> Vector;
    constexpr u32 VECTORS = LENGTH / VECTOR;
    __shared__ A scratch[THREADS / 32];
    const u64 row = (u64)blockIdx.x * (THREADS / GROUP) + threadIdx.x / GROUP;
    const u32 lane = threadIdx.x % GROUP;
    const bool present = row < OUTER;  // threads without a row still take part in the reductions
    const Vector* from = (const Vector*)(x + row * LENGTH);
    Vector* to = (Vector*)(y + row * LENGTH);
#if HELD > 0
    // 1. the row into registers
    Vector held[HELD];
#pragma unroll
    for (u32 k = 0; k < HELD; k++)
        if (present && k * GROUP + lane < VECTORS) held[k] = from[k * GROUP + lane];
    // 2. its maximum
    A m = -INFINITE;
#pragma unroll
    for (u32 k = 0; k < HELD; k++)
        if (present && k * GROUP + lane < VECTORS)
#pragma unroll
            for (u32 e = 0; e < VECTOR; e++) m = maximum(m, widen(held[k].at[e]));
    m = group_reduce<GROUP, THREADS>(m, Maximum(), scratch);
    // 3. the sum of its exponentials
    A sum = 0;
#pragma unroll
    for (u32 k = 0; k < HELD; k++)
        if (present && k * GROUP + lane < VECTORS)
#pragma unroll
            for (u32 e = 0; e < VECTOR; e++) sum += EXP(widen(held[k].at[e]) - m);
    sum = group_reduce<GROUP, THREADS>(sum, Add(), scratch);
    const A last = log_or_inverse(sum);
    // 4. the results
#pragma unroll
    for (u32 k = 0; k < HELD; k++)
        if (present && k * GROUP + lane < VECTORS) {
            Vector out;
#pragma unroll
            for (u32 e = 0; e < VECTOR; e++) out.at[e] = Narrow<T>::from(result(widen(held[k].at[e]), m, last));
            to[k * GROUP + lane] = out;
        }
#else
    Running own = {-INFINITE, 0};
    for (u32 v = lane; present && v < VECTORS; v += GROUP) {
        const Vector part = from[v];
#pragma unroll
        for (u32 e = 0; e < VECTOR; e++) own = include(own, widen(part.at[e]));
    }
    const A m = group_reduce<GROUP, THREADS>(own.maximum, Maximum(), scratch);
    const A share = own.maximum == m ? own.sum : own.sum * EXP(own.maximum - m);
    const A last = log_or_inverse(group_reduce<GROUP, THREADS>(share, Add(), scratch));
    for (u32 v = lane; present && v < VECTORS; v += GROUP) {
        const Vector part = from[v];
        Vector out;
#pragma unroll
        for (u32 e = 0; e < VECTOR; e++) out.at[e] = Narrow<T>::from(result(widen(part.at[e]), m, last));
        to[v] = out;
    }
#endif
}
#else
extern "C" __global__ void __launch_bounds__(32 * SLICES) softmax_columns(const T* __restrict__ x, T* __restrict__ y) {
    await_predecessors();
    __shared__ Running partial[SLICES][32];
    const u32 lane = threadIdx.x % 32, slice = threadIdx.x / 32;
    const u64 column = (u64)blockIdx.x * 32 + lane;
    const bool present = column < OUTER * INNER;
    const u64 start = column / INNER * (LENGTH * INNER) + column % INNER;
    Running own = {-INFINITE, 0};
    if (present)
        for (u64 j = slice; j < LENGTH; j += SLICES) own = include(own, widen(x[start + j * INNER]));
    partial[slice][lane] = own;
    __syncthreads();
    own = partial[0][lane];
#pragma unroll
    for (u32 s = 1; s < SLICES; s++) own = merge(own, partial[s][lane]);
    const A last = log_or_inverse(own.sum);
    if (present)
        for (u64 j = slice; j < LENGTH; j += SLICES)
            y[start + j * INNER] = Narrow<T>::from(result(widen(x[start + j * INNER]), own.maximum, last));
}
#endif
