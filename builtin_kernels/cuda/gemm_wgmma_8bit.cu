// d[i] = relu(ALPHA * scale_a * scale_b[n] * a[i] b[i]^T + BETA * c)      for each matrix i of the batch, by wgmma (sm_90a)
//
//   a : [M, K];   b : [N, K];   of 8 bits, each of its own type: s8 and u8, or e4m3 and e5m2; rows of whole 16 bytes
//   scale_a : one number;   scale_b : one number, or [N] if SCALE_COLUMNS;   both absent with RAW_SUMS: d is i32
//   c : at BIAS_INDEX, of any shape that broadcasts to [M, N];   d : [M, N];   T (f16, bf16, float or i32), row-major, rows
//   of whole 16 bytes. map_a, map_b and map_d describe a, b and d as tensors [batch, rows, columns].
//
// wgmma_tiles.cuh says who does what, wgmma_8bit.cuh how sums are kept. 8-bit operands can be K-major only: a tile of
// either is one box of 128 of k, and what lies outside of a matrix is zero. An instruction multiplies 32 of k. scale_a
// times the scales of a tile's columns wait in shared memory beside the biases.
// A tile reads (BLOCK_M + BLOCK_N) * K bytes, writes BLOCK_M * BLOCK_N * sizeof(T), does 2 * BLOCK_M * BLOCK_N * K operations.
// Where b is stored as [K, N], a transposition into scratch memory goes before.

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
    multiply_tiles(&map_a, &map_b, &map_d, bias, d, Epilogue{scale_a, scale_b});
}
