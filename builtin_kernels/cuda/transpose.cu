// y[b, i, j] = x[b, j, i]: a permutation that changes the innermost dimension, through a tile of shared memory.
//
//   x : T, element (b, y, x) at SOURCE_BATCH(b) + y * SOURCE_ROW + x     x < WIDTH, y < HEIGHT
//   y : T, element (b, x, y) at TARGET_BATCH(b) + x * TARGET_ROW + y     moves 2 * count * sizeof(T) bytes
//   a block moves one TILE x TILE tile with ROWS warps: warps read rows along x and write rows along y
//   PAD elements behind each row of the tile keep a column's 32 elements in 32 banks

extern "C" __global__ void __launch_bounds__(32 * ROWS) transpose(const T* __restrict__ source, T* __restrict__ target) {
    __shared__ T tile[TILE][TILE + PAD];
    const u32 block = blockIdx.x;
    const u32 x0 = block % TILES_X * TILE, y0 = block / TILES_X % TILES_Y * TILE;
    const Index batch = block / (TILES_X * TILES_Y);
    const u32 lane = threadIdx.x % 32, row = threadIdx.x / 32;

    // 1. rows of the source into the tile
    const T* from = source + SOURCE_BATCH(batch);
#pragma unroll
    for (u32 y = 0; y < TILE; y += ROWS)
#pragma unroll
        for (u32 x = 0; x < TILE; x += 32)
            if (y0 + y + row < HEIGHT && x0 + x + lane < WIDTH)
                tile[y + row][x + lane] = from[(Index)(y0 + y + row) * SOURCE_ROW + (x0 + x + lane)];
    __syncthreads();

    // 2. columns of the tile into rows of the target
    T* to = target + TARGET_BATCH(batch);
#pragma unroll
    for (u32 x = 0; x < TILE; x += ROWS)
#pragma unroll
        for (u32 y = 0; y < TILE; y += 32)
            if (x0 + x + row < WIDTH && y0 + y + lane < HEIGHT)
                to[(Index)(x0 + x + row) * TARGET_ROW + (y0 + y + lane)] = tile[y + lane][x + row];
}
