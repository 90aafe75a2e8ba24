// d[i] = ALPHA * op(a[i]) op(b[i]) + BETA * c        for each matrix i of the batch, on tensor cores (sm_80 and later)
//
//   op(a) : [M, K], stored so, or with TRANS_A as [K, M];   op(b) : [K, N], stored so, or with TRANS_B as [N, K]
//   c : at BIAS_INDEX, of any shape that broadcasts to [M, N];   d : [M, N];   all T, row-major, 16-byte aligned
//   STRIDE_A, STRIDE_B: elements from one matrix of the batch to the next
//
// A block makes a tile of BLOCK_M x BLOCK_N with WARPS_M x WARPS_N warps, STAGES tiles of BLOCK_K steps of k being on
// their way to shared memory by cp.async. There an operand lies as it is stored, its rows padded so that what a
// warp loads at once falls into different banks; what lies outside is zero.
//
// One mma.sync multiplies 16 x 8 words by 8 words x 8, a word being two halves or one tf32. With g = lane / 4 and
// q = lane % 4, a lane holds a[g][q], a[g + 8][q], a[g][q + 4], a[g + 8][q + 4] and b[q][g], b[q + 4][g] in words, and
// of the sums [g][2q], [g][2q + 1], [g + 8][2q], [g + 8][2q + 1]. Such 8 x 4-word pieces are what ldmatrix gives, with
// .trans also where halves lie the other way round; tf32 words that do are loaded one by one.
// A tile reads (BLOCK_M + BLOCK_N) * K * sizeof(T) bytes and does 2 * BLOCK_M * BLOCK_N * K operations.

constexpr u32 THREADS = WARPS_M * WARPS_N * 32;
constexpr u32 WARP_M = BLOCK_M / WARPS_M, WARP_N = BLOCK_N / WARPS_N;
constexpr u32 WORD = 4 / sizeof(T);       // elements
constexpr u32 STEP = 8 * WORD;            // of k, of one mma

// An operand's tile of ROWS x BLOCK_K; a row is one of op(a) or a column of op(b).
template <u32 ROWS, u32 EXTENT, u32 VECTOR, bool K_CONTIGUOUS> struct Tile {
    static constexpr u32 STRIDE = K_CONTIGUOUS ? BLOCK_K + 16 / sizeof(T) : ROWS + 8;
    static constexpr u32 ELEMENTS = (K_CONTIGUOUS ? ROWS : BLOCK_K) * STRIDE;
    static constexpr u32 ALONG = (K_CONTIGUOUS ? BLOCK_K : ROWS) / VECTOR;  // vectors of a stored row
    static constexpr u32 VECTORS = ROWS * BLOCK_K / VECTOR;

    // Starts the copy of the tile at (row0, k0) of `from` to shared memory.
    static __device__ __forceinline__ void copy(T* to, const T* __restrict__ from, u32 row0, u32 k0) {
        constexpr u32 BYTES = VECTOR * sizeof(T);
        // short vectors are many, and their addresses, and halves themselves, take registers
#pragma unroll (BYTES < 16 ? 8 : (VECTORS + THREADS - 1) / THREADS)
        for (u32 first = 0; first < VECTORS; first += THREADS) {
            const u32 i = first + threadIdx.x;
            if (VECTORS % THREADS != 0 && i >= VECTORS) break;
            const u32 along = i % ALONG * VECTOR, across = i / ALONG;
            const u32 row = row0 + (K_CONTIGUOUS ? across : along), k = k0 + (K_CONTIGUOUS ? along : across);
            // a vector is inside or outside as a whole: VECTOR divides the stored rows
            const bool inside = row < EXTENT && k < K;
            const T* source = inside ? from + (K_CONTIGUOUS ? (u64)row * K + k : (u64)k * EXTENT + row) : from;
            T* target = to + across * STRIDE + along;
            if constexpr (BYTES == 16)
                asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(target)), "l"(source),
                             "r"(inside ? BYTES : 0u) : "memory");
            else if constexpr (BYTES >= 4)
                asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;" ::"r"(shared_address(target)), "l"(source),
                             "r"(inside ? BYTES : 0u), "n"(BYTES) : "memory");
            else
                *target = inside ? *source : T{0};
        }
    }

    // Loads the 16 x 8 words at (row, k): words of rows +0 and k +0, of rows +8 and k +0, then both with k +4.
    static __device__ __forceinline__ void load(u32 (&words)[4], const T* tile, u32 row, u32 k) {
        const u32 lane = threadIdx.x % 32, down = lane % 16, right = lane / 16;
        if constexpr (K_CONTIGUOUS) {
            const u32 at = shared_address(tile + (row + down) * STRIDE + k + right * 4 * WORD);
            asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                         : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3]) : "r"(at) : "memory");
        } else if constexpr (WORD == 2) {
            // lanes name the rows of k: lanes 0-7 and 8-15 for rows +0 and +8, lanes 16-31 the same with k + 8
            const u32 at = shared_address(tile + (k + lane % 8 + right * 8) * STRIDE + row + down / 8 * 8);
            asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                         : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3]) : "r"(at) : "memory");
        } else {
            const u32* at = (const u32*)tile + (k + lane % 4) * STRIDE + row + lane / 4;
            words[0] = at[0];
            words[1] = at[8];
            words[2] = at[4 * STRIDE];
            words[3] = at[4 * STRIDE + 8];
        }
#ifdef TF32
#pragma unroll
        for (u32 w = 0; w < 4; w++) asm("cvt.rna.tf32.f32 %0, %0;" : "+r"(words[w]));
#endif
    }
};

__device__ __forceinline__ void multiply(float (&sum)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned." MMA " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

extern "C" __global__ void __launch_bounds__(THREADS)
gemm_mma(const T* __restrict__ a, const T* __restrict__ b, const T* __restrict__ bias, T* __restrict__ d) {
    await_predecessors();
    typedef Tile<BLOCK_M, M, VECTOR_A, !TRANS_A> TileA;
    typedef Tile<BLOCK_N, N, VECTOR_B, TRANS_B> TileB;
    constexpr u32 TILES_M = (M + BLOCK_M - 1) / BLOCK_M, TILES = TILES_M * ((N + BLOCK_N - 1) / BLOCK_N);
    constexpr u32 STEPS = (K + BLOCK_K - 1) / BLOCK_K;
    extern __shared__ __align__(16) unsigned char shared[];
    T* const shared_a = (T*)shared;
    T* const shared_b = shared_a + STAGES * TileA::ELEMENTS;
    const u32 matrix = blockIdx.x / TILES, tile = blockIdx.x % TILES;
    const u32 row0 = tile % TILES_M * BLOCK_M, column0 = tile / TILES_M * BLOCK_N;
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const u32 warp_row = warp % WARPS_M * WARP_M, warp_column = warp / WARPS_M * WARP_N;
    a += matrix * STRIDE_A;
    b += matrix * STRIDE_B;
    d += matrix * ((u64)M * N);

    float sum[WARP_M / 16][WARP_N / 8][4];
#pragma unroll
    for (u32 i = 0; i < WARP_M / 16; i++)
#pragma unroll
        for (u32 j = 0; j < WARP_N / 8; j++)
#pragma unroll
            for (u32 e = 0; e < 4; e++) sum[i][j][e] = 0;

    const auto copy = [&](u32 step) {
        if (step < STEPS) {
            TileA::copy(shared_a + step % STAGES * TileA::ELEMENTS, a, row0, step * BLOCK_K);
            TileB::copy(shared_b + step % STAGES * TileB::ELEMENTS, b, column0, step * BLOCK_K);
        }
        asm volatile("cp.async.commit_group;" ::: "memory");  // empty groups too: they keep the count
    };
    // 1. all stages but one on their way
#pragma unroll
    for (u32 step = 0; step < STAGES - 1; step++) copy(step);
    for (u32 step = 0; step < STEPS; step++) {
        // 2. this step has come, and all warps have left the stage of the step before, which is filled again
        asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory");
        __syncthreads();
        copy(step + STAGES - 1);
        const T* tile_a = shared_a + step % STAGES * TileA::ELEMENTS;
        const T* tile_b = shared_b + step % STAGES * TileB::ELEMENTS;
        // 3. its products
#pragma unroll
        for (u32 k = 0; k < BLOCK_K; k += STEP) {
            u32 left[WARP_M / 16][4];
#pragma unroll
            for (u32 i = 0; i < WARP_M / 16; i++) TileA::load(left[i], tile_a, warp_row + 16 * i, k);
#pragma unroll
            for (u32 j = 0; j < WARP_N / 16; j++) {
                u32 right[4];
                TileB::load(right, tile_b, warp_column + 16 * j, k);
#pragma unroll
                for (u32 i = 0; i < WARP_M / 16; i++) {
                    multiply(sum[i][2 * j], left[i], right[0], right[2]);
                    multiply(sum[i][2 * j + 1], left[i], right[1], right[3]);
                }
            }
        }
    }

    // 4. the results
#pragma unroll
    for (u32 i = 0; i < WARP_M / 16; i++)
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            const u32 row = row0 + warp_row + 16 * i + 8 * half + lane / 4;
#pragma unroll
            for (u32 j = 0; j < WARP_N / 8; j++)
#pragma unroll
                for (u32 first = 0; first < 2; first += VECTOR_D) {
                    const u32 column1 = column0 + warp_column + 8 * j + lane % 4 * 2 + first;
                    if (row < M && column1 < N) {
                        Pack<T, VECTOR_D> out;
#pragma unroll
                        for (u32 e = 0; e < VECTOR_D; e++) {
                            const u32 column = column1 + e;
                            float value = (float)ALPHA * sum[i][j][2 * half + first + e];
                            if (HAS_BIAS) value += (float)BETA * to_float(bias[BIAS_INDEX]);
                            out.at[e] = Convert<T>::from(value);
                        }
                        *(Pack<T, VECTOR_D>*)(d + (u64)row * N + column1) = out;
                    }
                }
        }
}
