// y[n, g, m, p] = bias[g, m] + sum over c, t of w[g, m, c, t] * x[n, g, c, p * STRIDE - PAD + t * DILATION]
//
// Layouts as in conv.cuh. A block of THREADS threads makes BLOCK_M filters by THREADS * THREAD_N pixels of one group; a
// thread keeps BLOCK_M x THREAD_N sums, of pixels that lie THREADS apart, so that neighbouring threads read and write
// neighbouring elements. The filters' weights for CHUNK steps of k = c * TAPS + t at a time lie in shared memory as
// [k][filter], widened to A, and are read by all threads at once; x comes through the L1 cache, once for BLOCK_M products.
// Reads w once per block and x ceil(FILTERS / BLOCK_M) * TAPS times (mostly from L1), writes y once.

constexpr u32 TILES_M = (FILTERS + BLOCK_M - 1) / BLOCK_M;
constexpr u32 CHUNK_CHANNELS = CHUNK / TAPS > 0 ? CHUNK / TAPS : 1;
constexpr u32 CHUNK_TAPS = CHUNK / TAPS > 0 ? TAPS : CHUNK;  // large windows are taken in parts

extern "C" __global__ void __launch_bounds__(THREADS)
conv_direct(const T* __restrict__ x, const T* __restrict__ w, const T* __restrict__ bias, T* __restrict__ y) {
    await_predecessors();
    __shared__ __align__(16) A weights[CHUNK_CHANNELS * CHUNK_TAPS][BLOCK_M];
    constexpr u32 TILES_N = (PIXELS + THREADS * THREAD_N - 1) / (THREADS * THREAD_N);
    const u32 tile_m = blockIdx.x % TILES_M, tile_n = blockIdx.x / TILES_M % TILES_N;
    const u32 group = blockIdx.x / (TILES_M * TILES_N);
    const u32 filter0 = tile_m * BLOCK_M, pixel0 = tile_n * (THREADS * THREAD_N) + threadIdx.x;
    const T* const filters = w + ((u64)group * FILTERS + filter0) * DEPTH;

    A sum[BLOCK_M][THREAD_N];
#pragma unroll
    for (u32 m = 0; m < BLOCK_M; m++)
#pragma unroll
        for (u32 n = 0; n < THREAD_N; n++) sum[m][n] = 0;

    for (u32 channel0 = 0; channel0 < CHANNELS; channel0 += CHUNK_CHANNELS)
        for (u32 tap0 = 0; tap0 < TAPS; tap0 += CHUNK_TAPS) {
            // 1. weights of these channels and taps, zero where there are none
            __syncthreads();
            for (u32 i = threadIdx.x; i < CHUNK_CHANNELS * CHUNK_TAPS * BLOCK_M; i += THREADS) {
                const u32 m = i / (CHUNK_CHANNELS * CHUNK_TAPS), k = i % (CHUNK_CHANNELS * CHUNK_TAPS);
                const u32 channel = channel0 + k / CHUNK_TAPS, tap = tap0 + k % CHUNK_TAPS;
                const bool there = filter0 + m < FILTERS && channel < CHANNELS && tap < TAPS;
                weights[k][m] = there ? wide(filters[(u64)m * DEPTH + channel * TAPS + tap]) : 0;
            }
            __syncthreads();
            // 2. their products, tap by tap
#pragma unroll 1
            for (u32 t = 0; t < CHUNK_TAPS; t++) {
                if (TAPS % CHUNK_TAPS != 0 && tap0 + t >= TAPS) break;
                const Tap tap(tap0 + t);
                const T* at[THREAD_N];
                bool inside[THREAD_N];
#pragma unroll
                for (u32 n = 0; n < THREAD_N; n++) {
                    const Pixel pixel(pixel0 + n * THREADS, group);
                    inside[n] = tap.inside(pixel);
                    at[n] = x + pixel.image + (i64)(pixel.corner() + tap.offset()) + (u64)channel0 * IN_SIZE;
                }
#pragma unroll 4
                for (u32 c = 0; c < CHUNK_CHANNELS; c++) {
                    A value[THREAD_N];
#pragma unroll
                    for (u32 n = 0; n < THREAD_N; n++) {
                        const bool there = inside[n] && (CHANNELS % CHUNK_CHANNELS == 0 || channel0 + c < CHANNELS);
                        value[n] = there ? wide(at[n][c * IN_SIZE]) : 0;
                    }
#pragma unroll
                    for (u32 m = 0; m < BLOCK_M; m++)
#pragma unroll
                        for (u32 n = 0; n < THREAD_N; n++) sum[m][n] += weights[c * CHUNK_TAPS + t][m] * value[n];
                }
            }
        }

    // 3. the results
#pragma unroll
    for (u32 n = 0; n < THREAD_N; n++) {
        const u32 pixel = pixel0 + n * THREADS;
        if (pixel >= PIXELS) break;
        T* const to = y + ((u64)(pixel / OUT_SIZE * GROUPS + group) * FILTERS + filter0) * OUT_SIZE + pixel % OUT_SIZE;
#pragma unroll
        for (u32 m = 0; m < BLOCK_M; m++)
            if (filter0 + m < FILTERS)
                to[(u64)m * OUT_SIZE] = narrow(sum[m][n] + (HAS_BIAS ? wide(bias[group * FILTERS + filter0 + m]) : 0));
    }
}
