// y[n, m, p] = b[m] + sum over s < SPLIT_K of parts[s, n, m, p], in this order
//
//   parts : float[SPLIT_K, batch, filters, pixels]   b : T[filters] or null   y : T[batch, filters, pixels]
//
// A thread takes VECTOR_Y neighbouring pixels of each part. Moves outputs * (4 * SPLIT_K + sizeof(T)) bytes.
// Set by the tactic: HALF, SPLIT_K, THREADS, VECTOR_Y (a divisor of `pixels`).

extern "C" __global__ void __launch_bounds__(THREADS)
add_parts(const float* __restrict__ parts, const T* __restrict__ b, T* __restrict__ y, u64 outputs, u32 filters, u32 pixels) {
    const u64 i = ((u64)blockIdx.x * THREADS + threadIdx.x) * VECTOR_Y;
    if (i >= outputs) return;
    Vector<float, VECTOR_Y> sum[SPLIT_K];
#pragma unroll
    for (u32 s = 0; s < SPLIT_K; s++) sum[s] = *(const Vector<float, VECTOR_Y>*)(parts + s * outputs + i);
#pragma unroll
    for (u32 s = 1; s < SPLIT_K; s++)
#pragma unroll
        for (u32 e = 0; e < VECTOR_Y; e++) sum[0].at[e] += sum[s].at[e];
    store_results<VECTOR_Y>(y + i, sum[0].at, bias_of(b, (u32)(i / pixels % filters)));
}
