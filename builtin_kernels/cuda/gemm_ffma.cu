// d[i] = ALPHA * op(a[i]) op(b[i]) + BETA * c        for each matrix i of the batch
//
//   op(a) : [M, K], stored so, or with TRANS_A as [K, M];   op(b) : [K, N], stored so, or with TRANS_B as [N, K]
//   c : at BIAS_INDEX, of any shape that broadcasts to [M, N];   d : [M, N];   all T, row-major, 16-byte aligned
//   STRIDE_A, STRIDE_B: elements from one matrix of the batch to the next
//
// A block of THREADS threads makes a tile of BLOCK_M x BLOCK_N, a thread THREAD_M x THREAD_N of it, in groups of
// GROUP_M x GROUP_N that lie spread over the tile so that neighbouring threads read neighbouring words of shared
// memory; a warp is 4 x 8 threads, of which pairs below one another are neighbours. Tiles of BLOCK_K steps of k go from
// global memory to registers while the ones before are multiplied in shared memory, where both operands lie as
// [k][row or column], widened to A, the type of the sums. What a step of k needs is read during the step before.
// A tile reads (BLOCK_M + BLOCK_N) * K * sizeof(T) bytes and does 2 * BLOCK_M * BLOCK_N * K operations.

constexpr u32 THREADS_N = BLOCK_N / THREAD_N;
constexpr u32 THREADS = BLOCK_M / THREAD_M * THREADS_N;
constexpr u32 LANES_M = 4, LANES_N = 8, WARPS_N = THREADS_N / LANES_N;
constexpr u32 PAD = 16 / sizeof(A);  // keeps groups aligned and spreads the stores of k-contiguous operands

__device__ __forceinline__ A wide(T x) {
#ifdef DOUBLE
    return x;
#else
    return to_float(x);
#endif
}
__device__ __forceinline__ T narrow(A x) {
#ifdef DOUBLE
    return x;
#else
    return Convert<T>::from(x);
#endif
}

// The part of an operand's tile of ROWS x BLOCK_K that one thread carries; a row is one of op(a) or a column of op(b).
template <u32 ROWS, u32 EXTENT, u32 VECTOR, bool K_CONTIGUOUS> struct Tile {
    static constexpr u32 STRIDE = ROWS + PAD;
    static constexpr u32 ALONG = (K_CONTIGUOUS ? BLOCK_K : ROWS) / VECTOR;  // vectors of a stored row
    static constexpr u32 VECTORS = ROWS * BLOCK_K / VECTOR;
    static constexpr u32 CARRIED = (VECTORS + THREADS - 1) / THREADS;
    Pack<T, VECTOR> held[CARRIED];

    __device__ __forceinline__ void fetch(const T* __restrict__ from, u32 row0, u32 k0) {
#pragma unroll
        for (u32 c = 0; c < CARRIED; c++) {
            const u32 i = c * THREADS + threadIdx.x;
            const u32 row = row0 + (K_CONTIGUOUS ? i / ALONG : i % ALONG * VECTOR);
            const u32 k = k0 + (K_CONTIGUOUS ? i % ALONG * VECTOR : i / ALONG);
            // a vector is inside or outside as a whole: VECTOR divides the stored rows
            if (i < VECTORS && row < EXTENT && k < K)
                held[c] = *(const Pack<T, VECTOR>*)(from + (K_CONTIGUOUS ? (u64)row * K + k : (u64)k * EXTENT + row));
            else
                held[c] = Pack<T, VECTOR>::filled(T{0});
        }
    }
    __device__ __forceinline__ void put(A (*to)[STRIDE]) const {
#pragma unroll
        for (u32 c = 0; c < CARRIED; c++) {
            const u32 i = c * THREADS + threadIdx.x;
            const u32 row = K_CONTIGUOUS ? i / ALONG : i % ALONG * VECTOR;
            const u32 k = K_CONTIGUOUS ? i % ALONG * VECTOR : i / ALONG;
            if (i < VECTORS)
#pragma unroll
                for (u32 e = 0; e < VECTOR; e++)
                    to[K_CONTIGUOUS ? k + e : k][K_CONTIGUOUS ? row : row + e] = wide(held[c].at[e]);
        }
    }
};

// The place within a tile of element i of a thread's row or column of results.
template <u32 BLOCK, u32 THREAD, u32 GROUP> __device__ __forceinline__ u32 place(u32 thread, u32 i) {
    return i / GROUP * (BLOCK / (THREAD / GROUP)) + thread * GROUP + i % GROUP;
}

// What a thread needs of one step of k.
struct Step {
    Pack<A, GROUP_M> left[THREAD_M / GROUP_M];
    Pack<A, GROUP_N> right[THREAD_N / GROUP_N];

    __device__ __forceinline__ void read(const A* shared_a, const A* shared_b, u32 thread_m, u32 thread_n) {
#pragma unroll
        for (u32 i = 0; i < THREAD_M; i += GROUP_M)
            left[i / GROUP_M] = *(const Pack<A, GROUP_M>*)&shared_a[place<BLOCK_M, THREAD_M, GROUP_M>(thread_m, i)];
#pragma unroll
        for (u32 j = 0; j < THREAD_N; j += GROUP_N)
            right[j / GROUP_N] = *(const Pack<A, GROUP_N>*)&shared_b[place<BLOCK_N, THREAD_N, GROUP_N>(thread_n, j)];
    }
    __device__ __forceinline__ void add(A (&sum)[THREAD_M][THREAD_N]) const {
#pragma unroll
        for (u32 i = 0; i < THREAD_M; i++)
#pragma unroll
            for (u32 j = 0; j < THREAD_N; j++)
                sum[i][j] += left[i / GROUP_M].at[i % GROUP_M] * right[j / GROUP_N].at[j % GROUP_N];
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
gemm_ffma(const T* __restrict__ a, const T* __restrict__ b, const T* __restrict__ bias, T* __restrict__ d) {
    await_predecessors();
    typedef Tile<BLOCK_M, M, VECTOR_A, !TRANS_A> TileA;
    typedef Tile<BLOCK_N, N, VECTOR_B, TRANS_B> TileB;
    constexpr u32 TILES_M = (M + BLOCK_M - 1) / BLOCK_M, TILES = TILES_M * ((N + BLOCK_N - 1) / BLOCK_N);
    constexpr u32 STEPS = (K + BLOCK_K - 1) / BLOCK_K;
    __shared__ __align__(16) A shared_a[2][BLOCK_K][TileA::STRIDE];
    __shared__ __align__(16) A shared_b[2][BLOCK_K][TileB::STRIDE];
    const u32 matrix = blockIdx.x / TILES, tile = blockIdx.x % TILES;
    const u32 row0 = tile % TILES_M * BLOCK_M, column0 = tile / TILES_M * BLOCK_N;
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const u32 thread_m = warp / WARPS_N * LANES_M + lane / 16 * 2 + lane % 2;
    const u32 thread_n = warp % WARPS_N * LANES_N + lane / 2 % 8;
    a += matrix * STRIDE_A;
    b += matrix * STRIDE_B;
    d += matrix * ((u64)M * N);

    A sum[THREAD_M][THREAD_N];
#pragma unroll
    for (u32 i = 0; i < THREAD_M; i++)
#pragma unroll
        for (u32 j = 0; j < THREAD_N; j++) sum[i][j] = 0;

    // 1. the first tiles
    TileA from_a;
    TileB from_b;
    from_a.fetch(a, row0, 0);
    from_b.fetch(b, column0, 0);
    from_a.put(shared_a[0]);
    from_b.put(shared_b[0]);
    __syncthreads();
    Step steps[2];
    steps[0].read(shared_a[0][0], shared_b[0][0], thread_m, thread_n);
    for (u32 step = 0; step < STEPS; step++) {
        const u32 now = step & 1;
        const bool more = step + 1 < STEPS;
        // 2. the next tiles on their way
        if (more) {
            from_a.fetch(a, row0, (step + 1) * BLOCK_K);
            from_b.fetch(b, column0, (step + 1) * BLOCK_K);
        }
        // 3. this one's products, and behind the last read the next tiles into the other half, which all threads
        // have left since the barrier before
#pragma unroll
        for (u32 k = 0; k < BLOCK_K; k++) {
            const u32 next = k + 1 < BLOCK_K ? now : now ^ 1;
            if (k + 1 == BLOCK_K && more) {
                from_a.put(shared_a[next]);
                from_b.put(shared_b[next]);
                __syncthreads();
            }
            if (k + 1 < BLOCK_K || more)
                steps[(k + 1) % 2].read(shared_a[next][(k + 1) % BLOCK_K], shared_b[next][(k + 1) % BLOCK_K], thread_m, thread_n);
            steps[k % 2].add(sum);
        }
    }

    // 4. the results
#pragma unroll
    for (u32 i = 0; i < THREAD_M; i++) {
        const u32 row = row0 + place<BLOCK_M, THREAD_M, GROUP_M>(thread_m, i);
#pragma unroll
        for (u32 j = 0; j < THREAD_N; j += VECTOR_D) {
            const u32 column1 = column0 + place<BLOCK_N, THREAD_N, GROUP_N>(thread_n, j);
            if (row < M && column1 < N) {
                Pack<T, VECTOR_D> out;
#pragma unroll
                for (u32 e = 0; e < VECTOR_D; e++) {
                    const u32 column = column1 + e;
                    A value = (A)ALPHA * sum[i][j + e];
                    if (HAS_BIAS) value += (A)BETA * wide(bias[BIAS_INDEX]);
                    out.at[e] = narrow(value);
                }
                *(Pack<T, VECTOR_D>*)(d + (u64)row * N + column1) = out;
            }
        }
    }
}
