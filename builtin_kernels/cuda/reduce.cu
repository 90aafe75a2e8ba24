// y[o] = finish(combine over r of map(x[kept(o) + reduced(r)])),   o < OUTPUTS, r < LENGTH
//
//   x : T, row-major, 16-byte aligned; kept and reduced are the offsets KEPT(o) and REDUCED(r), made of constants
//   y : O[OUTPUTS]; with SPLITS > 1, part s of the range of r goes to partial[s, o] instead, and a second launch with
//   STAGE = 2 combines the parts: always in the same order, without atomics     moves sizeof(T) * elements of x bytes
//
// reduce_rows, for a contiguous innermost r: GROUP threads share an output and take vectors of VECTOR elements in turn.
// reduce_columns, for a contiguous innermost o: lane l of a warp has VECTOR outputs; SLICES warps share the range of r.

#if KIND == KIND_ARG
struct Partial { A value; i64 place; };  // a place of -1: nothing seen yet
__device__ __forceinline__ Partial nothing() { return {(A)0, -1}; }
__device__ __forceinline__ Partial map(T x, Index r) { return {(A)widen(x), (i64)r}; }
__device__ __forceinline__ bool wins(A a, A b) { return (LARGEST ? a > b : a < b) || (a != a && b == b); }
__device__ __forceinline__ Partial combine(Partial a, Partial b) {
    if (a.place < 0 || b.place < 0) return a.place < 0 ? b : a;
    if (wins(a.value, b.value)) return a;
    if (wins(b.value, a.value)) return b;
    return (LAST ? a.place > b.place : a.place < b.place) ? a : b;
}
__device__ __forceinline__ Partial shuffled(Partial a, int mask) {
    return {__shfl_xor_sync(0xffffffffu, a.value, mask), __shfl_xor_sync(0xffffffffu, a.place, mask)};
}
__device__ __forceinline__ O finish(Partial a) { return (O)a.place; }
#elif KIND == KIND_LOG_SUM_EXP
struct Partial { A maximum, sum; };  // of exp(x - maximum)
__device__ __forceinline__ Partial nothing() { return {-INFINITE, 0}; }
__device__ __forceinline__ Partial map(T x, Index r) { return {widen(x), 1}; }
__device__ __forceinline__ Partial combine(Partial a, Partial b) {
    const A m = maximum(a.maximum, b.maximum);
    // the difference of two infinities must not come in
    return {m, (a.maximum == m ? a.sum : a.sum * EXP(a.maximum - m)) + (b.maximum == m ? b.sum : b.sum * EXP(b.maximum - m))};
}
__device__ __forceinline__ Partial shuffled(Partial a, int mask) {
    return {__shfl_xor_sync(0xffffffffu, a.maximum, mask), __shfl_xor_sync(0xffffffffu, a.sum, mask)};
}
__device__ __forceinline__ O finish(Partial a) { return Narrow<O>::from(a.maximum + LOGARITHM(a.sum)); }
#else
typedef A Partial;
__device__ __forceinline__ Partial nothing() { return (A)IDENTITY; }
__device__ __forceinline__ Partial map(T value, Index r) {
    const A x = (A)widen(value);
    return MAP;
}
__device__ __forceinline__ Partial combine(Partial a, Partial b) { return COMBINE; }
__device__ __forceinline__ Partial shuffled(Partial a, int mask) { return __shfl_xor_sync(0xffffffffu, a, mask); }
__device__ __forceinline__ O finish(Partial a) { return Narrow<O>::from(FINISH); }
#endif

#if STAGE == 2
typedef Partial In;
__device__ __forceinline__ Partial take(Partial x, Index r) { return x; }
#else
typedef T In;
__device__ __forceinline__ Partial take(T x, Index r) { return map(x, r); }
#endif

#if SPLITS > 1
typedef Partial Out;
__device__ __forceinline__ Out give(Partial a) { return a; }
#else
typedef O Out;
__device__ __forceinline__ Out give(Partial a) { return finish(a); }
#endif

// The whole steps of the range of r that a block does, STEP elements each.
#define STEPS(STEP) (LENGTH / (STEP))
#define FIRST(STEP) (split * ((STEPS(STEP) + SPLITS - 1) / SPLITS))
#define LAST_STEP(STEP) \
    (FIRST(STEP) + (STEPS(STEP) + SPLITS - 1) / SPLITS < STEPS(STEP) ? FIRST(STEP) + (STEPS(STEP) + SPLITS - 1) / SPLITS : STEPS(STEP))

#ifdef ROWS_KERNEL
extern "C" __global__ void __launch_bounds__(THREADS) reduce_rows(const In* __restrict__ x, Out* __restrict__ y) {
    await_predecessors();
    __shared__ Partial scratch[THREADS / 32];
    constexpr u32 PER_BLOCK = THREADS / GROUP;
    const Index split = blockIdx.x % SPLITS;
    const Index o = (Index)(blockIdx.x / SPLITS) * PER_BLOCK + threadIdx.x / GROUP;
    const bool present = o < OUTPUTS;  // threads without an output still take part in the shuffles
    Partial own = nothing();
    if (present) {
        const In* from = x + (KEPT(o));
        const Index last = LAST_STEP(VECTOR);
#pragma unroll 4
        for (Index v = FIRST(VECTOR) + threadIdx.x % GROUP; v < last; v += GROUP) {
            const Index r = v * VECTOR;
            const Pack<In, VECTOR> part = *(const Pack<In, VECTOR>*)(from + (REDUCED(r)));
#pragma unroll
            for (u32 e = 0; e < VECTOR; e++) own = combine(own, take(part.at[e], r + e));
        }
    }
#pragma unroll
    for (int mask = (GROUP < 32 ? GROUP : 32) / 2; mask > 0; mask /= 2) own = combine(own, shuffled(own, mask));
    if (GROUP > 32) {
        if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = own;
        __syncthreads();
        own = scratch[0];
#pragma unroll
        for (u32 w = 1; w < THREADS / 32; w++) own = combine(own, scratch[w]);
    }
    if (present && threadIdx.x % GROUP == 0) y[split * (Index)OUTPUTS + o] = give(own);
}
#else
extern "C" __global__ void __launch_bounds__(32 * SLICES) reduce_columns(const In* __restrict__ x, Out* __restrict__ y) {
    await_predecessors();
    __shared__ Partial partial[SLICES][32 * VECTOR];
    const u32 lane = threadIdx.x % 32, slice = threadIdx.x / 32;
    const Index split = blockIdx.x % SPLITS;
    const Index o = ((Index)(blockIdx.x / SPLITS) * 32 + lane) * VECTOR;
    Partial own[VECTOR];
#pragma unroll
    for (u32 e = 0; e < VECTOR; e++) own[e] = nothing();
    if (o < OUTPUTS) {
        const In* from = x + (KEPT(o));
        const Index last = LAST_STEP(1);
#pragma unroll 4
        for (Index r = FIRST(1) + slice; r < last; r += SLICES) {
            const Pack<In, VECTOR> part = *(const Pack<In, VECTOR>*)(from + (REDUCED(r)));
#pragma unroll
            for (u32 e = 0; e < VECTOR; e++) own[e] = combine(own[e], take(part.at[e], r));
        }
    }
#pragma unroll
    for (u32 e = 0; e < VECTOR; e++) partial[slice][e * 32 + lane] = own[e];
    __syncthreads();
    if (slice != 0 || o >= OUTPUTS) return;
#pragma unroll
    for (u32 e = 0; e < VECTOR; e++) {
        Partial all = own[e];
#pragma unroll
        for (u32 s = 1; s < SLICES; s++) all = combine(all, partial[s][e * 32 + lane]);
        y[split * (Index)OUTPUTS + o + e] = give(all);
    }
}
#endif
