// y[b, i, j] = x[b, j, i]: a permutation that changes the innermost dimension, through a tile of shared memory.
//
//   x : T, element (b, y, x) at SOURCE_BATCH(b) + y * SOURCE_ROW + x     x < WIDTH, y < HEIGHT
//   y : T, element (b, x, y) at TARGET_BATCH(b) + x * TARGET_ROW + y     moves 2 * count * sizeof(T) bytes
//   a block moves TILE_X x TILE_Y elements; ACROSS divides WIDTH and DOWN divides HEIGHT, and all strides of their side
//   a thread reads STEPS patches of ACROSS x DOWN elements as DOWN vectors along x, all before the first use, turns each
//   in registers and writes it to shared memory as ACROSS vectors along y; then neighbouring threads write
//   neighbouring vectors of a row of the target
//   blocks that run together form GROUP rows of tiles, so that they fill neighbouring lines on both sides

typedef Pack<T, ACROSS> Across;
typedef Pack<T, DOWN> Down;
constexpr u32 PATCHES_X = TILE_X / ACROSS, PATCHES_Y = TILE_Y / DOWN;
constexpr u32 STEPS = PATCHES_X * PATCHES_Y / THREADS;

// The place of vector `chunk` of the target's row `row`. A warp writes rows that lie ACROSS apart; the exclusive or
// spreads them over the banks.
__device__ __forceinline__ u32 place(u32 row, u32 chunk) {
    return row * PATCHES_Y + (chunk ^ (row / ACROSS * SPREAD % PATCHES_Y));
}

extern "C" __global__ void __launch_bounds__(THREADS) transpose(const T* __restrict__ source, T* __restrict__ target) {
    await_predecessors();
    __shared__ Down tile[TILE_X * PATCHES_Y];
    const u32 number = blockIdx.x % (TILES_X * TILES_Y);
    const u32 first = number / (GROUP * TILES_X) * GROUP;
    const u32 group = TILES_Y - first < GROUP ? TILES_Y - first : GROUP;
    const u32 within = number - first * TILES_X;
    const u32 x0 = within / group * TILE_X, y0 = (first + within % group) * TILE_Y;
    [[maybe_unused]] const Index batch = blockIdx.x / (TILES_X * TILES_Y);

    // 1. patches of the source
    const T* from = source + SOURCE_BATCH(batch);
    Across patch[STEPS][DOWN];
#pragma unroll
    for (u32 s = 0; s < STEPS; s++) {
        const u32 i = threadIdx.x + s * THREADS;
        const u32 x = x0 + i % PATCHES_X * ACROSS, y = y0 + i / PATCHES_X * DOWN;
        if (x < WIDTH && y < HEIGHT)
#pragma unroll
            for (u32 r = 0; r < DOWN; r++) patch[s][r] = *(const Across*)(from + ((Index)(y + r) * SOURCE_ROW + x));
    }

    // 2. their columns into rows of the tile
#pragma unroll
    for (u32 s = 0; s < STEPS; s++) {
        const u32 i = threadIdx.x + s * THREADS;
#pragma unroll
        for (u32 k = 0; k < ACROSS; k++) {
            Down column;
#pragma unroll
            for (u32 r = 0; r < DOWN; r++) column.at[r] = patch[s][r].at[k];
            tile[place(i % PATCHES_X * ACROSS + k, i / PATCHES_X)] = column;
        }
    }
    __syncthreads();

    // 3. rows of the tile into rows of the target
    T* to = target + TARGET_BATCH(batch);
#pragma unroll
    for (u32 s = 0; s < STEPS * ACROSS; s++) {
        const u32 i = threadIdx.x + s * THREADS;
        const u32 x = x0 + i / PATCHES_Y, y = y0 + i % PATCHES_Y * DOWN;
        if (x < WIDTH && y < HEIGHT)
            *(Down*)(to + ((Index)x * TARGET_ROW + y)) = tile[place(i / PATCHES_Y, i % PATCHES_Y)];
    }
}
