// d[i] = ALPHA * op(a[i]) op(b[i]) + BETA * c        for each matrix i of the batch, M <= 16: b goes by once, as a stream
//
//   op(a) : [M, K], stored so, or with TRANS_A as [K, M];   op(b) : [K, N], stored so, or with TRANS_B as [N, K]
//   c : at BIAS_INDEX, of any shape that broadcasts to [M, N];   d : [M, N];   all T, row-major, 16-byte aligned
//   STRIDE_A, STRIDE_B: elements from one matrix of the batch to the next
//
// A block makes all M rows of COLUMNS columns. Its warps stand WARPS_N x WARPS_K: those of a row have columns of their
// own, those of a column take the steps of k in turn. With SPLIT_K > 1 a cluster of that many blocks shares the tile:
// each has a stretch of k, the sums meet in distributed shared memory. All sums are float and added in a fixed order.
//
// b never touches shared memory: vectors of 16 bytes go to registers, STAGES steps ahead of their use. In a step
// lane = LANES_K * g + q of a warp has VECTOR neighbouring k from VECTOR * q on, of LANE_COLUMNS columns:
//   TRANS_B    a vector lies along k; columns g, g + LANES_N, g + 2 LANES_N, ...
//   otherwise  a vector lies along n; columns VECTOR * g, VECTOR * g + 1, ... (LANE_COLUMNS = VECTOR)
// Rows of b that are not made of whole vectors come in pieces of WIDTH elements.
// With MATRIX those vectors are operands of mma.m16n8k16 as they are. It wants of lane 4g + q the words of k (2q, 2q + 1)
// and (2q + 8, 2q + 9): any order of k will do if a's is the same. So of a lane's 8 k the first 4 are for one mma and the
// last 4 for the next, each time of 8 columns that the 8 values of g have.
// a, SLICE_STEPS steps of it at a time, waits in shared memory, rows A_STRIDE apart, zero where k >= K.
//
// Reads K * N * sizeof(T) bytes of b once, and M * K * sizeof(T) of a for each tile, from L2.

constexpr u32 THREADS = WARPS_N * WARPS_K * 32;
constexpr u32 VECTOR = 16 / sizeof(T), PIECES = VECTOR / WIDTH;
constexpr u32 LANES_N = 32 / LANES_K, WARP_COLUMNS = LANES_N * LANE_COLUMNS, COLUMNS = WARPS_N * WARP_COLUMNS;
constexpr u32 LOADS = TRANS_B ? LANE_COLUMNS : VECTOR;         // vectors of a lane in a step
constexpr u32 STEP = LANES_K * VECTOR, ROUND = STEP * WARPS_K;  // k of a warp's step; of the step of all warps
constexpr bool EXACT = N % COLUMNS == 0 && K % (ROUND * SPLIT_K) == 0;  // nothing sticks out
constexpr u32 SUMS = MATRIX ? LANE_COLUMNS * 4 : LANE_COLUMNS * M;

typedef u32 Vector[4];

// Loads WIDTH elements to their place in a vector; what lies outside is zero. b is read once: L1 is left to others.
__device__ __forceinline__ void load_piece(Vector& to, u32 piece, const T* from, bool inside) {
#define IF_INSIDE(load) "{.reg .pred %%inside; setp.ne.u32 %%inside, " load ";}"
#define LOAD "ld.global.nc.L1::no_allocate."
    if constexpr (WIDTH * sizeof(T) == 16 && EXACT) {
        asm volatile(LOAD "v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "l"(from));
    } else if constexpr (WIDTH * sizeof(T) == 16) {
        to[0] = to[1] = to[2] = to[3] = 0;
        asm volatile(IF_INSIDE("%5, 0; @%%inside " LOAD "v4.b32 {%0, %1, %2, %3}, [%4]")
                     : "+r"(to[0]), "+r"(to[1]), "+r"(to[2]), "+r"(to[3]) : "l"(from), "r"((u32)inside));
    } else if constexpr (WIDTH * sizeof(T) == 8) {
        to[2 * piece] = to[2 * piece + 1] = 0;
        asm volatile(IF_INSIDE("%3, 0; @%%inside " LOAD "v2.b32 {%0, %1}, [%2]")
                     : "+r"(to[2 * piece]), "+r"(to[2 * piece + 1]) : "l"(from), "r"((u32)inside));
    } else if constexpr (WIDTH * sizeof(T) == 4) {
        to[piece] = 0;
        asm volatile(IF_INSIDE("%2, 0; @%%inside " LOAD "b32 %0, [%1]") : "+r"(to[piece]) : "l"(from), "r"((u32)inside));
    } else {
        u16 half = 0;
        asm volatile(IF_INSIDE("%2, 0; @%%inside " LOAD "b16 %0, [%1]") : "+h"(half) : "l"(from), "r"((u32)inside));
        to[piece / 2] = piece % 2 ? to[piece / 2] | (u32)half << 16 : half;
    }
#undef LOAD
#undef IF_INSIDE
}

// Loads a lane's vectors of b, whose first element is at (k, column).
__device__ __forceinline__ void load_step(Vector (&to)[LOADS], const T* from, u32 k, u32 column) {
#pragma unroll
    for (u32 l = 0; l < LOADS; l++)
#pragma unroll
        for (u32 piece = 0; piece < PIECES; piece++) {
            const u32 along = piece * WIDTH;
            const bool inside = TRANS_B ? k + along < K && column + l * LANES_N < N : k + l < K && column + along < N;
            load_piece(to[l], piece, from + (u64)l * (TRANS_B ? LANES_N * (u64)K : N) + along, inside);
        }
}

// Puts k0, k0 + 1, ... of a to shared memory.
__device__ __forceinline__ void stage_a(T* to, const T* __restrict__ a, u32 k0) {
    constexpr u32 SLICE = SLICE_STEPS * ROUND;
    if constexpr (!TRANS_A && K % VECTOR == 0) {
#pragma unroll 2  // the loads of b hold the registers that more addresses would take
        for (u32 i = threadIdx.x; i < M * (SLICE / VECTOR); i += THREADS) {
            const u32 row = i / (SLICE / VECTOR), along = i % (SLICE / VECTOR) * VECTOR, k = k0 + along;
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to + row * A_STRIDE + along)),
                         "l"(k < K ? a + (u64)row * K + k : a), "r"(k < K ? 16u : 0u) : "memory");
        }
        asm volatile("cp.async.wait_all;" ::: "memory");
    } else {
#pragma unroll 2
        for (u32 i = threadIdx.x; i < M * SLICE; i += THREADS) {
            const u32 row = TRANS_A ? i % M : i / SLICE, along = TRANS_A ? i / M : i % SLICE, k = k0 + along;
            to[row * A_STRIDE + along] = k < K ? a[TRANS_A ? (u64)k * M + row : (u64)row * K + k] : T{0};
        }
    }
}

#if MATRIX
// The word of column `column` and of row k in the low half, of the next in the high half.
__device__ __forceinline__ u32 pair(const Vector& row, const Vector& next, u32 column) {
    return __byte_perm(row[column / 2], next[column / 2], column % 2 ? 0x7632 : 0x5410);
}

// Adds a step's products; a points to k of the lane in row 0.
__device__ __forceinline__ void multiply(float (&sum)[SUMS], const T* a, const Vector (&b)[LOADS]) {
    // rows from M on repeat the last one: what becomes of them is never written
    const u32 g = threadIdx.x % 32 / LANES_K;
    typedef Pack<u32, 4> Words;
    const Words top = *(const Words*)(a + min(g, M - 1) * A_STRIDE);
    const Words bottom = M > 8 ? *(const Words*)(a + min(g + 8, M - 1) * A_STRIDE) : Words::filled(0);
#pragma unroll
    for (u32 half = 0; half < 2; half++)
#pragma unroll
        for (u32 c = 0; c < LANE_COLUMNS; c++) {
            u32 low, high;
            if constexpr (TRANS_B) {
                low = b[c][2 * half];
                high = b[c][2 * half + 1];
            } else {
                low = pair(b[4 * half], b[4 * half + 1], c);
                high = pair(b[4 * half + 2], b[4 * half + 3], c);
            }
            float* const at = sum + 4 * c;
            asm volatile("mma.sync.aligned." MMA " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                         : "+f"(at[0]), "+f"(at[1]), "+f"(at[2]), "+f"(at[3])
                         : "r"(top.at[2 * half]), "r"(bottom.at[2 * half]), "r"(top.at[2 * half + 1]),
                           "r"(bottom.at[2 * half + 1]), "r"(low), "r"(high));
        }
}

// Writes the sums of a warp to `to`, [M, COLUMNS], at the warp's first column.
__device__ __forceinline__ void write_sums(float* to, float (&sum)[SUMS]) {
    const u32 g = threadIdx.x % 32 / LANES_K, q = threadIdx.x % LANES_K;
#pragma unroll
    for (u32 e = 0; e < 4; e++) {
        const u32 row = g + e / 2 * 8, j = 2 * q + e % 2;  // j: the g of the lanes that had this column of b
        if (row < M)
#pragma unroll
            for (u32 c = 0; c < LANE_COLUMNS; c++)
                to[row * COLUMNS + (TRANS_B ? c * LANES_N + j : j * VECTOR + c)] = sum[4 * c + e];
    }
}
#else
__device__ __forceinline__ float element(const Vector& vector, u32 e, float) { return __uint_as_float(vector[e]); }
template <typename Half> __device__ __forceinline__ float element(const Vector& vector, u32 e, Half box) {
    box.bits = (u16)(vector[e / 2] >> e % 2 * 16);
    return to_float(box);
}

// Adds a step's products; a points to k of the lane in row 0.
__device__ __forceinline__ void multiply(float (&sum)[SUMS], const T* a, const Vector (&b)[LOADS]) {
    constexpr u32 GROUP = TRANS_B ? VECTOR : 4;  // k at a time: converted, all of b's would take too many registers
#pragma unroll
    for (u32 first = 0; first < VECTOR; first += GROUP) {
        float right[GROUP][LANE_COLUMNS];
#pragma unroll
        for (u32 k = 0; k < GROUP; k++)
#pragma unroll
            for (u32 c = 0; c < LANE_COLUMNS; c++)
                right[k][c] = TRANS_B ? element(b[c], first + k, T{}) : element(b[first + k], c, T{});
#pragma unroll
        for (u32 m = 0; m < M; m++) {
            const Pack<T, GROUP> left = *(const Pack<T, GROUP>*)(a + m * A_STRIDE + first);
#pragma unroll
            for (u32 k = 0; k < GROUP; k++)
#pragma unroll
                for (u32 c = 0; c < LANE_COLUMNS; c++)
                    sum[m * LANE_COLUMNS + c] = fmaf(to_float(left.at[k]), right[k][c], sum[m * LANE_COLUMNS + c]);
        }
    }
}

// Adds up COUNT sums over the lanes that differ in the bits up to DISTANCE, and writes them. Lanes give each other the
// half of the sums that they don't keep, as long as they have halves.
template <u32 COUNT, u32 DISTANCE> __device__ __forceinline__ void add_and_write(float* to, float* sum, u32 first) {
    if constexpr (DISTANCE == 0) {
        const u32 g = threadIdx.x % 32 / LANES_K;
#pragma unroll
        for (u32 s = 0; s < COUNT; s++) {
            const u32 row = (first + s) / LANE_COLUMNS, c = (first + s) % LANE_COLUMNS;
            to[row * COLUMNS + (TRANS_B ? c * LANES_N + g : g * VECTOR + c)] = sum[s];
        }
    } else if constexpr (COUNT % 2 == 0) {
        const bool upper = threadIdx.x & DISTANCE;
#pragma unroll
        for (u32 s = 0; s < COUNT / 2; s++) {
            const float kept = upper ? sum[s + COUNT / 2] : sum[s], given = upper ? sum[s] : sum[s + COUNT / 2];
            sum[s] = kept + __shfl_xor_sync(~0u, given, DISTANCE);
        }
        add_and_write<COUNT / 2, DISTANCE / 2>(to, sum, upper ? first + COUNT / 2 : first);
    } else {
#pragma unroll
        for (u32 s = 0; s < COUNT; s++) sum[s] += __shfl_xor_sync(~0u, sum[s], DISTANCE);
        add_and_write<COUNT, DISTANCE / 2>(to, sum, first);
    }
}

__device__ __forceinline__ void write_sums(float* to, float (&sum)[SUMS]) {
    add_and_write<SUMS, LANES_K / 2>(to, sum, 0);
}
#endif

extern "C" __global__ void __launch_bounds__(THREADS)
#if SPLIT_K > 1
__cluster_dims__(SPLIT_K, 1, 1)
#endif
gemm_small_m(const T* __restrict__ a, const T* __restrict__ b, const T* __restrict__ bias, T* __restrict__ d) {
    await_predecessors();
    constexpr u32 TILES = (N + COLUMNS - 1) / COLUMNS;
    extern __shared__ __align__(16) unsigned char shared[];
    T* const shared_a = (T*)shared;
    float* const sums = (float*)shared;  // [WARPS_K, M, COLUMNS], when a is no longer needed
    const u32 part = blockIdx.x % SPLIT_K;  // also the block's rank in its cluster
    const u32 tile = blockIdx.x / SPLIT_K % TILES, matrix = blockIdx.x / SPLIT_K / TILES;
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const u32 warp_n = warp % WARPS_N, warp_k = warp / WARPS_N;
    const u32 column0 = tile * COLUMNS, part_k = part * (STEPS * ROUND);
    const u32 lane_k = warp_k * STEP + lane % LANES_K * VECTOR;
    const u32 column = column0 + warp_n * WARP_COLUMNS + lane / LANES_K * (TRANS_B ? 1 : VECTOR);
    a += matrix * STRIDE_A;
    b += matrix * STRIDE_B + (TRANS_B ? (u64)column * K + part_k + lane_k : (u64)(part_k + lane_k) * N + column);
    d += matrix * ((u64)M * N);

    float sum[SUMS];
#pragma unroll
    for (u32 s = 0; s < SUMS; s++) sum[s] = 0;
    Vector ring[STAGES][LOADS];
    const auto load = [&](u32 stage, u32 step) {
        if (step < STEPS)
            load_step(ring[stage], b + (u64)step * ROUND * (TRANS_B ? 1 : N), part_k + step * ROUND + lane_k, column);
    };
    // 1. the first steps of b on their way: everything else waits behind them
#pragma unroll
    for (u32 stage = 0; stage < STAGES; stage++) load(stage, stage);
    for (u32 first = 0; first < STEPS; first += SLICE_STEPS) {
        // 2. a slice of a
        if (first > 0) __syncthreads();
        stage_a(shared_a, a, part_k + first * ROUND);
        __syncthreads();
        // 3. its products; a stage is filled again as soon as it has been used
        const u32 end = STEPS % SLICE_STEPS == 0 || first + SLICE_STEPS < STEPS ? first + SLICE_STEPS : STEPS;
#pragma unroll 1
        for (u32 step = first; step < end; step += STAGES)
#pragma unroll
            for (u32 stage = 0; stage < STAGES; stage++) {
                if (STEPS % STAGES == 0 || step + stage < end)
                    multiply(sum, shared_a + (step + stage - first) * ROUND + lane_k, ring[stage]);
                load(stage, step + stage + STAGES);
            }
    }

    // 4. the sums of all warps
    __syncthreads();
    write_sums(sums + warp_k * (M * COLUMNS) + warp_n * WARP_COLUMNS, sum);
    __syncthreads();
    // 5. those of the warps added up; with a cluster they stay in place for the other blocks, each of which then adds
    // up the parts of its share of the results
    const auto add_warps = [&](u32 i) {
        float total = sums[i];
#pragma unroll
        for (u32 w = 1; w < WARPS_K; w++) total += sums[w * (M * COLUMNS) + i];
        return total;
    };
#if SPLIT_K > 1
    if constexpr (WARPS_K > 1)
        for (u32 i = threadIdx.x; i < M * COLUMNS; i += THREADS) sums[i] = add_warps(i);
    cluster_sync();
#endif
    for (u32 i = part * THREADS + threadIdx.x; i < M * COLUMNS; i += THREADS * SPLIT_K) {
        const u32 row = i / COLUMNS, column = column0 + i % COLUMNS;
#if SPLIT_K > 1
        float parts[SPLIT_K], total = 0;
#pragma unroll
        for (u32 p = 0; p < SPLIT_K; p++)
            asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(parts[p]) : "r"(address_at(shared_address(sums + i), p)));
#pragma unroll
        for (u32 p = 0; p < SPLIT_K; p++) total += parts[p];
#else
        const float total = add_warps(i);
#endif
        if (N % COLUMNS == 0 || column < N) {
            float value = (float)ALPHA * total;
            if (HAS_BIAS) value += (float)BETA * to_float(bias[BIAS_INDEX]);
            d[(u64)row * N + column] = Convert<T>::from(value);
        }
    }
#if SPLIT_K > 1
    cluster_sync();  // a block's sums have to outlive their readers
#endif
}
