// d[i] = relu(ALPHA * scale_a * scale_b[n] * a[i] b[i]^T + BETA * c)      for each matrix i of the batch, by wgmma (sm_90a)
//
//   a : [M, K];   b : [N, K];   of 8 bits, each of its own type: s8 and u8, or e4m3 and e5m2; rows of whole 16 bytes
//   scale_a : one number;   scale_b : one number, or [N] if SCALE_COLUMNS;   both absent with RAW_SUMS: d is i32
//   c : at BIAS_INDEX, of any shape that broadcasts to [M, N];   d : [M, N];   T (f16, bf16, float or i32), row-major, rows
//   of whole 16 bytes. map_a, map_b and map_d describe a, b and d as tensors [batch, rows, columns].
//
// wgmma_tiles.cuh says who does what, wgmma_8bit.cuh how sums are kept. 8-bit operands can be K-major only: a tile of
// either is one box of 128 of k, and what lies outside of a matrix is zero. An instruction multiplies 32 of k. Scales of
// columns are read once for each tile and wait in shared memory behind the biases, times scale_a.
// A tile reads (BLOCK_M + BLOCK_N) * K bytes, writes BLOCK_M * BLOCK_N * sizeof(T), does 2 * BLOCK_M * BLOCK_N * K operations.
// Where b is stored as [K, N], a transposition into scratch memory goes before.

struct Scales {
    const ScaleA* a;
    const ScaleB* b;
};

// In shared memory behind the tiles: what scales each column, for each consumer, in the place of the biases where there
// are none; where it comes from; and, where all columns have the same, that, for each consumer.
__device__ __forceinline__ u32 kept_scales(const Shared& at) { return at.bias + (BIAS_ROW ? 4 * CONSUMERS * BLOCK_N : 0); }
__device__ __forceinline__ u32 kept_sources(const Shared& at) {
    return at.bias + (BIAS_ROW && SCALE_COLUMNS ? 8 : 4) * CONSUMERS * BLOCK_N;
}
__device__ __forceinline__ u32 kept_scale(const Shared& at, u32 consumer) { return kept_sources(at) + 16 + 4 * consumer; }

__device__ __forceinline__ void leave_sources(const ScaleA* a, const ScaleB* b) {
    extern __shared__ __align__(1024) unsigned char raw[];  // the same as in multiply_tiles
    const u32 to = kept_sources(Shared(shared_address(raw)));
    asm volatile("st.shared.v2.b64 [%0], {%1, %2};" ::"r"(to), "l"(a), "l"(b) : "memory");
}

// What the products of a column are multiplied by.
__device__ __forceinline__ float scale_of_column(const Shared& at, u32 column) {
    if (RAW_SUMS) return 1;
    Scales from;
    asm volatile("ld.shared.v2.b64 {%0, %1}, [%2];" : "=l"(from.a), "=l"(from.b) : "r"(kept_sources(at)) : "memory");
    float scale = ALPHA;
    if (HAS_SCALE_A) scale *= to_float(*from.a);
    if (HAS_SCALE_B) scale *= to_float(from.b[SCALE_COLUMNS ? column : 0]);
    return scale;
}

__device__ __forceinline__ void keep_scales(const Shared& at, const TilePlace& place, u32 consumer, u32 t) {
    if constexpr (SCALED)
        for (u32 i = t; i < (SCALE_COLUMNS ? BLOCK_N : 1); i += WARPGROUP) {
            const float scale = place.column + i < N ? scale_of_column(at, place.column + i) : 0;
            const u32 to = SCALE_COLUMNS ? kept_scales(at) + 4 * (consumer * BLOCK_N + i) : kept_scale(at, consumer);
            asm volatile("st.shared.f32 [%0], %1;" ::"r"(to), "f"(scale) : "memory");
        }
}

__device__ __forceinline__ Pack<float, 2> scale_pair(const Shared& at, u32 consumer, u32 column) {
    if (RAW_SUMS) return {{1, 1}};
    if (SCALE_COLUMNS) return shared_pair(kept_scales(at) + 4 * (consumer * BLOCK_N + column));
    float scale;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(scale) : "r"(kept_scale(at, consumer)) : "memory");
    return {{scale, scale}};
}

// Loads a slice, number `slice` of SLICES, of an operand's tile of EXTENT rows from `at` on, to the blocks `mask`.
template <u32 EXTENT, u32 SLICES>
__device__ __forceinline__ void load_slice(u32 to, const TensorMap* map, u32 full, u32 at, u32 k, u32 matrix, u32 slice, u16 mask) {
    constexpr u32 SHARE = EXTENT / SLICES;
    if constexpr (SLICES > 1)
        load_box_to(mask, to + slice * SHARE * LINE, map, full, k, at + slice * SHARE, matrix);
    else
        load_box(to, map, full, k, at, matrix);
}

__device__ __forceinline__ void load_step(u32 a, u32 b, const TensorMap* map_a, const TensorMap* map_b, u32 full,
                                          const TilePlace& place, const Place& own, u32 box, u16 below, u16 beside) {
    const u32 matrix_a = STRIDE_A ? place.matrix : 0, matrix_b = STRIDE_B ? place.matrix : 0, k = box * BLOCK_K;
    load_slice<BLOCK_M, CLUSTER_N>(a, map_a, full, place.row, k, matrix_a, own.n, beside);
    load_slice<BLOCK_N, CLUSTER_M>(b, map_b, full, place.column, k, matrix_b, own.m, below);
}

extern "C" __global__ void __launch_bounds__((CONSUMERS + 1) * WARPGROUP, BLOCKS_PER_MULTIPROCESSOR)
#if CLUSTER_BLOCKS > 1
__cluster_dims__(CLUSTER_BLOCKS, 1, 1)
#endif
gemm_wgmma_8bit(const __grid_constant__ TensorMap map_a, const __grid_constant__ TensorMap map_b,
                const __grid_constant__ TensorMap map_d, const ScaleA* __restrict__ scale_a,
                const ScaleB* __restrict__ scale_b, const T* __restrict__ bias, T* __restrict__ d) {
    if (SCALED && threadIdx.x == 0) leave_sources(scale_a, scale_b);  // all threads meet before they read them
    multiply_tiles(&map_a, &map_b, &map_d, bias, d);
}
