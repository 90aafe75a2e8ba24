// y[b, h] = softmax(cap(scale * q[b, h] k[b, g]^T) + mask[b, h]) v[b, g]   on tensor cores (sm_80 and later)
//
//   q : [QUERIES, HEAD_SIZE], k : [KEYS, HEAD_SIZE], v : [KEYS, VALUE_SIZE], y : [QUERIES, VALUE_SIZE], all T, for
//       each batch b and head h; g = h / KV_GROUP. x_BATCH, x_HEAD, x_ROW: elements from one to the next; all
//       multiples of 8, so that rows start at 16 bytes
//   mask : TM, added (MASK_ADDS) or true where a key takes part; MASK_x: elements from one to the next, or 0
//   lengths : with HAS_LENGTHS the number of keys of each batch.   cap(x) = SOFTCAP * tanh(x / SOFTCAP), or x
//   CAUSAL: query i takes keys up to i, or up to i + lengths[b] - QUERIES.   A row without any key is 0.
//
// A block makes BLOCK_Q rows of y: the queries of one head or, with PACKED, of that many heads in turn that share
// their keys. Tiles of BLOCK_K keys and values go past them through shared memory, by cp.async, with a running softmax:
// what was summed under an old maximum is scaled to the new one. WARPS_Q warps share the rows; WARPS_K of them share the
// keys of a tile and add up at the end. Rows in shared memory are 8 elements longer than a multiple of 16, so that the
// 8 rows that ldmatrix takes at once lie in different banks; what lies outside is zero.
//
// One mma.sync multiplies 16 x 16 by 16 x 8. With g = lane / 4 and q = lane % 4, a lane holds of the sums
// [g][2q], [g][2q + 1], [g + 8][2q], [g + 8][2q + 1], which is how the left operand of the next product is held
// too: weights go there without leaving their registers, rounded to T.
// A block reads BLOCK_Q * HEAD_SIZE + KEYS * (HEAD_SIZE + VALUE_SIZE) elements, writes BLOCK_Q * VALUE_SIZE and does
// 2 * BLOCK_Q * KEYS * (HEAD_SIZE + VALUE_SIZE) operations; with CAUSAL only tiles that some row sees are read.

constexpr u32 THREADS = WARPS_Q * WARPS_K * 32;
constexpr u32 WARP_ROWS = BLOCK_Q / WARPS_Q, WARP_KEYS = BLOCK_K / WARPS_K;
constexpr u32 PARTS = WARP_ROWS / 16;                       // of 16 rows, of a warp
constexpr u32 VECTOR = 16 / sizeof(T);
constexpr u32 HEAD_PADDED = (HEAD_SIZE + 15) / 16 * 16, VALUE_PADDED = (VALUE_SIZE + 15) / 16 * 16;
constexpr u32 HEAD_STRIDE = HEAD_PADDED + VECTOR, VALUE_STRIDE = VALUE_PADDED + VECTOR;
constexpr u32 ROWS = QUERIES * PACKED, TILES = (ROWS + BLOCK_Q - 1) / BLOCK_Q;
constexpr u32 AHEAD = 2 * STAGES - 1;                       // tiles on their way, of keys and values in turn
constexpr bool ADJUSTED = HAS_SOFTCAP || (HAS_MASK && MASK_ADDS);  // scores are scaled before the maximum
#define LOG2_E 1.4426950408889634f
#define TO_LOG2 (ADJUSTED ? 1.0f : (float)SCALE * LOG2_E)

__device__ __forceinline__ float infinite() { return __int_as_float(0x7f800000); }

__device__ __forceinline__ float exp2_approximate(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// SOFTCAP * tanh(x / SOFTCAP) by one exponential, exact to the last bits of SOFTCAP.
__device__ __forceinline__ float cap(float x) {
    constexpr float CAP = HAS_SOFTCAP ? (float)SOFTCAP : 1.0f;
    return CAP - __fdividef(2 * CAP, 1 + exp2_approximate(x * (2 * LOG2_E / CAP)));
}

__device__ __forceinline__ u32 packed(float low, float high) {
    u32 pair;
    asm(PACK " %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

// sum += a b
__device__ __forceinline__ void multiply(float (&sum)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned." MMA " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// 16 x 16 elements at (row, column): of rows +0 and columns +0, rows +8, columns +8, both.
__device__ __forceinline__ void load(u32 (&words)[4], const T* tile, u32 stride, u32 row, u32 column) {
    const u32 lane = threadIdx.x % 32, at = shared_address(tile + (row + lane % 16) * stride + column + lane / 16 * 8);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3]) : "r"(at) : "memory");
}

// The same 16 x 16 elements transposed: of columns +0 and rows +0, columns +8, rows +8, both.
__device__ __forceinline__ void load_transposed(u32 (&words)[4], const T* tile, u32 stride, u32 row, u32 column) {
    const u32 lane = threadIdx.x % 32;
    const u32 at = shared_address(tile + (row + lane % 8 + lane / 16 * 8) * stride + column + lane / 8 % 2 * 8);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3]) : "r"(at) : "memory");
}

// Starts the copy of COUNT rows of SIZE elements from row0 on; offset(row) says where a row begins. From limit on
// rows are 0.
template <u32 COUNT, u32 SIZE, u32 STRIDE, typename Offset>
__device__ __forceinline__ void copy_rows(T* to, const T* __restrict__ from, u32 row0, u32 limit,
                                          const Offset& offset) {
    constexpr u32 ALONG = (STRIDE - VECTOR) / VECTOR, VECTORS = COUNT * ALONG;
    // whole rows at once: then a thread stays in its column
    constexpr bool STRAIGHT = THREADS % ALONG == 0 && VECTORS % THREADS == 0;
#pragma unroll
    for (u32 first = 0; first < VECTORS; first += THREADS) {
        const u32 i = first + threadIdx.x;
        if (VECTORS % THREADS != 0 && i >= VECTORS) break;
        const u32 column = (STRAIGHT ? threadIdx.x : i) % ALONG * VECTOR;
        const u32 row = STRAIGHT ? threadIdx.x / ALONG + first / ALONG : i / ALONG;
        const bool inside = row0 + row < limit && column < SIZE;
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to + row * STRIDE + column)),
                     "l"(inside ? from + offset(row0 + row) + column : from), "r"(inside ? 16u : 0u) : "memory");
    }
}

__device__ __forceinline__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// The maximum or the sum of the four lanes that share a row.
template <bool MAXIMUM> __device__ __forceinline__ float of_row(float x) {
#pragma unroll
    for (u32 lane = 1; lane < 4; lane *= 2) {
        const float other = __shfl_xor_sync(~0u, x, lane);
        x = MAXIMUM ? fmaxf(x, other) : x + other;
    }
    return x;
}

__device__ __forceinline__ float masked(float score, u8 taken) { return taken ? score : -infinite(); }
template <typename Number> __device__ __forceinline__ float masked(float score, Number added) {
    constexpr float LARGEST = 3.402823466e38f;
    const float x = to_float(added);
    // a finite number, however low, stays one: rows of nothing else have weights all the same
    return score + (x == -infinite() ? x : fmaxf(x * LOG2_E, -LARGEST));
}

// Scales and caps the scores where they have to be, and applies the mask; mask_at is where the rows begin in it, key
// the first of the lane's keys.
template <u32 PARTS, u32 COLUMNS>
__device__ __forceinline__ void adjust(float (&score)[PARTS][COLUMNS][4], const TM* __restrict__ mask,
                                       const u32 (&mask_at)[PARTS][2], u32 key) {
    constexpr bool PER_ROW = MASK_QUERY != 0 || (MASK_HEAD != 0 && PACKED > 1);
#pragma unroll
    for (u32 j = 0; j < COLUMNS; j++) {
        Pack<TM, 2> pair;
#pragma unroll
        for (u32 i = 0; i < PARTS; i++)
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                if (HAS_MASK && (PER_ROW || (i == 0 && half == 0))) {
                    const TM* const at = mask + mask_at[i][half] + (key + 8 * j) * MASK_KEY;
                    if (MASK_VECTOR == 2) {
                        if (key + 8 * j < KEYS) pair = *(const Pack<TM, 2>*)at;
                    } else {
#pragma unroll
                        for (u32 e = 0; e < 2; e++)
                            if (key + 8 * j + e < KEYS) pair.at[e] = at[e * MASK_KEY];
                    }
                }
#pragma unroll
                for (u32 e = 0; e < 2; e++) {
                    float& x = score[i][j][2 * half + e];
                    if (HAS_SOFTCAP) x = cap(x * (float)SCALE) * LOG2_E;
                    else if (ADJUSTED) x *= (float)SCALE * LOG2_E;
                    if (HAS_MASK) x = masked(x, pair.at[e]);
                }
            }
    }
}

// One block at least: told less, the compiler spills to fit more of them.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
attention_mma(const T* __restrict__ q, const T* __restrict__ k, const T* __restrict__ v, const TM* __restrict__ mask,
              const i64* __restrict__ lengths, T* __restrict__ y) {
    await_predecessors();
    extern __shared__ __align__(16) unsigned char shared[];
    T* const shared_q = (T*)shared;
    T* const shared_k = shared_q + BLOCK_Q * HEAD_STRIDE;
    T* const shared_v = shared_k + STAGES * BLOCK_K * HEAD_STRIDE;

    // 1. which rows: SECTION heads at a time, whose keys fit into the L2 cache; of those the last rows first, as with
    //    CAUSAL they have the most work
    const u32 section = blockIdx.x / (SECTION * TILES) * SECTION, within = blockIdx.x % (SECTION * TILES);
    const u32 together = min((u32)SECTION, PAIRS - section);
    const u32 row0 = (TILES - 1 - within / together) * BLOCK_Q, pair = section + within % together;
    const u32 batch = pair / (HEADS / PACKED), head = pair % (HEADS / PACKED) * PACKED;
    const auto query_of = [](u32 row) { return row / PACKED; };
    const auto head_of = [head](u32 row) { return head + row % PACKED; };
    q += batch * Q_BATCH;
    k += batch * K_BATCH + head / KV_GROUP * K_HEAD;
    v += batch * V_BATCH + head / KV_GROUP * V_HEAD;
    y += batch * Y_BATCH;
    if (HAS_MASK) mask += batch * MASK_BATCH;

    // 2. which keys
    i32 keys = KEYS, behind = 0;  // query i takes keys up to i + behind
    if (HAS_LENGTHS) {
        const i64 length = lengths[batch];
        keys = (i32)max(0ll, min(length, (i64)KEYS));
        behind = (i32)max(-(i64)QUERIES, min(length, (i64)KEYS + QUERIES) - QUERIES);
    }
    const i32 last_query = query_of(min(row0 + BLOCK_Q, ROWS) - 1);
    const i32 end = CAUSAL ? max(0, min(keys, last_query + behind + 1)) : keys;
    const u32 steps = ((u32)end + BLOCK_K - 1) / BLOCK_K;

    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const u32 warp_row = warp / WARPS_K * WARP_ROWS, warp_key = warp % WARPS_K * WARP_KEYS;
    const i32 first_of_warp = query_of(row0 + warp_row);
    const i32 last_of_warp = query_of(min(row0 + warp_row + WARP_ROWS, ROWS) - 1);

    // tile 2i is that of keys i, tile 2i + 1 that of values i
    const auto copy = [&](u32 tile) {
        const u32 step = tile / 2, stage = step % STAGES;
        if (step < steps) {
            if (tile % 2 == 0)
                copy_rows<BLOCK_K, HEAD_SIZE, HEAD_STRIDE>(shared_k + stage * BLOCK_K * HEAD_STRIDE, k, step * BLOCK_K,
                                                           keys, [](u32 row) { return row * K_ROW; });
            else
                copy_rows<BLOCK_K, VALUE_SIZE, VALUE_STRIDE>(shared_v + stage * BLOCK_K * VALUE_STRIDE, v,
                                                             step * BLOCK_K, keys, [](u32 row) { return row * V_ROW; });
        }
        commit();  // empty groups too: they keep the count
    };
    const auto arrive = [] {
        asm volatile("cp.async.wait_group %0;" ::"n"(AHEAD - 1) : "memory");
        __syncthreads();
    };

    // 3. the queries and the first tiles on their way
    copy_rows<BLOCK_Q, HEAD_SIZE, HEAD_STRIDE>(shared_q, q, row0, ROWS, [&](u32 row) {
        return query_of(row) * Q_ROW + head_of(row) * Q_HEAD;
    });
#pragma unroll
    for (u32 tile = 0; tile < AHEAD; tile++) copy(tile);

    float sum[PARTS][VALUE_PADDED / 8][4], highest[PARTS][2], total[PARTS][2];
    u32 mask_at[PARTS][2];
#pragma unroll
    for (u32 i = 0; i < PARTS; i++) {
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            highest[i][half] = -infinite();
            total[i][half] = 0;
            const u32 row = min(row0 + warp_row + 16 * i + 8 * half + lane / 4, ROWS - 1);
            mask_at[i][half] = head_of(row) * MASK_HEAD + query_of(row) * MASK_QUERY;
        }
#pragma unroll
        for (u32 j = 0; j < VALUE_PADDED / 8; j++)
#pragma unroll
            for (u32 e = 0; e < 4; e++) sum[i][j][e] = 0;
    }
    u32 held[HOLD_QUERIES ? HEAD_PADDED / 16 : 1][PARTS][4];
    if (HOLD_QUERIES) {
        arrive();
#pragma unroll
        for (u32 d = 0; d < HEAD_PADDED / 16; d++)
#pragma unroll
            for (u32 i = 0; i < PARTS; i++) load(held[d][i], shared_q, HEAD_STRIDE, warp_row + 16 * i, 16 * d);
    }

    for (u32 step = 0; step < steps; step++) {
        const i32 key0 = step * BLOCK_K + warp_key;
        const bool needed = (WARPS_K == 1 || key0 < keys) && (!CAUSAL || key0 <= last_of_warp + behind);
        const T* const tile_k = shared_k + step % STAGES * BLOCK_K * HEAD_STRIDE;
        const T* const tile_v = shared_v + step % STAGES * BLOCK_K * VALUE_STRIDE;
        u32 weights[PARTS][WARP_KEYS / 16][4];

        // 4. these keys have come, and all warps have left the tile before, which is filled again
        arrive();
        copy(2 * step + AHEAD);
        if (needed) {
            float score[PARTS][WARP_KEYS / 8][4];
#pragma unroll
            for (u32 i = 0; i < PARTS; i++)
#pragma unroll
                for (u32 j = 0; j < WARP_KEYS / 8; j++)
#pragma unroll
                    for (u32 e = 0; e < 4; e++) score[i][j][e] = 0;
#pragma unroll (HOLD_QUERIES ? HEAD_PADDED / 16 : 2)  // more would be loaded too early, and spilled
            for (u32 d = 0; d < HEAD_PADDED / 16; d++) {
                u32 left[PARTS][4];
#pragma unroll
                for (u32 i = 0; i < PARTS; i++)
                    if (!HOLD_QUERIES) load(left[i], shared_q, HEAD_STRIDE, warp_row + 16 * i, 16 * d);
#pragma unroll
                for (u32 j = 0; j < WARP_KEYS / 16; j++) {
                    u32 right[4];
                    load(right, tile_k, HEAD_STRIDE, warp_key + 16 * j, 16 * d);
#pragma unroll
                    for (u32 i = 0; i < PARTS; i++) {
                        const u32(&a)[4] = HOLD_QUERIES ? held[HOLD_QUERIES ? d : 0][i] : left[i];
                        multiply(score[i][2 * j], a, right[0], right[2]);
                        multiply(score[i][2 * j + 1], a, right[1], right[3]);
                    }
                }
            }

            // 5. cap and mask
            const i32 after = key0 + (i32)WARP_KEYS;
            const bool cut = after > keys || (CAUSAL && after - 1 > first_of_warp + behind);
            if (ADJUSTED || HAS_MASK) adjust<PARTS, WARP_KEYS / 8>(score, mask, mask_at, key0 + lane % 4 * 2);
            if (cut) {
#pragma unroll
                for (u32 i = 0; i < PARTS; i++)
#pragma unroll
                    for (u32 half = 0; half < 2; half++) {
                        i32 limit = keys;
                        const i32 query = query_of(row0 + warp_row + 16 * i + 8 * half + lane / 4);
                        if (CAUSAL) limit = min(limit, query + behind + 1);
                        limit -= key0 + lane % 4 * 2;
#pragma unroll
                        for (u32 j = 0; j < WARP_KEYS / 8; j++)
#pragma unroll
                            for (u32 e = 0; e < 2; e++)
                                if ((i32)(8 * j + e) >= limit) score[i][j][2 * half + e] = -infinite();
                    }
            }

            // 6. the running softmax
#pragma unroll
            for (u32 i = 0; i < PARTS; i++)
#pragma unroll
                for (u32 half = 0; half < 2; half++) {
                    float most = highest[i][half];
#pragma unroll
                    for (u32 j = 0; j < WARP_KEYS / 8; j++)
                        most = fmaxf(most, fmaxf(score[i][j][2 * half], score[i][j][2 * half + 1]));
                    most = of_row<true>(most);
                    // where nothing takes part yet, weights are 0, not 2^(-inf + inf)
                    const float base = most == -infinite() ? 0.0f : most * TO_LOG2;
                    const float scale = exp2_approximate(highest[i][half] * TO_LOG2 - base);
                    highest[i][half] = most;
                    float part = 0;
#pragma unroll
                    for (u32 j = 0; j < WARP_KEYS / 8; j++)
#pragma unroll
                        for (u32 e = 2 * half; e < 2 * half + 2; e++) {
                            score[i][j][e] = exp2_approximate(score[i][j][e] * TO_LOG2 - base);
                            part += score[i][j][e];
                        }
                    total[i][half] = total[i][half] * scale + part;
#pragma unroll
                    for (u32 j = 0; j < VALUE_PADDED / 8; j++) {
                        sum[i][j][2 * half] *= scale;
                        sum[i][j][2 * half + 1] *= scale;
                    }
                }
#pragma unroll
            for (u32 i = 0; i < PARTS; i++)
#pragma unroll
                for (u32 j = 0; j < WARP_KEYS / 8; j++)
#pragma unroll
                    for (u32 half = 0; half < 2; half++)
                        weights[i][j / 2][j % 2 * 2 + half] =
                            packed(score[i][j][2 * half], score[i][j][2 * half + 1]);
        }

        // 7. the values have come
        arrive();
        copy(2 * step + 1 + AHEAD);
        if (needed) {
#pragma unroll
            for (u32 key = 0; key < WARP_KEYS / 16; key++)
#pragma unroll
                for (u32 j = 0; j < VALUE_PADDED / 16; j++) {
                    u32 right[4];
                    load_transposed(right, tile_v, VALUE_STRIDE, warp_key + 16 * key, 16 * j);
#pragma unroll
                    for (u32 i = 0; i < PARTS; i++) {
                        multiply(sum[i][2 * j], weights[i][key], right[0], right[2]);
                        multiply(sum[i][2 * j + 1], weights[i][key], right[1], right[3]);
                    }
                }
        }
    }

    // 8. the rows' totals, over the lanes and over the warps that shared the keys
    __syncthreads();
    float* const partial = (float*)shared;  // [WARPS_K][BLOCK_Q][VALUE_STRIDE]
    float* const partial_highest = partial + WARPS_K * BLOCK_Q * VALUE_STRIDE;
    float* const partial_total = partial_highest + WARPS_K * BLOCK_Q;
    float factor[PARTS][2];
#pragma unroll
    for (u32 i = 0; i < PARTS; i++)
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            total[i][half] = of_row<false>(total[i][half]);
            factor[i][half] = total[i][half] == 0 ? 0.0f : 1.0f / total[i][half];
            if (WARPS_K > 1 && lane % 4 == 0) {
                const u32 at = warp % WARPS_K * BLOCK_Q + warp_row + 16 * i + 8 * half + lane / 4;
                partial_highest[at] = highest[i][half];
                partial_total[at] = total[i][half];
            }
        }
    if (WARPS_K > 1) {
        __syncthreads();
#pragma unroll
        for (u32 i = 0; i < PARTS; i++)
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                const u32 row = warp_row + 16 * i + 8 * half + lane / 4;
                float most = -infinite(), all = 0;
#pragma unroll
                for (u32 w = 0; w < WARPS_K; w++) most = fmaxf(most, partial_highest[w * BLOCK_Q + row]);
                const float base = most == -infinite() ? 0.0f : most * TO_LOG2;
#pragma unroll
                for (u32 w = 0; w < WARPS_K; w++) {
                    const u32 at = w * BLOCK_Q + row;
                    all += partial_total[at] * exp2_approximate(partial_highest[at] * TO_LOG2 - base);
                }
                factor[i][half] = all == 0 ? 0.0f : exp2_approximate(highest[i][half] * TO_LOG2 - base) / all;
            }
    }

    // 9. the results, through shared memory to 16 bytes each
#pragma unroll
    for (u32 i = 0; i < PARTS; i++)
#pragma unroll
        for (u32 half = 0; half < 2; half++)
#pragma unroll
            for (u32 j = 0; j < VALUE_PADDED / 8; j++) {
                const u32 at = (warp_row + 16 * i + 8 * half + lane / 4) * VALUE_STRIDE + 8 * j + lane % 4 * 2;
                const float x0 = sum[i][j][2 * half] * factor[i][half], x1 = sum[i][j][2 * half + 1] * factor[i][half];
                if constexpr (WARPS_K > 1)
                    *(Pack<float, 2>*)(partial + warp % WARPS_K * BLOCK_Q * VALUE_STRIDE + at) = {x0, x1};
                else
                    *(u32*)((T*)shared + at) = packed(x0, x1);
            }
    __syncthreads();
    for (u32 i = threadIdx.x; i < BLOCK_Q * (VALUE_SIZE / VECTOR); i += THREADS) {
        const u32 row = i / (VALUE_SIZE / VECTOR), column = i % (VALUE_SIZE / VECTOR) * VECTOR;
        if (row0 + row >= ROWS) break;
        Pack<u32, VECTOR / 2> out;
        if constexpr (WARPS_K > 1) {
#pragma unroll
            for (u32 e = 0; e < VECTOR; e += 2) {
                float x0 = 0, x1 = 0;
#pragma unroll
                for (u32 w = 0; w < WARPS_K; w++) {
                    const float* const from = partial + (w * BLOCK_Q + row) * VALUE_STRIDE + column + e;
                    const auto two = *(const Pack<float, 2>*)from;
                    x0 += two.at[0];
                    x1 += two.at[1];
                }
                out.at[e / 2] = packed(x0, x1);
            }
        } else
            out = *(const Pack<u32, VECTOR / 2>*)((const T*)shared + row * VALUE_STRIDE + column);
        const u32 at = query_of(row0 + row) * Y_ROW + head_of(row0 + row) * Y_HEAD + column;
        *(Pack<u32, VECTOR / 2>*)(y + at) = out;
    }
}
