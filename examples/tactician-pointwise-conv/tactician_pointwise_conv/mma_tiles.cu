// The product on tensor cores: float16 by mma.sync m16n8k16, sums in float32 (sm_80 and later).
//
// WARPS_M x WARPS_P warps share the tile. With g = lane / 4 and q = lane % 4 a lane holds, of 16 filters by 16 channels,
// the pairs of channels [g][2q], [g + 8][2q], [g][2q + 8], [g + 8][2q + 8]; of 16 channels by 8 pixels the pairs of
// channels [2q][g] and [2q + 8][g]; and the sums [g][2q], [g][2q + 1], [g + 8][2q], [g + 8][2q + 1]. ldmatrix brings
// four blocks of 8 x 8 at a time: 16 x 16 of w, and 32 channels by 8 pixels of x, so that odd numbers of 8 pixels fit.

constexpr u32 WARP_M = TILE_M / WARPS_M, WARP_P = TILE_P / WARPS_P, BLOCKS_M = WARP_M / 16, BLOCKS_P = WARP_P / 8;
constexpr u32 ALONG_C = 32;
static_assert(WARPS_M * WARPS_P * 32 == THREADS && WARP_M % 16 == 0 && WARP_P % 8 == 0 && TILE_C % ALONG_C == 0, "whole blocks");
static_assert(VECTOR_Y <= 2, "a lane has two neighbouring sums");

__device__ __forceinline__ void load_filters(u32 (&words)[4], const T* tile_w, u32 row, u32 channel) {
    const u32 lane = threadIdx.x % 32;
    const u32 at = shared_address(tile_w + (row + lane % 16) * PITCH_W + channel + lane / 16 * 8);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3]) : "r"(at) : "memory");
}

__device__ __forceinline__ void load_pixels(u32 (&words)[4], const T* tile_x, u32 channel, u32 column) {
    const u32 lane = threadIdx.x % 32;
    if constexpr (PITCH_X % 8 == 0) {
        const u32 at = shared_address(tile_x + (channel + lane) * PITCH_X + column);
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3]) : "r"(at) : "memory");
    } else {
        // rows of ldmatrix would be misaligned; behind the last pixel there are none to read
        const u32 pixel = TILE_P > PITCH_X && column + lane / 4 >= PITCH_X ? PITCH_X - 1 : column + lane / 4;
        const T* at = tile_x + (channel + lane % 4 * 2) * PITCH_X + pixel;
#pragma unroll
        for (u32 i = 0; i < 4; i++) words[i] = at[8 * i * PITCH_X].bits | (u32)at[(8 * i + 1) * PITCH_X].bits << 16;
    }
}

__device__ __forceinline__ void multiply_add(float (&sum)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

extern "C" __global__ void CLUSTER_SHAPE __launch_bounds__(THREADS, 1)
mma_tiles(const T* __restrict__ x, const T* __restrict__ w, const T* __restrict__ b, T* __restrict__ y,
          float* __restrict__ parts, u32 channels, u32 filters, u32 pixels, u32 in_pixels, u32 in_w, u32 out_w, u32 stride) {
    extern __shared__ __align__(16) unsigned char shared[];
    const Tile tile(Shape{channels, filters, pixels, in_pixels, in_w, out_w, stride});
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 warp_row = warp % WARPS_M * WARP_M, warp_column = warp / WARPS_M * WARP_P;
    prefetch_bias(tile, b);

    float sum[BLOCKS_M][BLOCKS_P][4];
#pragma unroll
    for (u32 i = 0; i < BLOCKS_M; i++)
#pragma unroll
        for (u32 j = 0; j < BLOCKS_P; j++)
#pragma unroll
            for (u32 e = 0; e < 4; e++) sum[i][j][e] = 0.0f;

    each_step(tile, x, w, (T*)shared, [&](const T* tile_w, const T* tile_x) {
#pragma unroll
        for (u32 c = 0; c < TILE_C; c += ALONG_C) {
            u32 left[2][BLOCKS_M][4];
#pragma unroll
            for (u32 i = 0; i < BLOCKS_M; i++) {
                load_filters(left[0][i], tile_w, warp_row + 16 * i, c);
                load_filters(left[1][i], tile_w, warp_row + 16 * i, c + 16);
            }
#pragma unroll
            for (u32 j = 0; j < BLOCKS_P; j++) {
                u32 right[4];
                load_pixels(right, tile_x, c, warp_column + 8 * j);
#pragma unroll
                for (u32 i = 0; i < BLOCKS_M; i++) {
                    multiply_add(sum[i][j], left[0][i], right[0], right[1]);
                    multiply_add(sum[i][j], left[1][i], right[2], right[3]);
                }
            }
        }
    });

    write_sums(tile, b, y, parts, (float*)shared, [&](const Sink& sink) {
#pragma unroll
        for (u32 i = 0; i < BLOCKS_M; i++)
#pragma unroll
            for (u32 j = 0; j < BLOCKS_P; j++)
#pragma unroll
                for (u32 e = 0; e < 4; e += VECTOR_Y)
                    sink(warp_row + 16 * i + e / 2 * 8 + lane / 4, warp_column + 8 * j + lane % 4 * 2 + e % 2, &sum[i][j][e]);
    });
}
