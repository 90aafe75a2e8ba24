// What wgmma_tiles.cuh needs to know of 8-bit operands before it: the types of sums and results, and promoted sums.
//
// Sum is i32 for integers and float for fp8; T is i32 where sums of integers are the result, else f16, bf16 or float, and
// Value is what a result is before it is rounded to T. Results of 32 bits go through boxes of 32 columns.
// The tensor cores add products of fp8 up in less than fp32: they align the terms of an instruction with the sum and cut
// what lies some 13 bits below the largest. With PROMOTE their sums are added up in fp32 after every PROMOTE steps of k.

#define EIGHT_BIT 1

template <> struct Convert<i32> {
    static __device__ __forceinline__ i32 from(i32 x) { return x; }
};

// Neighbouring results of 32 bits.
__device__ __forceinline__ u64 pack_words(u32 low, u32 high) { return low | (u64)high << 32; }
__device__ __forceinline__ u64 pack_pair(float low, float high, float) { return pack_words(word_of(low), word_of(high)); }
__device__ __forceinline__ u64 pack_pair(i32 low, i32 high, i32) { return pack_words(low, high); }

// 16 rows of 16 columns of 32 bits to a box of rows of 128 bytes; the 16-bit ones of wgmma_tiles.cuh say who has which.
__device__ __forceinline__ void store_pairs(u32 box, const u64 (&pairs)[4], u32 group, u32 t) {
#pragma unroll
    for (u32 w = 0; w < 4; w++) {
        const u32 row = t / 32 * 16 + t % 32 / 4 + w % 2 * 8, chunk = 2 * (group + w / 2) + t % 4 / 2;
        asm volatile("st.shared.b64 [%0], %1;" ::"r"(box + row * 128 + ((chunk ^ row % 8) << 4) + t % 2 * 8), "l"(pairs[w])
                     : "memory");
    }
}

// What the tiles do to sums: scale them, and once a bias is added, Relu. Results of a column have one scale.
template <u32 W> struct Operands {};
struct Epilogue {
    static constexpr u32 VECTORS = RAW_SUMS ? 0 : 1, READS = 0;
    const ScaleA* scale_a;
    const ScaleB* scale_b;
    template <u32 W> __device__ __forceinline__ void fetch(Operands<W>&, u32, u32) const {}
    __device__ __forceinline__ float vector(u32, u32, u32 column) const {
        float scale = ALPHA;
        if (HAS_SCALE_A) scale *= to_float(*scale_a);
        if (HAS_SCALE_B) scale *= to_float(scale_b[SCALE_COLUMNS ? column : 0]);
        return scale;
    }
    template <u32 W> __device__ __forceinline__ Value finish(Value value, const Operands<W>&, u32, const float*) const {
        return RELU && value < 0 ? 0 : value;
    }
};
__device__ __forceinline__ Value begun(Sum sum, const float* vectors) {
    return RAW_SUMS ? (Value)sum : (Value)(vectors[0] * (float)sum);
}

#if PROMOTE > 0
// A consumer's sums in fp32, of all that the tensor cores have added up for PROMOTE steps at a time.
template <u32 ROWS, u32 COLUMNS> struct Promoted {
    float totals[ROWS][COLUMNS];
    __device__ __forceinline__ void clear() {
#pragma unroll
        for (u32 i = 0; i < ROWS * COLUMNS; i++) totals[i / COLUMNS][i % COLUMNS] = 0;
    }
    // Whether tensor cores begin anew with this step.
    __device__ __forceinline__ static bool begins(u32 step) { return step % PROMOTE == 0; }
    // Adds what the tensor cores have, once a step is under way that ends their sums.
    __device__ __forceinline__ void add(Sum (&sums)[ROWS][COLUMNS], u32 step, u32 steps) {
        if (PROMOTE > 1 && step % PROMOTE != PROMOTE - 1 && step + 1 != steps) return;
        wgmma_wait<0>();
#pragma unroll
        for (u32 i = 0; i < ROWS; i++) {
            pin(sums[i]);
#pragma unroll
            for (u32 j = 0; j < COLUMNS; j++) totals[i][j] += sums[i][j];
        }
    }
    // Makes sums of all steps of those of the last ones.
    __device__ __forceinline__ void finish(Sum (&sums)[ROWS][COLUMNS]) const {
#pragma unroll
        for (u32 i = 0; i < ROWS * COLUMNS; i++) sums[i / COLUMNS][i % COLUMNS] = totals[i / COLUMNS][i % COLUMNS];
    }
};
#endif
