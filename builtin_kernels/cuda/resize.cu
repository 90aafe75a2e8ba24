// y[i] = x at the place that i comes from: its nearest neighbour, or the weighted 2^D corners around it (LINEAR)
//
//   x : T[INPUT...], y : T[OUTPUT...], RANK dimensions, row-major; scales : float[RANK] or null, then OUTPUT / INPUT
//   a dimension of scale 1 is passed through; D others are resized; aligned corners are those of the extent before
//   it is rounded down, INPUT * scale
//   moves sizeof(T) * (COUNT + elements of x) bytes; a thread does one element; places are computed in double

__device__ __forceinline__ double origin(u32 c, double scale, int from, double to) {
#if TRANSFORM == ASYMMETRIC
    return c / scale;
#elif TRANSFORM == ALIGN_CORNERS
    return to == 1.0 ? 0.0 : c * (from - 1.0) / (to - 1.0);
#elif TRANSFORM == PYTORCH_HALF_PIXEL
    return to == 1.0 ? 0.0 : (c + 0.5) / scale - 0.5;
#else
    return (c + 0.5) / scale - 0.5;
#endif
}
__device__ __forceinline__ int nearest(double place) {
#if NEAREST == FLOOR
    return (int)floor(place);
#elif NEAREST == CEIL
    return (int)ceil(place);
#elif NEAREST == ROUND_PREFER_CEIL
    return (int)floor(place + 0.5);
#else
    return (int)ceil(place - 0.5);
#endif
}
__device__ __forceinline__ int inside(int c, int extent) { return c < 0 ? 0 : c >= extent ? extent - 1 : c; }

extern "C" __global__ void __launch_bounds__(THREADS)
resize(const T* __restrict__ x, const float* __restrict__ scales, T* __restrict__ y) {
    await_predecessors();
    constexpr int from[RANK] = {INPUT}, to[RANK] = {OUTPUT};
    const Index i = (Index)blockIdx.x * THREADS + threadIdx.x;
    if (i >= COUNT) return;

    // 1. the coordinates, from the innermost: the lower corner, and the weight of the upper one
    int low[RANK], high[RANK];
    A weight[RANK];
    bool moves[RANK];
    Index rest = i;
#pragma unroll
    for (int d = RANK - 1; d >= 0; d--) {
        const u32 c = rest % (u32)to[d];
        rest /= (u32)to[d];
        low[d] = high[d] = c;
        weight[d] = 0;
        const double scale = scales ? (double)scales[d] : (double)to[d] / from[d];
        moves[d] = scale != 1.0;
        if (moves[d]) {
            const double place = origin(c, scale, from[d], scales ? scale * from[d] : (double)to[d]);
#if LINEAR
            const double below = floor(place);
            low[d] = inside((int)below, from[d]);
            high[d] = inside((int)below + 1, from[d]);
            weight[d] = (A)(place - below);
#else
            low[d] = inside(nearest(place), from[d]);
#endif
        }
    }

    // 2. the corners; those of dimensions that stay are skipped
    A sum = 0;
#pragma unroll
    for (int corner = 0; corner < (LINEAR ? 1 << RANK : 1); corner++) {
        Index place = 0;
        A share = 1;
        bool counts = true;
#pragma unroll
        for (int d = 0; d < RANK; d++) {
            const bool upper = corner >> d & 1;
            counts &= !upper || moves[d];
            place = place * (u32)from[d] + (u32)(upper ? high[d] : low[d]);
            if (LINEAR && moves[d]) share *= upper ? weight[d] : 1 - weight[d];
        }
        if (counts) sum += share * (A)widen(x[place]);
    }
    y[i] = Narrow<T>::from(sum);
}
