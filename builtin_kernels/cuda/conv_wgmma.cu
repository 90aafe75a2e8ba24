// y[n, p, q, f] = bias[f] + sum over r, s, c of w[f, r, s, c] * x[n, p * STRIDE_H - PAD_H + r * DILATION_H,
//                                                                q * STRIDE_W - PAD_W + s * DILATION_W, c]
//
//   x : [images, IN_H, IN_W, SEGMENT];   w : [N, KERNEL_H, KERNEL_W, SEGMENT];   bias : [N];
//   y : [images, OUT_H, OUT_W, N];       all T (f16 or bf16), row-major, SEGMENT channels and N filters of whole 16 bytes
//
// As a product of matrices, by wgmma_tiles.cuh: a row is one of the M pixels of y, a column one of the N filters, and k
// walks the SEGMENTS taps of a filter and of each its channels, in boxes of 64. A box never goes over the end of a tap:
// channels beyond SEGMENT come as zeros, of both operands.
//
// map_a walks over x by TMA's im2col: from the pixel of x where the window of a pixel of y begins it goes on, by the
// strides, to those of the next pixels of y, over the ends of rows and of images; the tap's place within the window is
// added to all of them, and what lies outside of an image, or behind the last one, is zero. If POINTWISE, y's pixels are
// x's, and map_a describes x as [1, M, SEGMENT]. map_b describes w as [N, SEGMENTS, SEGMENT], map_d y as [1, M, N].
//
// A tile is BLOCK_M pixels of BLOCK_N filters; it reads (BLOCK_M + BLOCK_N) * SEGMENTS * SEGMENT * 2 bytes, from L2 but
// for what nobody read before, writes BLOCK_M * BLOCK_N * 2 and does 2 * BLOCK_M * BLOCK_N * SEGMENTS * SEGMENT operations.

constexpr u32 SLICE_M = BLOCK_M / CLUSTER_N, SLICE_N = BLOCK_N / CLUSTER_M;  // what one block loads, for all beside or below it

// Starts the copy of 64 channels, from `channel` on, of what tap (r, s) sees of SLICE_M pixels of y, from `pixel` on.
__device__ __forceinline__ void load_pixels(u32 to, const TensorMap* map, u32 full, u32 pixel, u32 channel, u32 r, u32 s,
                                            u16 blocks) {
    const u32 image = pixel / (OUT_H * OUT_W);
    const int h = (int)(pixel / OUT_W % OUT_H) * STRIDE_H - PAD_H, w = (int)(pixel % OUT_W) * STRIDE_W - PAD_W;
    const u16 right = (u16)(s * DILATION_W), down = (u16)(r * DILATION_H);
    if constexpr (CLUSTER_N > 1)
        asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes.multicast::cluster"
                     " [%0], [%1, {%3, %4, %5, %6}], [%2], {%7, %8}, %9;" ::"r"(to), "l"(map), "r"(full), "r"(channel),
                     "r"(w), "r"(h), "r"(image), "h"(right), "h"(down), "h"(blocks) : "memory");
    else
        asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes"
                     " [%0], [%1, {%3, %4, %5, %6}], [%2], {%7, %8};" ::"r"(to), "l"(map), "r"(full), "r"(channel),
                     "r"(w), "r"(h), "r"(image), "h"(right), "h"(down) : "memory");
}

template <u32 LOADING>
__device__ __forceinline__ void load_rows(u32 to, const TensorMap* map, u32 full, u32 x, u32 y, u32 z, u16 blocks) {
    if constexpr (LOADING > 1)
        load_box_to(blocks, to, map, full, x, y, z);
    else
        load_box(to, map, full, x, y, z);
}

__device__ __forceinline__ void load_step(u32 a, u32 b, const TensorMap* map_a, const TensorMap* map_b, u32 full,
                                          const TilePlace& place, const Place& own, u32 box, u16 below, u16 beside) {
    const u32 tap = box / BOXES_OF_SEGMENT, filter = place.column + own.m * SLICE_N, pixel = place.row + own.n * SLICE_M;
    const u32 channel = box % BOXES_OF_SEGMENT * BLOCK_K;
    const bool behind = SEGMENTS * BOXES_OF_SEGMENT % DEPTH != 0 && tap >= SEGMENTS;  // then no channel and no tap is there
    const u32 of_pixel = behind ? SEGMENT : channel, seen = behind ? 0 : tap;
    a += own.n * SLICE_M * LINE;
    b += own.m * SLICE_N * LINE;
    if constexpr (POINTWISE)
        load_rows<CLUSTER_N>(a, map_a, full, of_pixel, pixel, 0, beside);
    else
        load_pixels(a, map_a, full, pixel, of_pixel, seen / KERNEL_W, seen % KERNEL_W, beside);
    load_rows<CLUSTER_M>(b, map_b, full, channel, tap, filter, below);
}

extern "C" __global__ void __launch_bounds__((CONSUMERS + 1) * WARPGROUP, BLOCKS_PER_MULTIPROCESSOR)
#if CLUSTER_BLOCKS > 1
__cluster_dims__(CLUSTER_BLOCKS, 1, 1)
#endif
conv_wgmma(const __grid_constant__ TensorMap map_a, const __grid_constant__ TensorMap map_b,
           const __grid_constant__ TensorMap map_d, const T* __restrict__ bias, T* __restrict__ d EPILOGUE_PARAMETERS) {
    multiply_tiles(&map_a, &map_b, &map_d, bias, d, Epilogue{EPILOGUE_ARGUMENTS});
}
