// The order in which the tiles of a batch of matrices are made.
//
// Bands of BAND rows of tiles are walked column by column, so that the operands of the tiles of one wave lie in L2
// together. A tile is BLOCK_M x BLOCK_N; CLUSTER_M x CLUSTER_N neighbouring blocks take neighbouring tiles.

struct TilePlace { u32 matrix, row, column; };

constexpr u32 TILES_M = (M + BLOCK_M * CLUSTER_M - 1) / (BLOCK_M * CLUSTER_M);
constexpr u32 TILES_N = (N + BLOCK_N * CLUSTER_N - 1) / (BLOCK_N * CLUSTER_N);
constexpr u32 TILES_OF_MATRIX = TILES_M * TILES_N;
constexpr u32 TILES = TILES_OF_MATRIX * BATCH;

// Where tile `number` of the block (rank_m, rank_n) of a cluster begins.
__device__ __forceinline__ TilePlace tile_place(u32 number, u32 rank_m, u32 rank_n) {
    const u32 matrix = BATCH == 1 ? 0 : number / TILES_OF_MATRIX, within = number - matrix * TILES_OF_MATRIX;
    const u32 band = within / (BAND * TILES_N), left = within - band * (BAND * TILES_N), first = band * BAND;
    const u32 height = TILES_M - first < BAND ? TILES_M - first : BAND;
    return {matrix, ((first + left % height) * CLUSTER_M + rank_m) * BLOCK_M, (left / height * CLUSTER_N + rank_n) * BLOCK_N};
}
