// y[b, h] = softmax(SCALE * q[b, h] k[b, g]^T) v[b, g]   by wgmma (sm_90a), for each batch b and head h, g = h / KV_GROUP
//
//   q : [QUERIES, HEAD_SIZE], k : [KEYS, HEAD_SIZE], v : [KEYS, VALUE_SIZE], y : [QUERIES, VALUE_SIZE], all T (f16, bf16)
//   map_q, map_k, map_v, map_y describe them as [batch * heads, rows, size] or, with BESIDE, where the heads of a row lie
//   beside one another, as [batch, rows, heads * size]; sizes then are multiples of 64.   CAUSAL: query i takes keys up to i.
//
// A block is one producer and CONSUMERS consumers, warpgroups of 128 threads; a consumer makes 64 rows of y. The
// producer's first thread brings, by TMA, each consumer's queries and, from the last tile of BLOCK_K keys that counts to the
// first, tiles of keys and of values, through a ring of STAGES each. `full` of a stage counts the bytes that came, `empty`
// the warps that have read it. While a tile's scores are made into weights, the tensor cores make the next tile's scores and
// add the last tile's values; with TURNS consumers issue these one after the other, so that one's exponentials
// hide behind the others' products. Sums under an old maximum are scaled to the new one. The blocks take tiles of queries in
// turns, the longest ones first and every other turn backwards, which with CAUSAL gives each as much to do.
//
// In shared memory a tile lies in boxes of 64 columns: rows of 128 bytes, swizzled. Scores are 64 x BLOCK_K a consumer:
// with t its thread, of rows 16 * (t / 32) + t % 32 / 4 + {0, 8} the keys 8 * j + t % 4 * 2 + {0, 1}, which is how the left
// operand of the next product is held too: weights go there without leaving their registers, rounded to T. Sums are held
// likewise and leave through shared memory by TMA, which drops rows and columns outside of y; what lies outside of the
// others comes as zero.
// A tile of queries reads BLOCK_Q * HEAD_SIZE + KEYS * (HEAD_SIZE + VALUE_SIZE) elements, writes BLOCK_Q * VALUE_SIZE and does
// 2 * BLOCK_Q * KEYS * (HEAD_SIZE + VALUE_SIZE) operations; with CAUSAL only tiles that some row sees are read.

constexpr u32 WARPGROUP = 128, WARPS = WARPGROUP / 32;
constexpr u32 ROWS = 64, BLOCK_Q = CONSUMERS * ROWS;  // queries of an instruction and of a consumer, and of a block
constexpr u32 LINE = 128, BOX = LINE / sizeof(T);     // bytes and elements of a swizzled row
constexpr u32 STEP = 16;                              // depth of an instruction
constexpr u32 HEAD_BOXES = (HEAD_SIZE + BOX - 1) / BOX, VALUE_BOXES = (VALUE_SIZE + BOX - 1) / BOX;
constexpr u32 HEAD_STEPS = (HEAD_SIZE + STEP - 1) / STEP, VALUES = (VALUE_SIZE + STEP - 1) / STEP * STEP;
constexpr u32 ROWS_BYTES = ROWS * LINE, KEYS_BYTES = BLOCK_K * LINE;  // of a box of queries or results; of keys or values
constexpr u32 Q_BYTES = HEAD_BOXES * ROWS_BYTES, K_BYTES = HEAD_BOXES * KEYS_BYTES, V_BYTES = VALUE_BOXES * KEYS_BYTES;
constexpr u32 Y_BYTES = VALUE_BOXES * ROWS_BYTES;
constexpr u32 Q_TILES = (QUERIES + BLOCK_Q - 1) / BLOCK_Q, TILES = Q_TILES * PAIRS;
constexpr bool MASKED_LAST = CAUSAL || KEYS % BLOCK_K != 0;
constexpr float TO_LOG2 = (float)(SCALE * 1.4426950408889634);
enum Named { STORE = 1, TURN = 4 };

struct Shared {
    u32 q, k, v, y, q_full, q_empty, k_full, k_empty, v_full, v_empty;
    __device__ __forceinline__ Shared(u32 raw) {
        q = (raw + 1023) & ~1023u;  // where the swizzle's pattern begins
        k = q + CONSUMERS * Q_BYTES;
        v = k + STAGES * K_BYTES;
        const u32 behind = v + STAGES * V_BYTES;
        y = APART ? behind : q;
        q_full = behind + (APART ? CONSUMERS * Y_BYTES : 0);
        q_empty = q_full + 8 * CONSUMERS;
        k_full = q_empty + 8 * CONSUMERS;
        k_empty = k_full + 8 * STAGES;
        v_full = k_empty + 8 * STAGES;
        v_empty = v_full + 8 * STAGES;
    }
};

// Where in a ring somebody is.
struct Turn {
    u32 stage, parity;
    __device__ __forceinline__ void advance() {
        if (++stage == STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
};

// A tile of queries: SECTION heads at a time, whose keys fit into the L2 cache; of those the last rows first, as with CAUSAL
// they have the most work.
struct Work {
    u32 row, batch, head, steps;
    __device__ __forceinline__ Work(u32 number) {
        const u32 section = number / (SECTION * Q_TILES) * SECTION, within = number % (SECTION * Q_TILES);
        const u32 together = min((u32)SECTION, PAIRS - section), pair = section + within % together;
        row = (Q_TILES - 1 - within / together) * BLOCK_Q;
        batch = pair / HEADS;
        head = pair % HEADS;
        const u32 end = CAUSAL ? min((u32)KEYS, min(row + BLOCK_Q, (u32)QUERIES)) : KEYS;
        steps = (end + BLOCK_K - 1) / BLOCK_K;
    }
    // Where a head's rows are in a map of `heads` heads of SIZE elements: the first column, and the matrix.
    template <u32 SIZE> __device__ __forceinline__ static u32 column(u32 of_head) { return BESIDE ? of_head * SIZE : 0; }
    __device__ __forceinline__ u32 matrix(u32 of_head, u32 heads) const { return BESIDE ? batch : batch * heads + of_head; }
};

// Calls `make` with each tile of this block; producer and consumers go through the same ones.
template <typename Make> __device__ __forceinline__ void each_work(const Make& make) {
    bool backwards = false;
    for (u32 first = 0; first < TILES; first += gridDim.x) {
        const u32 number = first + (backwards ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
        if (number < TILES) make(Work(number));
        backwards = !backwards;
    }
}

template <u32 BOXES, u32 BOX_BYTES>
__device__ __forceinline__ void load_boxes(u32 to, const TensorMap* map, u32 full, u32 column, u32 row, u32 matrix) {
    barrier_expect(full, BOXES * BOX_BYTES);
#pragma unroll
    for (u32 i = 0; i < BOXES; i++) load_box(to + i * BOX_BYTES, map, full, column + i * BOX, row, matrix);
}

// The producer, in the order in which consumers wait. The first keys don't wait for the room of the queries.
__device__ __forceinline__ void produce(const Shared& at, const TensorMap* map_q, const TensorMap* map_k, const TensorMap* map_v) {
    Turn of_keys{0, 1}, of_values{0, 1};
    u32 parity = 1;
    each_work([&](const Work& work) {
        const u32 kv_head = work.head / KV_GROUP, matrix = work.matrix(kv_head, HEADS / KV_GROUP);
        const auto load_keys = [&](u32 step) {
            const u32 full = at.k_full + 8 * of_keys.stage;
            barrier_wait(at.k_empty + 8 * of_keys.stage, of_keys.parity);
            load_boxes<HEAD_BOXES, KEYS_BYTES>(at.k + of_keys.stage * K_BYTES, map_k, full, work.column<HEAD_SIZE>(kv_head),
                                               step * BLOCK_K, matrix);
            of_keys.advance();
        };
        const auto load_values = [&](u32 step) {
            const u32 full = at.v_full + 8 * of_values.stage;
            barrier_wait(at.v_empty + 8 * of_values.stage, of_values.parity);
            load_boxes<VALUE_BOXES, KEYS_BYTES>(at.v + of_values.stage * V_BYTES, map_v, full, work.column<VALUE_SIZE>(kv_head),
                                                step * BLOCK_K, matrix);
            of_values.advance();
        };
        load_keys(work.steps - 1);
#pragma unroll
        for (u32 i = 0; i < CONSUMERS; i++) {
            barrier_wait(at.q_empty + 8 * i, parity);
            load_boxes<HEAD_BOXES, ROWS_BYTES>(at.q + i * Q_BYTES, map_q, at.q_full + 8 * i, work.column<HEAD_SIZE>(work.head),
                                               work.row + i * ROWS, work.matrix(work.head, HEADS));
        }
        parity ^= 1;
#pragma unroll 1  // addresses of several steps, worked out ahead, would spill
        for (u32 step = work.steps - 1; step > 0; step--) {
            load_keys(step - 1);
            load_values(step);
        }
        load_values(0);
    });
}

__device__ __forceinline__ float infinite() { return __int_as_float(0x7f800000); }

__device__ __forceinline__ float exp2_approximate(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// The maximum or the sum of the four lanes that share a row.
template <bool MAXIMUM> __device__ __forceinline__ float of_row(float x) {
#pragma unroll
    for (u32 lane = 1; lane < 4; lane *= 2) {
        const float other = __shfl_xor_sync(~0u, x, lane);
        x = MAXIMUM ? fmaxf(x, other) : x + other;
    }
    return x;
}

// A thread's two rows: the highest score, and its own part of the sum of the weights.
struct Rows {
    float highest[2] = {-infinite(), -infinite()}, total[2] = {0, 0};
};

// Makes scores into weights under the highest score so far; `scale` is what sums under the old one are multiplied by. The
// thread's first key is `key`, its first row `query`.
template <bool MASKED>
__device__ __forceinline__ void weigh(float (&scores)[BLOCK_K / 2], Rows& rows, float (&scale)[2], u32 key, u32 query) {
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        if constexpr (MASKED) {
            const i32 limit = (i32)(CAUSAL ? min((u32)KEYS, query + 8 * half + 1) : KEYS) - (i32)key;
#pragma unroll
            for (u32 j = 0; j < BLOCK_K / 8; j++)
#pragma unroll
                for (u32 e = 0; e < 2; e++)
                    if ((i32)(8 * j + e) >= limit) scores[4 * j + 2 * half + e] = -infinite();
        }
        float most = rows.highest[half];
#pragma unroll
        for (u32 j = 0; j < BLOCK_K / 8; j++) most = fmaxf(most, fmaxf(scores[4 * j + 2 * half], scores[4 * j + 2 * half + 1]));
        most = of_row<true>(most);
        // where nothing takes part yet, weights are 0, not 2^(-inf + inf)
        const float base = MASKED && most == -infinite() ? 0.0f : most * TO_LOG2;
        scale[half] = exp2_approximate(rows.highest[half] * TO_LOG2 - base);
        rows.highest[half] = most;
        float part = 0;
#pragma unroll
        for (u32 j = 0; j < BLOCK_K / 8; j++)
#pragma unroll
            for (u32 e = 4 * j + 2 * half; e < 4 * j + 2 * half + 2; e++) {
                scores[e] = exp2_approximate(scores[e] * TO_LOG2 - base);
                part += scores[e];
            }
        rows.total[half] = rows.total[half] * scale[half] + part;
    }
}

__device__ __forceinline__ void round_weights(u32 (&weights)[BLOCK_K / STEP][4], const float (&scores)[BLOCK_K / 2]) {
#pragma unroll
    for (u32 i = 0; i < BLOCK_K / 4; i++) weights[i / 4][i % 4] = pack_pair(scores[2 * i], scores[2 * i + 1], T{});
}

// Starts scores = queries * keys^T.
__device__ __forceinline__ void start_scores(float (&scores)[BLOCK_K / 2], u32 queries, u32 keys) {
    const u64 a = operand_descriptor(queries, ROWS_BYTES), b = operand_descriptor(keys, KEYS_BYTES);
    wgmma_fence();
#pragma unroll
    for (u32 step = 0; step < HEAD_STEPS; step++) {
        constexpr u32 OF_BOX = BOX / STEP;
        const u32 box = step / OF_BOX, within = step % OF_BOX * STEP * sizeof(T);
        multiply(scores, a + (box * ROWS_BYTES + within) / 16, b + (box * KEYS_BYTES + within) / 16, step != 0);
    }
    wgmma_commit();
}

// Starts sums += weights * values.
__device__ __forceinline__ void start_sums(float (&sums)[VALUES / 2], const u32 (&weights)[BLOCK_K / STEP][4], u32 values) {
    const u64 b = operand_descriptor(values, KEYS_BYTES);
    wgmma_fence();
#pragma unroll
    for (u32 step = 0; step < BLOCK_K / STEP; step++) multiply_held(sums, weights[step], b + step * (STEP * LINE / 16), 1);
    wgmma_commit();
}

// A consumer's rows of y, through its swizzled boxes.
__device__ __forceinline__ void store_rows(const Shared& at, const float (&sums)[VALUES / 2], const Rows& rows,
                                           const TensorMap* map_y, const Work& work, u32 consumer, u32 t) {
    const u32 boxes = at.y + consumer * (APART ? Y_BYTES : Q_BYTES);
    const u32 lane_row = t / 32 * 16 + t / 8 % 2 * 8 + t % 8, lane_half = t % 32 / 16;  // stmatrix's rows
    float factor[2];
#pragma unroll
    for (u32 half = 0; half < 2; half++) factor[half] = 1.0f / of_row<false>(rows.total[half]);
    if (APART && t == 0) await_stores_read();
    named_sync<WARPGROUP>(STORE + consumer);  // all have left what lies there
#pragma unroll
    for (u32 j = 0; j < VALUES / 8; j += 2) {
        u32 words[4];
#pragma unroll
        for (u32 w = 0; w < 4; w++) {  // of columns +0, rows +0 and +8; of columns +8, the same
            const u32 e = 4 * (j + w / 2) + w % 2 * 2;
            words[w] = pack_pair(sums[e] * factor[w % 2], sums[e + 1] * factor[w % 2], T{});
        }
        const u32 to = boxes + j / 8 * ROWS_BYTES + lane_row * LINE + (((j % 8 + lane_half) ^ (t & 7)) << 4);
        store_matrices(to, words[0], words[1], words[2], words[3]);
    }
    fence_async_proxy();
    named_sync<WARPGROUP>(STORE + consumer);
    if (t == 0) {
#pragma unroll
        for (u32 i = 0; i < VALUE_BOXES; i++)
            store_box(map_y, boxes + i * ROWS_BYTES, work.column<VALUE_SIZE>(work.head) + i * BOX, work.row + consumer * ROWS,
                      work.matrix(work.head, HEADS));
        if constexpr (!APART) {
            await_stores_read();
            barrier_arrive(at.q_empty + 8 * consumer);
        }
    }
}

// A consumer at a tile of queries.
struct Consumer {
    const Shared& at;
    const u32 number, thread, queries;
    Turn of_keys{0, 0}, of_values{0, 0};
    float scores[BLOCK_K / 2], sums[VALUES / 2], scale[2];
    u32 weights[BLOCK_K / STEP][4];

    __device__ __forceinline__ Consumer(const Shared& shared)
        : at(shared), number(uniform(threadIdx.x / WARPGROUP - 1)), thread(threadIdx.x % WARPGROUP),
          queries(at.q + number * Q_BYTES) {}
    __device__ __forceinline__ void release(u32 empty) const {
        if (thread % 32 == 0) barrier_arrive(empty);
    }
    __device__ __forceinline__ void release_keys() {
        release(at.k_empty + 8 * of_keys.stage);
        of_keys.advance();
    }
    __device__ __forceinline__ void release_values() {
        release(at.v_empty + 8 * of_values.stage);
        of_values.advance();
    }
    __device__ __forceinline__ void start_keys() {
        start_scores(scores, queries, uniform(at.k + of_keys.stage * K_BYTES));
    }
    __device__ __forceinline__ void start_values() {
        barrier_wait(at.v_full + 8 * of_values.stage, of_values.parity);
        start_sums(sums, weights, uniform(at.v + of_values.stage * V_BYTES));
    }

    // The weights of the last tile of keys that counts.
    __device__ __forceinline__ void begin(Rows& rows, u32 step, u32 query) {
#pragma unroll
        for (u32 i = 0; i < VALUES / 2; i++) sums[i] = 0;
        barrier_wait(at.k_full + 8 * of_keys.stage, of_keys.parity);
        start_keys();
        wgmma_wait<0>();
        pin(scores);
        release_keys();
        weigh<MASKED_LAST>(scores, rows, scale, step * BLOCK_K + thread % 4 * 2, query);
        round_weights(weights, scores);
    }

    // The weights of another tile, while the values of the one before are added.
    template <bool MASKED> __device__ __forceinline__ void follow(Rows& rows, u32 step, u32 query) {
        barrier_wait(at.k_full + 8 * of_keys.stage, of_keys.parity);
        if (TURNS) named_sync<2 * WARPGROUP>(TURN + number);
        start_keys();
        start_values();
        if (TURNS) named_arrive<2 * WARPGROUP>(TURN + (number + 1) % CONSUMERS);
        wgmma_wait<1>();
        pin(scores);
        release_keys();
        weigh<MASKED>(scores, rows, scale, step * BLOCK_K + thread % 4 * 2, query);
        pin(scores);  // or the compiler puts the exponentials behind the wait
        wgmma_wait<0>();
        pin(sums);
        release_values();
        round_weights(weights, scores);
#pragma unroll
        for (u32 i = 0; i < VALUES / 2; i++) sums[i] *= scale[i / 2 % 2];
    }

    // The values of the first tile.
    __device__ __forceinline__ void finish() {
        start_values();
        wgmma_wait<0>();
        pin(sums);
        release_values();
    }
};

__device__ __forceinline__ void consume(const Shared& at, const TensorMap* map_y) {
    Consumer self(at);
    const u32 t = self.thread;
    u32 parity = 0;
    if (TURNS && self.number == 0) named_arrive<2 * WARPGROUP>(TURN);
    each_work([&](const Work& work) {
        const u32 row0 = work.row + self.number * ROWS, query = row0 + t / 32 * 16 + t % 32 / 4;
        Rows rows;
        u32 step = work.steps - 1;
        barrier_wait(at.q_full + 8 * self.number, parity);
        parity ^= 1;
        self.begin(rows, step, query);
        if constexpr (CAUSAL) {  // a tile's last key is BLOCK_K - 1 behind its first
#pragma unroll 1
            while (step > 0 && step * BLOCK_K > row0 + 1) self.follow<true>(rows, --step, query);
        }
#pragma unroll 1
        while (step > 0) self.follow<false>(rows, --step, query);
        if constexpr (APART) self.release(at.q_empty + 8 * self.number);
        self.finish();
        store_rows(at, self.sums, rows, map_y, work, self.number, t);
    });
    if (t == 0) await_stores_read();
}

extern "C" __global__ void __launch_bounds__((CONSUMERS + 1) * WARPGROUP, 1)
attention_wgmma(const __grid_constant__ TensorMap map_q, const __grid_constant__ TensorMap map_k,
                const __grid_constant__ TensorMap map_v, const __grid_constant__ TensorMap map_y) {
    await_predecessors();
    extern __shared__ __align__(1024) unsigned char raw[];
    const Shared at(shared_address(raw));
    if (threadIdx.x == 0) {
        prefetch_map(&map_q);
        prefetch_map(&map_k);
        prefetch_map(&map_v);
#pragma unroll
        for (u32 i = 0; i < CONSUMERS; i++) {
            barrier_init(at.q_full + 8 * i, 1);
            barrier_init(at.q_empty + 8 * i, APART ? WARPS : 1);
        }
#pragma unroll
        for (u32 i = 0; i < STAGES; i++) {
            barrier_init(at.k_full + 8 * i, 1);
            barrier_init(at.v_full + 8 * i, 1);
            barrier_init(at.k_empty + 8 * i, CONSUMERS * WARPS);
            barrier_init(at.v_empty + 8 * i, CONSUMERS * WARPS);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    if (threadIdx.x < WARPGROUP) {
        if constexpr (CONSUMER_REGISTERS > 0) give_registers<PRODUCER_REGISTERS>();
        if (uniform(threadIdx.x / 32) == 0 && elect_lane()) produce(at, &map_q, &map_k, &map_v);
    } else {
        if constexpr (CONSUMER_REGISTERS > 0) take_registers<CONSUMER_REGISTERS>();
        consume(at, &map_y);
    }
}
