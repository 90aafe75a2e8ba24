// y[n, c, p] = max, or mean, over the taps t that lie inside of x[n, c, p * STRIDE - PAD + t * DILATION]
//
//   x : T[PLANES, IN_D, IN_H, IN_W];   y : T[PLANES, OUT_D, OUT_H, OUT_W]      PLANES = images * channels
//
// pool_windows: a thread makes ROWS outputs that lie below each other, neighbouring threads neighbouring columns; with
// UNROLLED an element under several of its windows is loaded once. With COUNT_PADDING the mean counts the padding,
// which ends COUNT_D, COUNT_H, COUNT_W elements behind the first one of the padded input; else what is inside.
// pool_planes: GROUP threads reduce a whole plane, each taking vectors of VECTOR elements in turn.
// Both move (x + y) * sizeof(T) bytes through memory; overlapping windows come from the cache.

#ifdef MAXIMUM
// A NaN stays.
__device__ __forceinline__ A combine(A a, A b) { return b > a || b != b ? b : a; }
#define NEUTRAL (-INFINITE)
#else
__device__ __forceinline__ A combine(A a, A b) { return a + b; }
#define NEUTRAL ((A)0)
#endif
#ifdef DOUBLE
#define INFINITE __longlong_as_double(0x7ff0000000000000ll)
#else
#define INFINITE __int_as_float(0x7f800000)
#endif

#ifdef WINDOWS_KERNEL
constexpr u32 TILES_H = (OUT_H + ROWS - 1) / ROWS, TILES = OUT_D * TILES_H * OUT_W;
constexpr u32 TOUCHED_H = (ROWS - 1) * STRIDE_H + (KERNEL_H - 1) * DILATION_H + 1;

// How many taps from `start` on, `dilation` apart, lie in [0, end).
__device__ __forceinline__ u32 count_taps(i32 start, u32 taps, i32 dilation, i32 end) {
    u32 count = 0;
    for (u32 t = 0; t < taps; t++) count += start + (i32)t * dilation >= 0 && start + (i32)t * dilation < end;
    return count;
}

extern "C" __global__ void __launch_bounds__(THREADS) pool_windows(const T* __restrict__ x, T* __restrict__ y) {
    await_predecessors();
    const u64 i = (u64)blockIdx.x * THREADS + threadIdx.x;
    if (i >= (u64)PLANES * TILES) return;
    const u64 plane = i / TILES;
    const u32 tile = (u32)(i % TILES);
    const u32 out_d = tile / (TILES_H * OUT_W), out_h = tile / OUT_W % TILES_H * ROWS, out_w = tile % OUT_W;
    const i32 d0 = (i32)out_d * STRIDE_D - PAD_D, h0 = (i32)out_h * STRIDE_H - PAD_H, w0 = (i32)out_w * STRIDE_W - PAD_W;
    constexpr bool CHECK_H = LEAVES_H || OUT_H % ROWS != 0;
    const T* const from = x + plane * IN_SIZE;
    A result[ROWS];
#pragma unroll
    for (u32 r = 0; r < ROWS; r++) result[r] = NEUTRAL;

#pragma unroll (UNROLLED ? KERNEL_D : 1)
    for (u32 kd = 0; kd < KERNEL_D; kd++) {
        const i32 d = d0 + (i32)kd * DILATION_D;
        if (LEAVES_D && (u32)d >= IN_D) continue;
#pragma unroll (UNROLLED ? TOUCHED_H : 1)
        for (u32 touched = 0; touched < TOUCHED_H; touched++) {
            const i32 h = h0 + (i32)touched;
            if (CHECK_H && (u32)h >= IN_H) continue;
#pragma unroll (UNROLLED ? KERNEL_W : 1)
            for (u32 kw = 0; kw < KERNEL_W; kw++) {
                const i32 w = w0 + (i32)kw * DILATION_W;
                if (LEAVES_W && (u32)w >= IN_W) continue;
                const A value = wide(from[((i64)d * IN_H + h) * IN_W + w]);
#pragma unroll
                for (u32 r = 0; r < ROWS; r++) {
                    // the row is one of this window's, if it is whole dilations below its first
                    const i32 below = (i32)touched - (i32)(r * STRIDE_H);
                    if (below >= 0 && below % DILATION_H == 0 && below / DILATION_H < (i32)KERNEL_H)
                        result[r] = combine(result[r], value);
                }
            }
        }
    }

#pragma unroll
    for (u32 r = 0; r < ROWS; r++) {
        if (OUT_H % ROWS != 0 && out_h + r >= OUT_H) break;
#ifndef MAXIMUM
#if COUNT_PADDING
        const u32 count = count_taps(d0 + PAD_D, KERNEL_D, DILATION_D, COUNT_D) *
                          count_taps(h0 + (i32)(r * STRIDE_H) + PAD_H, KERNEL_H, DILATION_H, COUNT_H) *
                          count_taps(w0 + PAD_W, KERNEL_W, DILATION_W, COUNT_W);
#else
        const u32 count = count_taps(d0, KERNEL_D, DILATION_D, IN_D) *
                          count_taps(h0 + (i32)(r * STRIDE_H), KERNEL_H, DILATION_H, IN_H) *
                          count_taps(w0, KERNEL_W, DILATION_W, IN_W);
#endif
        result[r] /= (A)count;
#endif
        y[plane * OUT_SIZE + (out_d * OUT_H + out_h + r) * OUT_W + out_w] = narrow(result[r]);
    }
}
#endif

#ifdef PLANES_KERNEL
struct Combine {
    __device__ __forceinline__ A operator()(A a, A b) const { return combine(a, b); }
};

extern "C" __global__ void __launch_bounds__(THREADS) pool_planes(const T* __restrict__ x, T* __restrict__ y) {
    await_predecessors();
    __shared__ A scratch[THREADS / 32];
    const u64 plane = (u64)blockIdx.x * (THREADS / GROUP) + threadIdx.x / GROUP;
    const u32 lane = threadIdx.x % GROUP;
    A result = NEUTRAL;
    if (plane < PLANES) {  // threads without a plane still take part in the reduction
        const Pack<T, VECTOR>* from = (const Pack<T, VECTOR>*)(x + plane * IN_SIZE);
#pragma unroll 4
        for (u32 v = lane; v < IN_SIZE / VECTOR; v += GROUP) {
            const Pack<T, VECTOR> values = from[v];
#pragma unroll
            for (u32 e = 0; e < VECTOR; e++) result = combine(result, wide(values.at[e]));
        }
    }
    result = group_reduce<GROUP, THREADS>(result, Combine(), scratch);
#ifndef MAXIMUM
    result /= (A)IN_SIZE;
#endif
    if (plane < PLANES && lane == 0) y[plane] = narrow(result);
}
#endif
