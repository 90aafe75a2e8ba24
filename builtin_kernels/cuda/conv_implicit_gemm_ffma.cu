// y[n, g, m, p] = bias[g, m] + sum over k of w[g, m, k] * x[n, g, c(k), p * STRIDE - PAD + t(k) * DILATION]
//
// A matrix product for each group by fused multiply-adds: M = FILTERS, N = PIXELS (of all images), K = DEPTH with
// k = c * TAPS + t; the matrix of x is never stored. Layouts as in conv.cuh.
//
// A block makes BLOCK_M filters by BLOCK_N pixels over its share of the steps of BLOCK_K of k (SPLITS blocks share a
// tile; each writes its part of the sums to `parts`, A[SPLITS, y's shape]); a thread THREAD_M x THREAD_N of it, in
// groups of GROUP_M x GROUP_N that lie spread over the tile, so that neighbouring threads read neighbouring words of
// shared memory. The next tiles come to registers while this one's, in shared memory as [k][filter] and [k][pixel],
// widened to A, are multiplied. Results pass through the epilogue (epilogue_source.py). A tile reads (BLOCK_M + BLOCK_N) * K * sizeof(T) bytes.

constexpr u32 THREADS_N = BLOCK_N / THREAD_N, THREADS = BLOCK_M / THREAD_M * THREADS_N;
constexpr u32 STEPS = (DEPTH + BLOCK_K - 1) / BLOCK_K;
constexpr u32 PAD_A = 16 / sizeof(A);  // keeps groups aligned and spreads the transposing stores

// What one thread brings of a tile of w: vectors along k, which are stored across the rows of shared memory.
struct Filters {
    static constexpr u32 ALONG = BLOCK_K / VECTOR_A, VECTORS = BLOCK_M * ALONG;
    static constexpr u32 CARRIED = (VECTORS + THREADS - 1) / THREADS;
    Pack<T, VECTOR_A> held[CARRIED];

    __device__ __forceinline__ void fetch(const T* __restrict__ w, u32 row0, u32 k0) {
#pragma unroll
        for (u32 c = 0; c < CARRIED; c++) {
            const u32 i = c * THREADS + threadIdx.x, row = row0 + i / ALONG, k = k0 + i % ALONG * VECTOR_A;
            // a vector is inside or outside as a whole: VECTOR_A divides DEPTH
            const bool there = i < VECTORS && row < FILTERS && k < DEPTH;
            held[c] = there ? *(const Pack<T, VECTOR_A>*)(w + (u64)row * DEPTH + k) : Pack<T, VECTOR_A>::filled(T{0});
        }
    }
    __device__ __forceinline__ void put(A (*to)[BLOCK_M + PAD_A]) const {
#pragma unroll
        for (u32 c = 0; c < CARRIED; c++) {
            const u32 i = c * THREADS + threadIdx.x;
            if (VECTORS % THREADS == 0 || i < VECTORS)
#pragma unroll
                for (u32 e = 0; e < VECTOR_A; e++) to[i % ALONG * VECTOR_A + e][i / ALONG] = wide(held[c].at[e]);
        }
    }
};

// What one thread brings of a tile of x: VECTOR_B neighbouring pixels at CARRIED steps of k, ROWS apart.
struct Gather {
    static constexpr u32 COLUMNS = BLOCK_N / VECTOR_B, ROWS = THREADS / COLUMNS, CARRIED = BLOCK_K / ROWS;
    static_assert(THREADS % COLUMNS == 0 && BLOCK_K % ROWS == 0, "each thread keeps its column");
    const T* x;
    Pixel pixel;
    u32 row;
    Pack<T, VECTOR_B> held[CARRIED];

    __device__ __forceinline__ Gather(const T* x, u32 column0, u32 group)
        : x(x), pixel(column0 + threadIdx.x % COLUMNS * VECTOR_B, group), row(threadIdx.x / COLUMNS) {}

    __device__ __forceinline__ void fetch(u32 k0) {
#pragma unroll
        for (u32 i = 0; i < CARRIED; i++) {
            const u32 k = k0 + row + i * ROWS;
            const Tap tap(k % TAPS);
            const bool there = (DEPTH % BLOCK_K == 0 || k < DEPTH) && tap.inside(pixel);
            const T* from = x + pixel.image + (u64)(k / TAPS) * IN_SIZE + (i64)(pixel.corner() + tap.offset());
            held[i] = there ? *(const Pack<T, VECTOR_B>*)from : Pack<T, VECTOR_B>::filled(T{0});
        }
    }
    __device__ __forceinline__ void put(A (*to)[BLOCK_N]) const {
#pragma unroll
        for (u32 i = 0; i < CARRIED; i++) {
            Pack<A, VECTOR_B> out;
#pragma unroll
            for (u32 e = 0; e < VECTOR_B; e++) out.at[e] = wide(held[i].at[e]);
            *(Pack<A, VECTOR_B>*)&to[row + i * ROWS][threadIdx.x % COLUMNS * VECTOR_B] = out;
        }
    }
};

// The place within a tile of element i of a thread's filters or pixels.
template <u32 BLOCK, u32 THREAD, u32 GROUP> __device__ __forceinline__ u32 place(u32 thread, u32 i) {
    return i / GROUP * (BLOCK / (THREAD / GROUP)) + thread * GROUP + i % GROUP;
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
conv_implicit_gemm_ffma(const T* __restrict__ x, const T* __restrict__ w, const T* __restrict__ bias,
                        T* __restrict__ y, A* __restrict__ parts EPILOGUE_PARAMETERS) {
    await_predecessors();
    constexpr u32 TILES_M = (FILTERS + BLOCK_M - 1) / BLOCK_M, TILES_N = (PIXELS + BLOCK_N - 1) / BLOCK_N;
    __shared__ __align__(16) A shared_a[2][BLOCK_K][BLOCK_M + PAD_A];
    __shared__ __align__(16) A shared_b[2][BLOCK_K][BLOCK_N];
    // neighbouring blocks have the same pixels, so that x comes from memory once
    const u32 row0 = blockIdx.x % TILES_M * BLOCK_M, column0 = blockIdx.x / TILES_M % TILES_N * BLOCK_N;
    const u32 split = blockIdx.x / (TILES_M * TILES_N) % SPLITS, group = blockIdx.x / (TILES_M * TILES_N * SPLITS);
    const u32 first = (u64)STEPS * split / SPLITS, last = (u64)STEPS * (split + 1) / SPLITS;
    const u32 thread_n = threadIdx.x % THREADS_N, thread_m = threadIdx.x / THREADS_N;
    w += (u64)group * FILTERS * DEPTH;
    Filters filters;
    Gather gather(x, column0, group);

    A sum[THREAD_M][THREAD_N];
#pragma unroll
    for (u32 i = 0; i < THREAD_M; i++)
#pragma unroll
        for (u32 j = 0; j < THREAD_N; j++) sum[i][j] = 0;

    // 1. the first tiles
    filters.fetch(w, row0, first * BLOCK_K);
    gather.fetch(first * BLOCK_K);
    filters.put(shared_a[first & 1]);
    gather.put(shared_b[first & 1]);
    __syncthreads();
#pragma unroll 1
    for (u32 step = first; step < last; step++) {
        const u32 now = step & 1;
        // 2. the next tiles on their way
        if (step + 1 < last) {
            filters.fetch(w, row0, (step + 1) * BLOCK_K);
            gather.fetch((step + 1) * BLOCK_K);
        }
        // 3. this one's products
#pragma unroll
        for (u32 k = 0; k < BLOCK_K; k++) {
            Pack<A, GROUP_M> left[THREAD_M / GROUP_M];
            Pack<A, GROUP_N> right[THREAD_N / GROUP_N];
#pragma unroll
            for (u32 i = 0; i < THREAD_M; i += GROUP_M)
                left[i / GROUP_M] =
                    *(const Pack<A, GROUP_M>*)&shared_a[now][k][place<BLOCK_M, THREAD_M, GROUP_M>(thread_m, i)];
#pragma unroll
            for (u32 j = 0; j < THREAD_N; j += GROUP_N)
                right[j / GROUP_N] =
                    *(const Pack<A, GROUP_N>*)&shared_b[now][k][place<BLOCK_N, THREAD_N, GROUP_N>(thread_n, j)];
#pragma unroll
            for (u32 i = 0; i < THREAD_M; i++)
#pragma unroll
                for (u32 j = 0; j < THREAD_N; j++)
                    sum[i][j] += left[i / GROUP_M].at[i % GROUP_M] * right[j / GROUP_N].at[j % GROUP_N];
        }
        // 4. the next tiles into the other half, which all threads have left since the barrier before this step
        if (step + 1 < last) {
            filters.put(shared_a[now ^ 1]);
            gather.put(shared_b[now ^ 1]);
            __syncthreads();
        }
    }

    // 5. the results
    const Epilogue epilogue{EPILOGUE_ARGUMENTS};
#pragma unroll
    for (u32 j = 0; j < THREAD_N; j += VECTOR_D) {
        const u32 pixel = column0 + place<BLOCK_N, THREAD_N, GROUP_N>(thread_n, j);
        if (pixel >= PIXELS) continue;
        const u64 row = (u64)(pixel / OUT_SIZE * GROUPS + group) * FILTERS;
#pragma unroll
        for (u32 i = 0; i < THREAD_M; i++) {
            const u32 filter = row0 + place<BLOCK_M, THREAD_M, GROUP_M>(thread_m, i);
            if (filter >= FILTERS) continue;
            const u64 at = (row + filter) * OUT_SIZE + pixel % OUT_SIZE;
            if constexpr (SPLITS > 1) {
                Pack<A, VECTOR_D> out;
#pragma unroll
                for (u32 e = 0; e < VECTOR_D; e++) out.at[e] = sum[i][j + e];
                *(Pack<A, VECTOR_D>*)(parts + split * ((u64)PIXELS * GROUPS * FILTERS) + at) = out;
            } else {
                const A added = HAS_BIAS ? wide(bias[group * FILTERS + filter]) : 0;
                Pack<T, VECTOR_D> out;
#pragma unroll
                for (u32 e = 0; e < VECTOR_D; e++) out.at[e] = narrow(epilogue.finish_at(sum[i][j + e] + added, at + e));
                *(Pack<T, VECTOR_D>*)(y + at) = out;
            }
        }
    }
}
