// y[i, j] = (x[i, j] - mean_i) * r_i * scale[p(i, j)] + bias[p(i, j)],   r_i = 1 / sqrt(mean_j (x[i, j] - mean_i)^2 + eps)
// without CENTRED, mean_i is 0: RMS normalisation
//
//   x, y : T[ROWS, LENGTH], row-major, 16-byte aligned       moves 2 * ROWS * LENGTH * sizeof(T) bytes
//   scale, bias : S; p(i, j) is PLACE: j for layers, the channel of row and element for instances and groups
//   mean, inverse : float[ROWS], written where the pointers are not null
//   AHEAD: a thread's part of scale and bias comes with its part of the row, not once the row's sums are known
//   GROUP threads share a row and take vectors of VECTOR elements in turn. HELD rows stay in registers: one read, and
//   the variance from the differences to the mean. Longer rows are read once for each pass. Arithmetic is in A.

extern "C" __global__ void __launch_bounds__(THREADS) layer_norm(
    const T* __restrict__ x, const S* __restrict__ scale, const S* __restrict__ bias, T* __restrict__ y,
    float* __restrict__ mean_out, float* __restrict__ inverse_out) {
    await_predecessors();
    typedef Pack<T, VECTOR> Vector;
    constexpr u32 VECTORS = LENGTH / VECTOR;
    __shared__ A scratch[THREADS / 32];
    const u64 row = (u64)blockIdx.x * (THREADS / GROUP) + threadIdx.x / GROUP;
    const u32 lane = threadIdx.x % GROUP;
    const bool present = row < ROWS;  // threads without a row still take part in the reductions
    const Vector* from = (const Vector*)(x + row * LENGTH);
    Vector* to = (Vector*)(y + row * LENGTH);

#if HELD > 0
    Vector held[HELD];
#pragma unroll
    for (u32 k = 0; k < HELD; k++)
        if (present && k * GROUP + lane < VECTORS) held[k] = from[k * GROUP + lane];
#if AHEAD
    Pack<S, VECTOR> all_factors[HELD], all_terms[HELD];
#pragma unroll
    for (u32 k = 0; k < HELD; k++)
        if (k * GROUP + lane < VECTORS) {
            all_factors[k] = ((const Pack<S, VECTOR>*)scale)[k * GROUP + lane];
            if (HAS_BIAS) all_terms[k] = ((const Pack<S, VECTOR>*)bias)[k * GROUP + lane];
        }
#endif
#define EACH_VECTOR _Pragma("unroll") for (u32 k = 0; k < HELD; k++) if (present && k * GROUP + lane < VECTORS)
#define PART held[k]
#define NUMBER (k * GROUP + lane)
#else
#define EACH_VECTOR for (u32 v = lane; present && v < VECTORS; v += GROUP)
#define PART from[v]
#define NUMBER v
#endif

    // 1. the mean
    A mean = 0;
#if CENTRED
    EACH_VECTOR {
        const Vector part = PART;
#pragma unroll
        for (u32 e = 0; e < VECTOR; e++) mean += widen(part.at[e]);
    }
    mean = group_reduce<GROUP, THREADS>(mean, Add(), scratch) / (A)LENGTH;
#endif

    // 2. the variance
    A variance = 0;
    EACH_VECTOR {
        const Vector part = PART;
#pragma unroll
        for (u32 e = 0; e < VECTOR; e++) {
            const A d = widen(part.at[e]) - mean;
            variance += d * d;
        }
    }
    variance = group_reduce<GROUP, THREADS>(variance, Add(), scratch) / (A)LENGTH;
    const A inverse = 1 / SQUARE_ROOT(variance + (A)EPSILON);
    if (present && lane == 0) {
        if (mean_out) mean_out[row] = (float)mean;
        if (inverse_out) inverse_out[row] = (float)inverse;
    }

    // 3. the results
    EACH_VECTOR {
        const Vector part = PART;
        const u32 first = NUMBER * VECTOR;
        Vector out;
#if AHEAD
        const Pack<S, VECTOR> factors = all_factors[k], terms = HAS_BIAS ? all_terms[k] : factors;
#elif PLACE_IS_COLUMN
        const Pack<S, VECTOR> factors = *(const Pack<S, VECTOR>*)(scale + first);
        Pack<S, VECTOR> terms = factors;
        if (HAS_BIAS) terms = *(const Pack<S, VECTOR>*)(bias + first);
#endif
#pragma unroll
        for (u32 e = 0; e < VECTOR; e++) {
            A value = (widen(part.at[e]) - mean) * inverse;
#if PLACE_IS_COLUMN
            value *= widen(factors.at[e]);
            if (HAS_BIAS) value += widen(terms.at[e]);
#else
            const u32 column = first + e;
            value *= widen(scale[PLACE]);
            if (HAS_BIAS) value += widen(bias[PLACE]);
#endif
            out.at[e] = Narrow<T>::from(value);
        }
        to[NUMBER] = out;
    }
}
