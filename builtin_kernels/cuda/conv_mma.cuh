// Tensor cores by mma.sync, and asynchronous copies to shared memory (sm_80 and later).
//
// One mma.sync multiplies a : 16 x 8 words and b : 8 words x 8, a word being two halves along k or one tf32. With
// g = lane / 4 and q = lane % 4 a lane holds the words a[g][q], a[g + 8][q], a[g][q + 4], a[g + 8][q + 4] and
// b[q][g], b[q + 4][g], and of the sums [g][2q], [g][2q + 1], [g + 8][2q], [g + 8][2q + 1].
// T is the element type; MMA names the instruction's shape and types.

constexpr u32 MMA_K = 32 / sizeof(T);  // elements of k of one mma.sync: 8 words

template <u32 BYTES> __device__ __forceinline__ void copy_async(void* to, const void* from, bool there) {
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "sizes of cp.async");
    // what is not there becomes zero: no byte of it is read, so that its address may be any
    if constexpr (BYTES == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
                     "r"(there ? BYTES : 0u) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;" ::"r"(shared_address(to)), "l"(from),
                     "r"(there ? BYTES : 0u), "n"(BYTES) : "memory");
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most `PENDING` of this thread's groups are on their way.
template <u32 PENDING> __device__ __forceinline__ void wait_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

__device__ __forceinline__ void round_words(u32* words, u32 count) {
#ifdef TF32
#pragma unroll
    for (u32 i = 0; i < count; i++) asm("cvt.rna.tf32.f32 %0, %0;" : "+r"(words[i]));
#endif
}

// The fragment a of the 16 x 8 words at (row, k) of a tile stored as [row][k].
template <u32 STRIDE> __device__ __forceinline__ void load_rows(u32 (&words)[4], const T* tile, u32 row, u32 k) {
    const u32 lane = threadIdx.x % 32;
    const u32 at = shared_address(tile + (row + lane % 16) * STRIDE + k + lane / 16 * (MMA_K / 2));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3]) : "r"(at) : "memory");
    round_words(words, 4);
}

// The fragments b of the two 8 words x 8 at (k, column) and (k, column + 8) of a tile stored as [k][column].
template <u32 STRIDE> __device__ __forceinline__ void load_columns(u32 (&words)[2][2], const T* tile, u32 k, u32 column) {
    const u32 lane = threadIdx.x % 32;
    if constexpr (sizeof(T) == 2) {
        // lanes name rows of k: 0 to 15 those of the first eight columns, 16 to 31 those of the others
        const u32 at = shared_address(tile + (k + lane % 16) * STRIDE + column + lane / 16 * 8);
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(words[0][0]), "=r"(words[0][1]), "=r"(words[1][0]), "=r"(words[1][1]) : "r"(at) : "memory");
    } else {
        const u32* at = (const u32*)tile + (k + lane % 4) * STRIDE + column + lane / 4;
#pragma unroll
        for (u32 j = 0; j < 2; j++) {
            words[j][0] = at[8 * j];
            words[j][1] = at[4 * STRIDE + 8 * j];
        }
    }
    round_words(words[0], 2);
    round_words(words[1], 2);
}

__device__ __forceinline__ void multiply(float (&sum)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile("mma.sync.aligned." MMA " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
