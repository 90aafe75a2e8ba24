// The product by fused multiply-adds: float32, and float16 widened as it leaves shared memory.
//
// A thread makes THREAD_M filters, THREADS_M apart, by THREAD_P pixels, in groups of GROUP_P that lie THREADS_P groups
// apart: so neighbouring threads read neighbouring words. Weights come four channels at a time, pixels GROUP_P.

constexpr u32 THREADS_P = TILE_P / THREAD_P, THREADS_M = TILE_M / THREAD_M, ALONG_C = 4;
static_assert(THREADS_P * THREADS_M == THREADS && THREAD_P % GROUP_P == 0 && GROUP_P % VECTOR_Y == 0, "threads cover the tile");

extern "C" __global__ void CLUSTER_SHAPE __launch_bounds__(THREADS, 1)
ffma_tiles(const T* __restrict__ x, const T* __restrict__ w, const T* __restrict__ b, T* __restrict__ y,
           float* __restrict__ parts, u32 channels, u32 filters, u32 pixels, u32 in_pixels, u32 in_w, u32 out_w, u32 stride) {
    extern __shared__ __align__(16) unsigned char shared[];
    const Tile tile(Shape{channels, filters, pixels, in_pixels, in_w, out_w, stride});
    const u32 thread_p = threadIdx.x % THREADS_P, thread_m = threadIdx.x / THREADS_P;
    const auto column = [&](u32 j) { return (j / GROUP_P * THREADS_P + thread_p) * GROUP_P + j % GROUP_P; };
    prefetch_bias(tile, b);

    u32 read[THREAD_P / GROUP_P];  // the columns of x's tile that this thread's groups are read from
#pragma unroll
    for (u32 g = 0; g < THREAD_P / GROUP_P; g++) {
        const u32 first = column(g * GROUP_P);
        // behind the last pixel there are none to read: what the last one makes there is not stored
        read[g] = TILE_P > PITCH_X && first > PITCH_X - GROUP_P ? PITCH_X - GROUP_P : first;
    }
    float sum[THREAD_M][THREAD_P];
#pragma unroll
    for (u32 i = 0; i < THREAD_M; i++)
#pragma unroll
        for (u32 j = 0; j < THREAD_P; j++) sum[i][j] = 0.0f;

    each_step(tile, x, w, (T*)shared, [&](const T* tile_w, const T* tile_x) {
#pragma unroll 2
        for (u32 c = 0; c < TILE_C; c += ALONG_C) {
            Vector<T, ALONG_C> left[THREAD_M];
#pragma unroll
            for (u32 i = 0; i < THREAD_M; i++)
                left[i] = *(const Vector<T, ALONG_C>*)(tile_w + (thread_m + i * THREADS_M) * PITCH_W + c);
#pragma unroll
            for (u32 e = 0; e < ALONG_C; e++) {
                float right[THREAD_P];
#pragma unroll
                for (u32 j = 0; j < THREAD_P; j += GROUP_P) {
                    const auto group = *(const Vector<T, GROUP_P>*)(tile_x + (c + e) * PITCH_X + read[j / GROUP_P]);
#pragma unroll
                    for (u32 g = 0; g < GROUP_P; g++) right[j + g] = widen(group.at[g]);
                }
#pragma unroll
                for (u32 i = 0; i < THREAD_M; i++)
#pragma unroll
                    for (u32 j = 0; j < THREAD_P; j++) sum[i][j] = fmaf(widen(left[i].at[e]), right[j], sum[i][j]);
            }
        }
    });

    write_sums(tile, b, y, parts, (float*)shared, [&](const Sink& sink) {
#pragma unroll
        for (u32 i = 0; i < THREAD_M; i++)
#pragma unroll
            for (u32 j = 0; j < THREAD_P; j += VECTOR_Y) sink(thread_m + i * THREADS_M, column(j), &sum[i][j]);
    });
}
