// values[o, k, i], indices[o, k, i] = the k-th best of x[o, :, i] and its place; of equals, the first comes first
//
//   x : T[OUTER, LENGTH, INNER]; values : T[OUTER, K, INNER]; indices : i64[OUTER, K, INNER]
//   one block for each line (o, i): round k finds the best element that comes after the winner of round k - 1, so that
//   nothing has to be marked; K reads of the line, all but the first from cache

struct Entry { A value; i64 place; };  // a place of -1: none

// Whether a comes before b.
__device__ __forceinline__ bool ahead(Entry a, Entry b) {
    if (a.place < 0 || b.place < 0) return b.place < 0 && a.place >= 0;
    if (a.value != b.value) return LARGEST ? a.value > b.value : a.value < b.value;
    return a.place < b.place;
}

extern "C" __global__ void __launch_bounds__(THREADS)
topk(const T* __restrict__ x, T* __restrict__ values, i64* __restrict__ indices) {
    await_predecessors();
    __shared__ Entry scratch[THREADS / 32];
    const u64 o = blockIdx.x / INNER, inner = blockIdx.x % INNER;
    const T* line = x + o * (LENGTH * INNER) + inner;
    Entry last = {(A)0, -1};
    for (u32 k = 0; k < K; k++) {
        Entry best = {(A)0, -1};
        for (u64 j = threadIdx.x; j < LENGTH; j += THREADS) {
            const Entry entry = {(A)widen(line[j * INNER]), (i64)j};
            if ((k == 0 || ahead(last, entry)) && ahead(entry, best)) best = entry;
        }
#pragma unroll
        for (int mask = 16; mask > 0; mask /= 2) {
            const Entry other = {
                __shfl_xor_sync(0xffffffffu, best.value, mask), __shfl_xor_sync(0xffffffffu, best.place, mask)};
            if (ahead(other, best)) best = other;
        }
        __syncthreads();  // the scratch of the round before has been read
        if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = best;
        __syncthreads();
        best = scratch[0];
#pragma unroll
        for (u32 w = 1; w < THREADS / 32; w++)
            if (ahead(scratch[w], best)) best = scratch[w];
        if (threadIdx.x == 0) {
            values[(o * K + k) * INNER + inner] = Narrow<T>::from(best.value);
            indices[(o * K + k) * INNER + inner] = best.place;
        }
        last = best;
    }
}
