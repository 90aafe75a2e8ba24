"""The kernels: a tiled matrix product, and the sum of its parts where k is split.

d[i] = alpha * op(a[i]) @ op(b[i]) + beta * c        for each matrix i of the batch

a : T[batch, M, K], or T[batch, K, M] with TRANS_A    b : T[batch, K, N], or T[batch, N, K] with TRANS_B
c : T, any shape that broadcasts to [M, N]            d : T[batch, M, N]        all row-major; T is fp16 or bf16

One program per tile of BLOCK_M x BLOCK_N, per matrix of the batch, and per part of k; it goes along its part in steps
of BLOCK_K, whose tiles Triton brings to shared memory num_stages ahead. Sums are float32, on tensor cores. Programs
with neighbouring numbers share columns of b over GROUP_M rows of tiles, so that these come from the L2 cache.

Moves, from L2: 2 * batch * M * N * K * (1 / BLOCK_M + 1 / BLOCK_N) bytes, and 2 * batch * M * N to write. With SPLIT_K
of 2 or more, d holds float32[SPLIT_K, batch, M, N] parts, which ``add_parts`` reads again: 8 * SPLIT_K * batch * M * N
bytes more.

Shapes, strides and scale factors are constants of the compiled kernel: whole tiles are loaded without masks, and how
far addresses are aligned is known.
"""

import triton
import triton.language as tl


@triton.jit
def gemm(
    a,
    b,
    c,
    d,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    STRIDE_A: tl.constexpr,
    STRIDE_B: tl.constexpr,
    TRANS_A: tl.constexpr,
    TRANS_B: tl.constexpr,
    ALPHA: tl.constexpr,
    BETA: tl.constexpr,
    HAS_C: tl.constexpr,
    C_ROW: tl.constexpr,
    C_COLUMN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    SPLIT_K: tl.constexpr,
):
    """Compute one tile of d or, with SPLIT_K of 2 or more, of one part of it.

    The grid is (tiles, batch, SPLIT_K). STRIDE_A and STRIDE_B are the elements from one matrix of the batch to the
    next, 0 where all share one; C_ROW and C_COLUMN those from one row or column of c to the next, 0 where it
    broadcasts.
    """
    # 1. which tile: columns of tiles within groups of GROUP_M rows
    TILES_M: tl.constexpr = (M + BLOCK_M - 1) // BLOCK_M
    TILES_N: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    tile = tl.program_id(0)
    group = tile // (GROUP_M * TILES_N)
    within = tile % (GROUP_M * TILES_N)
    height = tl.minimum(TILES_M - group * GROUP_M, GROUP_M)
    rows = (group * GROUP_M + within % height) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = (within // height) * BLOCK_N + tl.arange(0, BLOCK_N)
    batch = tl.program_id(1).to(tl.int64)

    # 2. its part of k
    STEPS: tl.constexpr = (K + BLOCK_K * SPLIT_K - 1) // (BLOCK_K * SPLIT_K)
    WHOLE_K: tl.constexpr = K % (BLOCK_K * SPLIT_K) == 0
    A_ROW: tl.constexpr = 1 if TRANS_A else K
    A_STEP: tl.constexpr = M if TRANS_A else 1
    B_STEP: tl.constexpr = 1 if TRANS_B else N
    B_COLUMN: tl.constexpr = K if TRANS_B else 1
    depth = tl.program_id(2) * (STEPS * BLOCK_K) + tl.arange(0, BLOCK_K)
    at_a = a + batch * STRIDE_A + (rows[:, None] * A_ROW + depth[None, :] * A_STEP)
    at_b = b + batch * STRIDE_B + (depth[:, None] * B_STEP + columns[None, :] * B_COLUMN)

    # 3. the sum
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for _ in range(STEPS):
        left = load(at_a, rows < M, depth < K, M % BLOCK_M == 0, WHOLE_K)
        right = load(at_b, depth < K, columns < N, WHOLE_K, N % BLOCK_N == 0)
        total = tl.dot(left, right, total)
        depth += BLOCK_K
        at_a += BLOCK_K * A_STEP
        at_b += BLOCK_K * B_STEP

    # 4. scale, add and store
    inside = (rows < M)[:, None] & (columns < N)[None, :]
    matrix = batch
    if SPLIT_K == 1:
        at_c = c + (rows[:, None] * C_ROW + columns[None, :] * C_COLUMN)
        total = finish(total, at_c, inside, ALPHA, BETA, HAS_C)
    else:
        matrix += tl.program_id(2).to(tl.int64) * tl.num_programs(1)
    at_d = d + matrix * (M * N) + (rows[:, None] * N + columns[None, :])
    tl.store(at_d, total.to(d.dtype.element_ty), mask=inside)


@triton.jit
def add_parts(
    parts,
    c,
    d,
    M: tl.constexpr,
    N: tl.constexpr,
    SIZE: tl.constexpr,
    ALPHA: tl.constexpr,
    BETA: tl.constexpr,
    HAS_C: tl.constexpr,
    C_ROW: tl.constexpr,
    C_COLUMN: tl.constexpr,
    SPLIT_K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Compute BLOCK consecutive elements of d, which has SIZE: the sum of the parts float32[SPLIT_K, SIZE], and c."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < SIZE
    total = tl.zeros((BLOCK,), tl.float32)
    for part in tl.static_range(SPLIT_K):
        total += tl.load(parts + (part * SIZE + index), mask=inside, other=0.0)
    row = index // N % M
    at_c = c + (row * C_ROW + index % N * C_COLUMN)
    total = finish(total, at_c, inside, ALPHA, BETA, HAS_C)
    tl.store(d + index, total.to(d.dtype.element_ty), mask=inside)


@triton.jit
def load(pointers, inside_rows, inside_columns, WHOLE_ROWS: tl.constexpr, WHOLE_COLUMNS: tl.constexpr):
    """Load a tile; what lies outside of the matrix is 0. A side that only has whole tiles needs no mask."""
    if WHOLE_ROWS and WHOLE_COLUMNS:
        tile = tl.load(pointers)
    elif WHOLE_ROWS:
        tile = tl.load(pointers, mask=inside_columns[None, :], other=0.0)
    elif WHOLE_COLUMNS:
        tile = tl.load(pointers, mask=inside_rows[:, None], other=0.0)
    else:
        tile = tl.load(pointers, mask=inside_rows[:, None] & inside_columns[None, :], other=0.0)
    return tile


@triton.jit
def finish(total, at_c, inside, ALPHA: tl.constexpr, BETA: tl.constexpr, HAS_C: tl.constexpr):
    """Return ALPHA * total + BETA * c in float32."""
    if ALPHA != 1.0:
        total = total * ALPHA
    if HAS_C:
        added = tl.load(at_c, mask=inside, other=0.0).to(tl.float32)
        total += added if BETA == 1.0 else added * BETA
    return total
