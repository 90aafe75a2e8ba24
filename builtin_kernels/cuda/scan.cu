// y[o, j, i] = sum of x[o, 0..j, i]; EXCLUSIVE leaves x[o, j, i] out, REVERSE sums from the end
//
//   x, y : T[OUTER, LENGTH, INNER], row-major      moves 2 * OUTER * LENGTH * INNER * sizeof(T) bytes
//   one warp for each line (o, i); 32 elements at a time are scanned by shuffles and added to the sum so far, kept in A

extern "C" __global__ void __launch_bounds__(THREADS) scan(const T* __restrict__ x, T* __restrict__ y) {
    await_predecessors();
    const u64 line = (u64)blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    const u32 lane = threadIdx.x % 32;
    if (line >= LINES) return;  // a whole warp
    const u64 start = line / INNER * (LENGTH * INNER) + line % INNER;
    A total = 0;
    for (u64 first = 0; first < LENGTH; first += 32) {
        const u64 j = first + lane;
        const u64 place = start + (REVERSE ? LENGTH - 1 - j : j) * INNER;
        const A own = j < LENGTH ? (A)widen(x[place]) : (A)0;
        A sum = own;
#pragma unroll
        for (u32 step = 1; step < 32; step *= 2) {
            const A before = __shfl_up_sync(0xffffffffu, sum, step);
            if (lane >= step) sum += before;
        }
        A before = __shfl_up_sync(0xffffffffu, sum, 1);
        if (lane == 0) before = 0;
        if (j < LENGTH) y[place] = Narrow<T>::from(total + (EXCLUSIVE ? before : sum));
        total += __shfl_sync(0xffffffffu, sum, 31);
    }
}
