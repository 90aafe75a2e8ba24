// y[n, c, p] = (x[n, c, p] - mean[c]) * scale[c] / sqrt(variance[c] + EPSILON) + bias[c]
//
//   x, y : T[IMAGES, CHANNELS, SIZE], 16-byte aligned;   scale, bias : P[CHANNELS];   mean, variance : S[CHANNELS]
//
// A thread takes vectors of VECTOR neighbouring elements, which are of one channel, a grid apart. Arithmetic is in A,
// float or double. Moves 2 * IMAGES * CHANNELS * SIZE * sizeof(T) bytes.

__device__ __forceinline__ A widen_to(double x) { return (A)x; }
__device__ __forceinline__ A widen_to(float x) { return (A)x; }
__device__ __forceinline__ A widen_to(f16 x) { return (A)to_float(x); }
__device__ __forceinline__ A widen_to(bf16 x) { return (A)to_float(x); }

extern "C" __global__ void __launch_bounds__(THREADS)
batch_norm(const T* __restrict__ x, const P* __restrict__ scale, const P* __restrict__ bias, const S* __restrict__ mean,
           const S* __restrict__ variance, T* __restrict__ y) {
    await_predecessors();
    constexpr u64 VECTORS = (u64)IMAGES * CHANNELS * SIZE / VECTOR;
#pragma unroll
    for (u32 step = 0; step < STEPS; step++) {
        const u64 i = ((u64)blockIdx.x * STEPS + step) * THREADS + threadIdx.x;
        if (i >= VECTORS) return;
        const u32 channel = (u32)(i / (SIZE / VECTOR) % CHANNELS);
        Pack<T, VECTOR> values = ((const Pack<T, VECTOR>*)x)[i];
        // the root and the quotient are correctly rounded, the same for every element of a channel
        const A factor = widen_to(scale[channel]) / sqrt(widen_to(variance[channel]) + (A)EPSILON);
        const A middle = widen_to(mean[channel]), added = widen_to(bias[channel]);
#pragma unroll
        for (u32 e = 0; e < VECTOR; e++) values.at[e] = narrow((wide(values.at[e]) - middle) * factor + added);
        ((Pack<T, VECTOR>*)y)[i] = values;
    }
}
