// y[n, g, m, p] = bias[g, m] + sum over k of w[g, m, k] * x[n, g, c(k), p * STRIDE - PAD + t(k) * DILATION]
//
// A matrix product for each group, on tensor cores (sm_80 and later): M = FILTERS, N = PIXELS (of all images),
// K = CHANNELS * TAPS; the matrix of x is never stored. Layouts of x and y as in conv.cuh; w : T[GROUPS, FILTERS, PITCH],
// rows of whole 16 bytes, with k = c * TAPS + t or, with TAP_MAJOR, k = t * CHANNEL_PITCH + c (CHANNEL_PITCH a multiple
// of BLOCK_K): then all of a stage's elements of x lie under one tap, a channel apart, and cost no arithmetic.
//
// A block makes BLOCK_M filters by BLOCK_N pixels with WARPS_M x WARPS_N warps, over its share of the steps of BLOCK_K
// of k (SPLITS blocks share a tile; each writes its part of the sums to `parts`, float[SPLITS, y's shape]). STAGES
// tiles lie in shared memory: w's as [filter][k] by cp.async; x's as [k][pixel], by cp.async where one access has 4
// bytes or more (float32; vectors of a 1 x 1 convolution), else through registers, VECTOR pixels at a time.
// Results pass through the epilogue (epilogue_source.py). Fragments of mma.sync: see conv_mma.cuh. A tile reads (BLOCK_M + BLOCK_N) * K * sizeof(T) bytes.

constexpr u32 THREADS = WARPS_M * WARPS_N * 32;
constexpr u32 WARP_M = BLOCK_M / WARPS_M, WARP_N = BLOCK_N / WARPS_N;
constexpr u32 STRIDE_A = BLOCK_K + 16 / sizeof(T), STRIDE_B = BLOCK_N + 8;  // padded against bank conflicts
constexpr u32 STAGE = BLOCK_M * STRIDE_A + BLOCK_K * STRIDE_B;            // elements
constexpr u32 STEPS = TAP_MAJOR ? TAPS * (CHANNEL_PITCH / BLOCK_K) : (DEPTH + BLOCK_K - 1) / BLOCK_K;

// Starts the copy of BLOCK_M rows of w from k0 on.
__device__ __forceinline__ void copy_filters(T* to, const T* __restrict__ w, u32 row0, u32 k0) {
    constexpr u32 VECTOR_A = 16 / sizeof(T), ALONG = BLOCK_K / VECTOR_A, VECTORS = BLOCK_M * ALONG;
#pragma unroll
    for (u32 first = 0; first < VECTORS; first += THREADS) {
        const u32 i = first + threadIdx.x;
        if (VECTORS % THREADS != 0 && i >= VECTORS) break;
        const u32 row = i / ALONG, k = i % ALONG * VECTOR_A;
        const bool there = row0 + row < FILTERS && k0 + k < PITCH;
        copy_async<16>(to + row * STRIDE_A + k, w + (u64)(row0 + row) * PITCH + k0 + k, there);
    }
}

// The part of a tile of x that one thread brings: VECTOR neighbouring pixels at CARRIED steps of k, ROWS apart.
struct Gather {
    static constexpr u32 COLUMNS = BLOCK_N / VECTOR, ROWS = THREADS / COLUMNS, CARRIED = BLOCK_K / ROWS;
    static constexpr u32 OWN = CONTIGUOUS ? 1 : VECTOR;  // pixels to be looked up
    static constexpr bool ASYNC = (CONTIGUOUS ? VECTOR : 1) * sizeof(T) >= 4;
    static_assert(THREADS % COLUMNS == 0 && BLOCK_K % ROWS == 0, "each thread keeps its column");
    static_assert(CONTIGUOUS || !ASYNC || VECTOR == 1, "one access for each asynchronous copy");
    const T* x;
    Pixel pixels[OWN];
    Pack<T, VECTOR> held[ASYNC ? 1 : CARRIED];
    u32 row;

    __device__ __forceinline__ Gather(const T* x, u32 column0, u32 group) : x(x), row(threadIdx.x / COLUMNS) {
#pragma unroll
        for (u32 v = 0; v < OWN; v++) pixels[v] = Pixel(column0 + threadIdx.x % COLUMNS * VECTOR + v, group);
    }

    // Starts to bring step `step`: to shared memory, or to registers for `put`.
    __device__ __forceinline__ void fetch(T* to, u32 step) {
        if constexpr (TAP_MAJOR) {
            const Tap tap(step / (CHANNEL_PITCH / BLOCK_K));
            const u32 channel0 = step % (CHANNEL_PITCH / BLOCK_K) * BLOCK_K + row;
            const T* from[OWN];
            bool inside[OWN];
#pragma unroll
            for (u32 v = 0; v < OWN; v++) {
                inside[v] = tap.inside(pixels[v]);
                from[v] = x + pixels[v].image + (u64)channel0 * IN_SIZE + (i64)(pixels[v].corner() + tap.offset());
            }
#pragma unroll
            for (u32 i = 0; i < CARRIED; i++) {
                const bool there = CHANNELS % BLOCK_K == 0 || channel0 + i * ROWS < CHANNELS;
#pragma unroll
                for (u32 v = 0; v < OWN; v++) bring(to, i, v, from[v] + (u64)i * ROWS * IN_SIZE, there && inside[v]);
            }
        } else {
#pragma unroll
            for (u32 i = 0; i < CARRIED; i++) {
                const u32 k = step * BLOCK_K + row + i * ROWS;
                const Tap tap(k % TAPS);
#pragma unroll
                for (u32 v = 0; v < OWN; v++) {
                    const bool there = (DEPTH % BLOCK_K == 0 || k < DEPTH) && tap.inside(pixels[v]);
                    const i64 place = (i64)(pixels[v].corner() + tap.offset()) + (u64)(k / TAPS) * IN_SIZE;
                    bring(to, i, v, x + pixels[v].image + place, there);
                }
            }
        }
    }
    __device__ __forceinline__ void put(T* to) const {
        if constexpr (!ASYNC)
#pragma unroll
            for (u32 i = 0; i < CARRIED; i++) *(Pack<T, VECTOR>*)place(to, i) = held[i];
    }

private:
    __device__ __forceinline__ T* place(T* to, u32 i) const {
        return to + (row + i * ROWS) * STRIDE_B + threadIdx.x % COLUMNS * VECTOR;
    }
    __device__ __forceinline__ void bring(T* to, u32 i, u32 v, const T* from, bool there) {
        if constexpr (ASYNC)
            copy_async<VECTOR * sizeof(T)>(place(to, i), from, there);
        else if constexpr (CONTIGUOUS)
            held[i] = there ? *(const Pack<T, VECTOR>*)from : Pack<T, VECTOR>::filled(T{0});
        else
            held[i].at[v] = there ? *from : T{0};
    }
};

// Writes sums of one filter at VECTOR_D neighbouring pixels.
__device__ __forceinline__ void store(const float* sum, T* y, float* parts, const T* bias, const Epilogue& epilogue, u32 split, u32 group,
                                      u32 filter, u32 pixel) {
    const u64 at = ((u64)(pixel / OUT_SIZE * GROUPS + group) * FILTERS + filter) * OUT_SIZE + pixel % OUT_SIZE;
    if constexpr (SPLITS > 1) {
        Pack<float, VECTOR_D> out;
#pragma unroll
        for (u32 e = 0; e < VECTOR_D; e++) out.at[e] = sum[e];
        *(Pack<float, VECTOR_D>*)(parts + split * ((u64)PIXELS * GROUPS * FILTERS) + at) = out;
    } else {
        const float added = HAS_BIAS ? to_float(bias[group * FILTERS + filter]) : 0.f;
        Pack<T, VECTOR_D> out;
#pragma unroll
        for (u32 e = 0; e < VECTOR_D; e++) out.at[e] = Convert<T>::from(epilogue.finish_at(sum[e] + added, at + e));
        *(Pack<T, VECTOR_D>*)(y + at) = out;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
conv_implicit_gemm(const T* __restrict__ x, const T* __restrict__ w, const T* __restrict__ bias, T* __restrict__ y,
                   float* __restrict__ parts EPILOGUE_PARAMETERS) {
    await_predecessors();
    constexpr u32 TILES_M = (FILTERS + BLOCK_M - 1) / BLOCK_M, TILES_N = (PIXELS + BLOCK_N - 1) / BLOCK_N;
    extern __shared__ __align__(16) unsigned char shared[];
    T* const tiles = (T*)shared;
    // neighbouring blocks have the same pixels, so that x comes from memory once
    const u32 row0 = blockIdx.x % TILES_M * BLOCK_M, column0 = blockIdx.x / TILES_M % TILES_N * BLOCK_N;
    const u32 split = blockIdx.x / (TILES_M * TILES_N) % SPLITS, group = blockIdx.x / (TILES_M * TILES_N * SPLITS);
    const u32 first = (u64)STEPS * split / SPLITS, last = (u64)STEPS * (split + 1) / SPLITS;
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const u32 warp_row = warp % WARPS_M * WARP_M, warp_column = warp / WARPS_M * WARP_N;
    w += (u64)group * FILTERS * PITCH;
    Gather gather(x, column0, group);
    const Epilogue epilogue{EPILOGUE_ARGUMENTS};

    float sum[WARP_M / 16][WARP_N / 8][4];
#pragma unroll
    for (u32 i = 0; i < WARP_M / 16; i++)
#pragma unroll
        for (u32 j = 0; j < WARP_N / 8; j++)
#pragma unroll
            for (u32 e = 0; e < 4; e++) sum[i][j][e] = 0;

    const auto tile_a = [&](u32 step) { return tiles + step % STAGES * STAGE; };
    const auto tile_b = [&](u32 step) { return tiles + step % STAGES * STAGE + BLOCK_M * STRIDE_A; };
    const auto fetch = [&](u32 step) {
        if (step < last) {
            copy_filters(tile_a(step), w, row0, step * BLOCK_K);
            gather.fetch(tile_b(step), step);
        }
        commit_copies();  // empty groups too: they keep the count
    };
    // 1. all stages but one on their way
#pragma unroll
    for (u32 ahead = 0; ahead < STAGES - 1; ahead++) {
        fetch(first + ahead);
        if (first + ahead < last) gather.put(tile_b(first + ahead));
    }
#pragma unroll 1
    for (u32 step = first; step < last; step++) {
        // 2. this step has come, and all warps have left the stage of the step before, which is filled again
        wait_copies<STAGES - 2>();
        __syncthreads();
        fetch(step + STAGES - 1);
        // 3. this step's products
        const T *a = tile_a(step), *b = tile_b(step);
#pragma unroll
        for (u32 k = 0; k < BLOCK_K; k += MMA_K) {
            u32 left[WARP_M / 16][4];
#pragma unroll
            for (u32 i = 0; i < WARP_M / 16; i++) load_rows<STRIDE_A>(left[i], a, warp_row + 16 * i, k);
#pragma unroll
            for (u32 j = 0; j < WARP_N / 16; j++) {
                u32 right[2][2];
                load_columns<STRIDE_B>(right, b, k, warp_column + 16 * j);
#pragma unroll
                for (u32 i = 0; i < WARP_M / 16; i++) {
                    multiply(sum[i][2 * j], left[i], right[0]);
                    multiply(sum[i][2 * j + 1], left[i], right[1]);
                }
            }
        }
        if (step + STAGES - 1 < last) gather.put(tile_b(step + STAGES - 1));
    }

    // 4. the results: a lane has rows +0 and +8, columns +0 and +1 of each 16 x 8 sums
#pragma unroll
    for (u32 i = 0; i < WARP_M / 16; i++)
#pragma unroll
        for (u32 j = 0; j < WARP_N / 8; j++)
#pragma unroll
            for (u32 e = 0; e < 4; e += VECTOR_D) {
                const u32 filter = row0 + warp_row + 16 * i + e / 2 * 8 + lane / 4;
                const u32 pixel = column0 + warp_column + 8 * j + lane % 4 * 2 + e % 2;
                if (filter < FILTERS && pixel < PIXELS) store(&sum[i][j][e], y, parts, bias, epilogue, split, group, filter, pixel);
            }
}
