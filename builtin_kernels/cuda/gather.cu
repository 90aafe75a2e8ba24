// GATHER:  y[i] = x[place(i)]          SCATTER: y[place(i)] = u[i]
//
//   place(i) combines the position of element i with entries of the index tensor; it is written by gather.py as PLACE
//   x, y, u : words of 1 to 16 bytes; indices : I, int32 or int64, negative ones count from the end
//   an index out of range is an error in the model: a gather reads the nearest element then, a scatter writes nothing
//   moves 2 * COUNT * sizeof(Word) bytes and the indices; a thread does UNROLL words that lie THREADS apart

// The entry at `place`, wrapped; `valid` says whether it is in range, and if not it is moved there.
__device__ __forceinline__ Index entry(const I* __restrict__ indices, Index place, i64 extent, bool& valid) {
    i64 k = (i64)indices[place];
    if (k < 0) k += extent;
    valid &= k >= 0 && k < extent;
    return (Index)(k < 0 ? 0 : k >= extent ? extent - 1 : k);
}

extern "C" __global__ void __launch_bounds__(THREADS)
gather(const Word* __restrict__ source, const I* __restrict__ indices, Word* __restrict__ target) {
    await_predecessors();
    const Index first = (Index)blockIdx.x * (THREADS * UNROLL) + threadIdx.x;
#pragma unroll
    for (u32 u = 0; u < UNROLL; u++) {
        const Index i = first + u * THREADS;
        if (i < COUNT) {
            bool valid = true;
            const Index place = PLACE;
#ifdef SCATTER
            if (valid) target[place] = source[i];
#else
            target[i] = source[place];
#endif
        }
    }
}
