// Tiles of a product of matrices by wgmma (sm_90a): what is the same however the operands come to shared memory.
//
//   d[m, n] = ALPHA * sum over k of a[m, k] * b[k, n] + BETA * c[m, n]      for each matrix of a batch
//   c : at BIAS_INDEX, of any shape that broadcasts to [M, N];   d : [M, N], row-major, rows of whole 16 bytes
//   What Epilogue (epilogue_source.py) makes of these sums, with what it reads, is written in their place.
//   k : SEGMENTS runs of SEGMENT elements, each filled up with zeros to whole boxes of BLOCK_K; DEPTH boxes make a step
//
// A block is one producer and CONSUMERS consumers, warpgroups of 128 threads. The producer's first thread keeps a ring
// of STAGES tiles of a and b on their way by TMA (load_step); `full` of a stage counts the bytes that came, `empty` the
// warps that have read it. A consumer multiplies ROWS x BLOCK_N of a tile, 64 rows an instruction, and holds the float32
// sums: with t its thread, of rows 16 * (t / 32) + t % 32 / 4 + {0, 8} the columns 8 * j + t % 4 * 2 + {0, 1}.
// COOPERATIVE consumers share a tile; otherwise each takes every other tile and one's multiplying hides the other's
// storing (named barriers order them). A cluster is CLUSTER_M x CLUSTER_N x SPLIT_K blocks: those below one another need
// the same of b and those beside one another the same of a, and each loads a slice of it for all of them; those behind one
// another share the steps of k of one tile, and their sums meet in shared memory and are added up in the blocks' order.
// With DIRECT_STORE results go to d from registers by way of a warp's own rows of shared memory, instead of by TMA.
//
// In shared memory a tile of an operand lies in boxes of rows of 128 bytes, swizzled: K-major [rows, 64 of k], or,
// where m or n is contiguous, boxes of [BLOCK_K of k, 64 of m or n] one after the other.
// A tile reads (BLOCK_M + BLOCK_N) * 2 bytes of each k, writes BLOCK_M * BLOCK_N * 2 and does 2 * BLOCK_M * BLOCK_N
// operations for each k.
//
// With EIGHT_BIT (wgmma_8bit.cuh) operands are of a type of their own, of which a row of 128 bytes holds 128 of k; sums
// may be integers and results 32 bits wide, and the first of the epilogue's vectors scales the sums.

#ifndef EIGHT_BIT
typedef T Operand;
typedef float Sum, Value;  // of the products; of a result before it is rounded to T
__device__ __forceinline__ float begun(float sum, const float*) { return (float)ALPHA * sum; }
#endif
#if PROMOTE == 0  // tensor cores add up all steps
template <u32 ROWS, u32 COLUMNS> struct Promoted {
    __device__ __forceinline__ static void clear() {}
    __device__ __forceinline__ static bool begins(u32 step) { return step == 0; }
    __device__ __forceinline__ static void add(Sum (&)[ROWS][COLUMNS], u32, u32) {}
    __device__ __forceinline__ static void finish(Sum (&)[ROWS][COLUMNS]) {}
};
#endif

constexpr u32 WARPGROUP = 128;
constexpr u32 ROWS = COOPERATIVE ? BLOCK_M / CONSUMERS : BLOCK_M;  // of one consumer's tile
constexpr u32 M_TILES = ROWS / 64;                                 // instructions below one another
constexpr u32 LINE = 128;                                          // bytes of a swizzled row
constexpr u32 BLOCK_K = LINE / sizeof(Operand), STEP_K = 32 / sizeof(Operand);  // k of a box and of an instruction
constexpr u32 A_BYTES = BLOCK_M * LINE, B_BYTES = BLOCK_N * LINE, CHUNK = BLOCK_K * LINE;  // of BLOCK_K
constexpr u32 A_STEP = TRANS_A ? STEP_K * LINE : 32, B_STEP = TRANS_B ? 32 : STEP_K * LINE;
constexpr u32 BOXES_OF_SEGMENT = (SEGMENT + BLOCK_K - 1) / BLOCK_K;
constexpr u32 STEPS = (SEGMENTS * BOXES_OF_SEGMENT + DEPTH - 1) / DEPTH;
constexpr u32 USED_K = SEGMENT < BLOCK_K ? (SEGMENT + STEP_K - 1) / STEP_K * STEP_K : BLOCK_K;  // the rest of a box is zero
constexpr u32 BOX = 64, BOX_BYTES = BOX * LINE;                    // rows and bytes of a box of results
constexpr u32 BOX_COLUMNS = LINE / sizeof(T);
constexpr u32 TURNS = STORE_BOXES > 0 ? STORE_BOXES : 1;            // of a consumer's boxes; parts of k need none
constexpr u32 SUM_PITCH = BLOCK_N + 8;                             // float32 of a row of sums: no bank conflicts
constexpr u32 SHARERS = COOPERATIVE ? CONSUMERS : 1;               // consumers of a stage
constexpr u32 CLUSTER = CLUSTER_M * CLUSTER_N * SPLIT_K;
constexpr u32 LOADERS = CLUSTER_M + CLUSTER_N - 1;                  // blocks that bring something of a block's tiles
constexpr u32 KEPT = BIAS_ROW + Epilogue::VECTORS;                 // vectors of columns in shared memory, for each consumer
// A single box of results: what the epilogue reads for it is on its way while the tile is multiplied.
constexpr bool AHEAD = Epilogue::READS > 0 && SPLIT_K == 1 && M_TILES == 1 && BLOCK_N == BOX_COLUMNS;
enum Named { STORE = 1, TURN = 4, SUMS = 6 };

// Which block of its cluster this is.
struct Place {
    u32 m, n, part;
    __device__ __forceinline__ Place() {
        const u32 rank = CLUSTER > 1 ? cluster_rank() : 0;
        m = rank % CLUSTER_M;
        n = rank / CLUSTER_M % CLUSTER_N;
        part = rank / (CLUSTER_M * CLUSTER_N);
    }
    __device__ __forceinline__ static u32 rank(u32 m, u32 n, u32 part) { return (part * CLUSTER_N + n) * CLUSTER_M + m; }
};

struct Shared {
    u32 a, b, boxes, full, empty, bias;
    __device__ __forceinline__ Shared(u32 raw) {
        a = (raw + 1023) & ~1023u;  // where the swizzle's pattern begins
        b = a + STAGES * DEPTH * A_BYTES;
        boxes = b + STAGES * DEPTH * B_BYTES;
        full = boxes + CONSUMERS * STORE_BOXES * BOX_BYTES;
        empty = full + 8 * STAGES;
        bias = empty + 8 * STAGES;
    }
};

__device__ __forceinline__ Pack<float, 2> shared_pair(u32 address) {
    Pack<float, 2> pair;
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(pair.at[0]), "=f"(pair.at[1]) : "r"(address) : "memory");
    return pair;
}

__device__ __forceinline__ float bias_value(const T* bias, u32 row, u32 column) {
    return HAS_BIAS && row < M && column < N ? (float)BETA * to_float(bias[BIAS_INDEX]) : 0;
}

// Vector `number` of the bias and those of the epilogue.
__device__ __forceinline__ float kept_value(const T* bias, const Epilogue& epilogue, u32 number, u32 matrix, u32 column) {
    if (column >= N) return 0;
    return BIAS_ROW && number == 0 ? bias_value(bias, 0, column) : epilogue.vector(number - BIAS_ROW, matrix, column);
}

// What the epilogue reads for a thread's results of one box: of pairs of columns, rows +0 and +8 by turns.
struct BoxOperands {
    Operands<2> at[BOX_COLUMNS / 4];
    __device__ __forceinline__ void fetch(const Epilogue& epilogue, u32 matrix, u32 row0, u32 column0, u32 t) {
#pragma unroll
        for (u32 i = 0; i < BOX_COLUMNS / 4; i++) {
            const u32 row = row0 + t / 32 * 16 + t % 32 / 4 + i % 2 * 8, column = column0 + i / 2 * 8 + t % 4 * 2;
            if (row < M && column < N) epilogue.fetch(at[i], matrix * M + row, column);
        }
    }
};

// What a kernel brings: starts the copies of this block's slices of both operands' tiles for the boxes number `box` of k, to
// `a` and `b` of the blocks `beside` and `below` it, which need the same. Boxes behind the last one are zero.
__device__ __forceinline__ void load_step(u32 a, u32 b, const TensorMap* map_a, const TensorMap* map_b, u32 full,
                                          const TilePlace& place, const Place& own, u32 box, u16 below, u16 beside);

// The producer: all steps of all tiles of this block.
__device__ __forceinline__ void produce(const Shared& at, const TensorMap* map_a, const TensorMap* map_b, u32 first_tile,
                                        u32 stride, const Place& own, u32 first_step, u32 last_step) {
    u32 stage = 0, parity = 1;
    u16 below = 0, beside = 0;  // blocks that need the same of b, and of a
#pragma unroll
    for (u32 i = 0; i < CLUSTER_M; i++) below |= 1u << Place::rank(i, own.n, own.part);
#pragma unroll
    for (u32 i = 0; i < CLUSTER_N; i++) beside |= 1u << Place::rank(own.m, i, own.part);
    for (u32 tile = first_tile; tile < TILES; tile += stride) {
        const TilePlace place = tile_place(tile, own.m, own.n);
#pragma unroll 1  // places of several steps, worked out ahead, would spill
        for (u32 step = first_step; step < last_step; step++) {
            const u32 full = at.full + 8 * stage;
            barrier_wait(at.empty + 8 * stage, parity);
            barrier_expect(full, DEPTH * (A_BYTES + B_BYTES));
#pragma unroll
            for (u32 i = 0; i < DEPTH; i++) {
                const u32 box = stage * DEPTH + i;
                load_step(at.a + box * A_BYTES, at.b + box * B_BYTES, map_a, map_b, full, place, own, step * DEPTH + i, below, beside);
            }
            if (++stage == STAGES) {
                stage = 0;
                parity ^= 1;
            }
        }
    }
}

// A warp's 16 rows of a box to d, lines of 128 bytes at a time.
__device__ __forceinline__ void copy_rows(T* d, u32 box, u32 matrix, u32 row0, u32 column0, u32 t) {
    constexpr u32 CHUNKS = LINE / 16, LINES = 32 / CHUNKS;  // of a row; rows of a step of a warp
    const u32 column = column0 + t % CHUNKS * (16 / sizeof(T));
#pragma unroll
    for (u32 i = 0; i < 16 / LINES; i++) {
        const u32 of_box = t / 32 * 16 + i * LINES + t % 32 / CHUNKS, row = row0 + of_box;
        Pack<u32, 4> words;
        asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(words.at[0]), "=r"(words.at[1]), "=r"(words.at[2]), "=r"(words.at[3])
                     : "r"(box + of_box * LINE + ((t % CHUNKS ^ of_box % 8) << 4)) : "memory");
        if (row < M && column < N) *(Pack<u32, 4>*)(d + matrix * ((u64)M * N) + (u64)row * N + column) = words;
    }
}

// 16 rows of 16 columns, from 8 * `group` of a box on, of a warp: a thread has the pairs of rows t % 32 / 4 and, 8 below it,
// of columns t % 4 * 2, then of those 8 beside them.
__device__ __forceinline__ void store_pairs(u32 box, const u32 (&words)[4], u32 group, u32 t) {
    const u32 lane_row = t / 32 * 16 + t / 8 % 2 * 8 + t % 8, lane_half = t % 32 / 16;  // stmatrix's rows
    store_matrices(box + lane_row * LINE + ((group + lane_half ^ (t & 7)) << 4), words[0], words[1], words[2], words[3]);
}

// One consumer's part of a tile: BOX_COLUMNS columns at a time through a swizzled box to d.
__device__ __forceinline__ void store_tile(const Shared& at, Sum (&sums)[M_TILES][BLOCK_N / 2], const TensorMap* map_d,
                                           const T* bias, T* d, const Epilogue& epilogue, BoxOperands& operands,
                                           const TilePlace& place, u32 consumer, u32 t, u32& turn) {
    const u32 row0 = place.row + (COOPERATIVE ? consumer * ROWS : 0);
#pragma unroll
    for (u32 i = 0; i < M_TILES; i++)
#pragma unroll
        for (u32 j0 = 0; j0 < BLOCK_N / 8; j0 += BOX_COLUMNS / 8) {
            const u32 box = at.boxes + (consumer * STORE_BOXES + turn) * BOX_BYTES;
            turn = (turn + 1) % TURNS;
            if constexpr (Epilogue::READS > 0 && !AHEAD)
                operands.fetch(epilogue, place.matrix, row0 + 64 * i, place.column + 8 * j0, t);
#pragma unroll
            for (u32 j = j0; j < j0 + BOX_COLUMNS / 8; j += 2) {
                decltype(pack_pair(Value{}, Value{}, T{})) words[4];
#pragma unroll
                for (u32 w = 0; w < 4; w++) {  // of columns +0, rows +0 and +8; of columns +8, the same
                    const u32 e = 4 * (j + w / 2) + w % 2 * 2, column = 8 * (j + w / 2) + t % 4 * 2;
                    const u32 row = row0 + 64 * i + t / 32 * 16 + t % 32 / 4 + w % 2 * 8;
                    float of_low[KEPT + 1], of_high[KEPT + 1];
#pragma unroll
                    for (int v = 0; v < (int)KEPT; v++) {
                        const Pack<float, 2> pair = shared_pair(at.bias + 4 * ((consumer * KEPT + v) * BLOCK_N + column));
                        of_low[v] = pair.at[0];
                        of_high[v] = pair.at[1];
                    }
                    Value low = begun(sums[i][e], of_low + BIAS_ROW), high = begun(sums[i][e + 1], of_high + BIAS_ROW);
                    if constexpr (BIAS_ROW) {
                        low += of_low[0];
                        high += of_high[0];
                    } else if constexpr (HAS_BIAS) {
                        low += bias_value(bias, row, place.column + column);
                        high += bias_value(bias, row, place.column + column + 1);
                    }
                    const Operands<2>& read = operands.at[(j - j0 + w / 2) * 2 + w % 2];
                    words[w] = pack_pair(epilogue.finish(low, read, 0, of_low + BIAS_ROW),
                                         epilogue.finish(high, read, 1, of_high + BIAS_ROW), T{});
                }
                store_pairs(box, words, j - j0, t);
            }
            if constexpr (DIRECT_STORE) {
                __syncwarp();
                copy_rows(d, box, place.matrix, row0 + 64 * i, place.column + 8 * j0, t);
                if (TURNS == 1) __syncwarp();
            } else {
                fence_async_proxy();
                if (t == 0) await_stores_read();  // of the box that is filled next
                named_sync<WARPGROUP>(STORE + consumer);
                if (t == 0) store_box(map_d, box, place.column + 8 * j0, row0 + 64 * i, place.matrix);
            }
        }
}

// A part of the steps of a tile: its sums to shared memory, for all blocks of the cluster.
__device__ __forceinline__ void keep_sums(const Shared& at, const Sum (&sums)[M_TILES][BLOCK_N / 2], u32 consumer, u32 t) {
    named_sync<CONSUMERS * WARPGROUP>(SUMS);  // all have read the stages, which the sums take the place of
#pragma unroll
    for (u32 i = 0; i < M_TILES; i++)
#pragma unroll
        for (u32 pair = 0; pair < BLOCK_N / 4; pair++) {
            const u32 row = consumer * ROWS + 64 * i + t / 32 * 16 + t % 32 / 4 + pair % 2 * 8;
            const u32 column = pair / 2 * 8 + t % 4 * 2;
            asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(at.a + 4 * (row * SUM_PITCH + column)),
                         "r"(word_of(sums[i][2 * pair])), "r"(word_of(sums[i][2 * pair + 1])) : "memory");
        }
}

// This block's share of a split tile: adds the parts up, in the order of k, and writes the results.
__device__ __forceinline__ void add_parts(const Shared& at, const T* bias, T* d, const Epilogue& epilogue,
                                          const TilePlace& place, const Place& own) {
    constexpr u32 WIDTH = 4, ALONG = BLOCK_N / WIDTH, VECTORS = BLOCK_M * ALONG, THREADS = (CONSUMERS + 1) * WARPGROUP;
    for (u32 i = own.part * THREADS + threadIdx.x; i < VECTORS; i += SPLIT_K * THREADS) {
        const u32 row = place.row + i / ALONG, column = place.column + i % ALONG * WIDTH;
        if (row >= M || column >= N) continue;
        const u32 address = at.a + 4 * (i / ALONG * SUM_PITCH + i % ALONG * WIDTH);
        Sum total[WIDTH] = {0, 0, 0, 0};
        Operands<WIDTH> operands;
        epilogue.fetch(operands, place.matrix * M + row, column);
        u32 terms[SPLIT_K][WIDTH];
#pragma unroll
        for (u32 s = 0; s < SPLIT_K; s++)
            asm volatile("ld.shared::cluster.v4.b32 {%0, %1, %2, %3}, [%4];"
                         : "=r"(terms[s][0]), "=r"(terms[s][1]), "=r"(terms[s][2]), "=r"(terms[s][3])
                         : "r"(address_at(address, Place::rank(own.m, own.n, s))) : "memory");
#pragma unroll
        for (u32 s = 0; s < SPLIT_K; s++)
#pragma unroll
            for (u32 e = 0; e < WIDTH; e++) total[e] += from_word(terms[s][e], Sum{});
        Pack<T, WIDTH> out;
#pragma unroll
        for (u32 e = 0; e < WIDTH; e++) {
            float vectors[Epilogue::VECTORS + 1];
#pragma unroll
            for (int v = 0; v < (int)Epilogue::VECTORS; v++) vectors[v] = epilogue.vector(v, place.matrix, column + e);
            const Value sum = begun(total[e], vectors) + (Value)bias_value(bias, row, column + e);
            out.at[e] = Convert<T>::from(epilogue.finish(sum, operands, e, vectors));
        }
        *(Pack<T, WIDTH>*)(d + place.matrix * ((u64)M * N) + (u64)row * N + column) = out;
    }
}

// A consumer: multiplies, and stores or keeps its part of each of its tiles.
__device__ __forceinline__ void consume(const Shared& at, const TensorMap* map_d, const T* bias, T* d, const Epilogue& epilogue,
                                        u32 first_tile, u32 stride, const Place& own, u32 first_step, u32 last_step) {
    const u32 consumer = threadIdx.x / WARPGROUP - 1, t = threadIdx.x % WARPGROUP, mine = COOPERATIVE ? consumer : 0;
    const u32 steps = last_step - first_step;
    Sum sums[M_TILES][BLOCK_N / 2];
    Promoted<M_TILES, BLOCK_N / 2> promoted;
    u32 stage = 0, parity = 0, turn = 0;
    // the block that a lane tells of a stage that was read: those below one another, then the others beside it
    const u32 lane = t % 32, aside = lane - CLUSTER_M, other = aside + (aside >= own.n);
    const u32 loader = lane < CLUSTER_M ? Place::rank(lane, own.n, own.part) : Place::rank(own.m, other, own.part);
    const auto skip = [&](u32 count) {
        stage += count;
        parity ^= stage / STAGES % 2;
        stage %= STAGES;
    };
    const auto release = [&](u32 of) {
        if constexpr (LOADERS > 1) {
            if (t % 32 < LOADERS) barrier_arrive_at(at.empty + 8 * of, loader);
        } else {
            if (t % 32 == 0) barrier_arrive(at.empty + 8 * of);
        }
    };
    if (!COOPERATIVE) {
        if (consumer == 1) {
            named_arrive<2 * WARPGROUP>(TURN);
            skip(steps);
        }
        first_tile += consumer * stride;
    }
    for (u32 tile = first_tile; tile < TILES; tile += stride * (COOPERATIVE ? 1 : CONSUMERS)) {
        const TilePlace place = tile_place(tile, own.m, own.n);
        if constexpr (KEPT > 0 && SPLIT_K == 1) {
            if constexpr (DIRECT_STORE) named_sync<WARPGROUP>(STORE + consumer);  // all have read the last tile's
            for (int i = (int)t; i < (int)(KEPT * BLOCK_N); i += WARPGROUP)
                asm volatile("st.shared.f32 [%0], %1;" ::"r"(at.bias + 4 * (consumer * KEPT * BLOCK_N + i)),
                             "f"(kept_value(bias, epilogue, i / BLOCK_N, place.matrix, place.column + i % BLOCK_N)) : "memory");
        }
        BoxOperands operands;
        if constexpr (AHEAD)
            operands.fetch(epilogue, place.matrix, place.row + (COOPERATIVE ? consumer * ROWS : 0), place.column, t);
        if constexpr (!COOPERATIVE) named_sync<2 * WARPGROUP>(TURN + consumer);
        promoted.clear();
        for (u32 step = 0; step < steps; step++) {
            barrier_wait(at.full + 8 * stage, parity);
            const u64 a = operand_descriptor(uniform(at.a + stage * DEPTH * A_BYTES + mine * ROWS * LINE), CHUNK);
            const u64 b = operand_descriptor(uniform(at.b + stage * DEPTH * B_BYTES), CHUNK);
            const bool begins = promoted.begins(step);
            wgmma_fence();
#pragma unroll
            for (u32 k = 0; k < DEPTH * (USED_K / STEP_K); k++) {
                const u32 box = k / (USED_K / STEP_K), within = k % (USED_K / STEP_K);
#pragma unroll
                for (u32 i = 0; i < M_TILES; i++)
                    multiply(sums[i], a + (box * A_BYTES + i * 64 * LINE + within * A_STEP) / 16,
                             b + (box * B_BYTES + within * B_STEP) / 16, !begins || k != 0);
            }
            wgmma_commit();
            if (step != 0) {
                wgmma_wait<1>();
                release(stage == 0 ? STAGES - 1 : stage - 1);
            }
            promoted.add(sums, step, steps);
            if (++stage == STAGES) {
                stage = 0;
                parity ^= 1;
            }
        }
        if (!COOPERATIVE && tile + stride < TILES) named_arrive<2 * WARPGROUP>(TURN + (consumer ^ 1));
        wgmma_wait<0>();
#pragma unroll
        for (u32 i = 0; i < M_TILES; i++) pin(sums[i]);
        promoted.finish(sums);
        release(stage == 0 ? STAGES - 1 : stage - 1);
        if constexpr (!COOPERATIVE) skip(steps);  // the other's tile
        if constexpr (SPLIT_K > 1) {
            keep_sums(at, sums, consumer, t);
        } else {
            if constexpr (KEPT > 0) named_sync<WARPGROUP>(STORE + consumer);
            store_tile(at, sums, map_d, bias, d, epilogue, operands, place, consumer, t, turn);
        }
    }
    if constexpr (SPLIT_K == 1 && !DIRECT_STORE)
        if (t == 0) await_stores_read();
}

// The whole kernel of a block.
__device__ __forceinline__ void multiply_tiles(const TensorMap* map_a, const TensorMap* map_b, const TensorMap* map_d,
                                               const T* bias, T* d, const Epilogue& epilogue) {
    extern __shared__ __align__(1024) unsigned char raw[];
    const Shared at(shared_address(raw));
    const Place own;
    const u32 first_tile = blockIdx.x / CLUSTER, stride = gridDim.x / CLUSTER;
    const u32 first_step = STEPS * own.part / SPLIT_K, last_step = STEPS * (own.part + 1) / SPLIT_K;
    if (threadIdx.x == 0) {
        prefetch_map(map_a);
        prefetch_map(map_b);
#pragma unroll
        for (u32 i = 0; i < STAGES; i++) {
            barrier_init(at.full + 8 * i, 1);
            barrier_init(at.empty + 8 * i, SHARERS * LOADERS * (WARPGROUP / 32));
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    await_predecessors();
    __syncthreads();
    if constexpr (LOADERS > 1) cluster_sync();
    if (threadIdx.x < WARPGROUP) {
        if constexpr (CONSUMER_REGISTERS > 0) give_registers<PRODUCER_REGISTERS>();
        if (uniform(threadIdx.x / 32) == 0 && elect_lane()) produce(at, map_a, map_b, first_tile, stride, own, first_step, last_step);
        __syncwarp();
    } else {
        if constexpr (CONSUMER_REGISTERS > 0) take_registers<CONSUMER_REGISTERS>();
        consume(at, map_d, bias, d, epilogue, first_tile, stride, own, first_step, last_step);
    }
    if constexpr (SPLIT_K > 1) {
        cluster_sync();
        add_parts(at, bias, d, epilogue, tile_place(first_tile, own.m, own.n), own);
    }
    // a block may not leave while others of its cluster still use its barriers or its sums
    if constexpr (CLUSTER > 1) cluster_sync();
}
