// d[i] = ALPHA * op(a[i]) op(b[i]) + BETA * c        for each matrix i of the batch, by wgmma (sm_90a)
//
//   op(a) : [M, K], stored so, or with TRANS_A as [K, M];   op(b) : [K, N], stored so, or with TRANS_B as [N, K]
//   c : at BIAS_INDEX, of any shape that broadcasts to [M, N];   d : [M, N];   all T (f16 or bf16), row-major, rows of
//   whole 16 bytes. map_a, map_b and map_d describe a, b and d as tensors [batch, rows, columns].
//
// wgmma_tiles.cuh says who does what. Here boxes of both operands come by TMA: a K-major tile is one box of 64 of k, the
// others are a box for each 64 of m or n. What lies outside of a matrix is zero.
// A tile reads (BLOCK_M + BLOCK_N) * K * 2 bytes, writes BLOCK_M * BLOCK_N * 2 and does 2 * BLOCK_M * BLOCK_N * K operations.

// Loads a slice, number `slice` of SLICES, of an operand's tile of EXTENT rows (or columns) from `at` on, to the blocks
// `mask`. K_MAJOR tiles are one box and are cut along EXTENT; the others are a box for each 64 of EXTENT, and are cut
// between boxes or, where that does not work out, along k.
template <bool K_MAJOR, u32 EXTENT, u32 SLICES>
__device__ __forceinline__ void load_slice(u32 to, const TensorMap* map, u32 full, u32 at, u32 k, u32 matrix, u32 slice, u16 mask) {
    constexpr u32 BOXES = K_MAJOR ? 1 : EXTENT / 64, WHOLE = K_MAJOR || BOXES % SLICES == 0;
    constexpr u32 MINE = K_MAJOR || !WHOLE ? BOXES : BOXES / SLICES;  // boxes, or parts of boxes, of a slice
#pragma unroll
    for (u32 i = 0; i < MINE; i++) {
        const u32 box = K_MAJOR || !WHOLE ? i : slice * MINE + i;
        const u32 along = at + (K_MAJOR ? slice * (EXTENT / SLICES) : box * 64);
        const u32 from_k = k + (WHOLE ? 0 : slice * (BLOCK_K / SLICES));
        const u32 target = to + (K_MAJOR ? slice * (EXTENT / SLICES) * LINE
                                         : box * CHUNK + (WHOLE ? 0 : slice * (BLOCK_K / SLICES) * LINE));
        const u32 x = K_MAJOR ? from_k : along, y = K_MAJOR ? along : from_k;
        if constexpr (SLICES > 1)
            load_box_to(mask, target, map, full, x, y, matrix);
        else
            load_box(target, map, full, x, y, matrix);
    }
}

__device__ __forceinline__ void load_step(u32 a, u32 b, const TensorMap* map_a, const TensorMap* map_b, u32 full,
                                          const TilePlace& place, const Place& own, u32 box, u16 below, u16 beside) {
    const u32 matrix_a = STRIDE_A ? place.matrix : 0, matrix_b = STRIDE_B ? place.matrix : 0, k = box * BLOCK_K;
    load_slice<!TRANS_A, BLOCK_M, CLUSTER_N>(a, map_a, full, place.row, k, matrix_a, own.n, beside);
    load_slice<TRANS_B, BLOCK_N, CLUSTER_M>(b, map_b, full, place.column, k, matrix_b, own.m, below);
}

extern "C" __global__ void __launch_bounds__((CONSUMERS + 1) * WARPGROUP, BLOCKS_PER_MULTIPROCESSOR)
#if CLUSTER_BLOCKS > 1
__cluster_dims__(CLUSTER_BLOCKS, 1, 1)
#endif
gemm_wgmma(const __grid_constant__ TensorMap map_a, const __grid_constant__ TensorMap map_b,
           const __grid_constant__ TensorMap map_d, const T* __restrict__ bias, T* __restrict__ d EPILOGUE_PARAMETERS) {
    multiply_tiles(&map_a, &map_b, &map_d, bias, d, Epilogue{EPILOGUE_ARGUMENTS});
}
