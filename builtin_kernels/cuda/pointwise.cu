// y[i] = f(x0[o0(i)], x1[o1(i)], ...): any chain of elementwise operators over broadcast inputs, one read and one write.
//
//   xk, y : tensors of any element types, row-major, 16-byte aligned; y has COUNT elements
//   moves  each input once (repeated elements come from cache) and each output once
//   a thread computes UNROLL vectors of VECTOR consecutive elements; the vectors of a block lie THREADS apart, so that
//   each access of a warp is contiguous; all loads of a thread are issued before the first use
//
// The generator (pointwise_source.py) puts the types, the offsets ok and the expression f behind this file; here are
// the functions that expressions call. Arithmetic on 16-bit floats is done in float.

// Rounds to the 16-bit type T, once.
template <typename T> __device__ __forceinline__ T narrow(float x) { return Convert<T>::from(x); }
template <typename T> __device__ __forceinline__ T narrow(double x) { return Convert<T>::from((float)x); }
template <> __device__ __forceinline__ f16 narrow<f16>(double x) {
    f16 y;
    asm("cvt.rn.f16.f64 %0, %1;" : "=h"(y.bits) : "d"(x));
    return y;
}

// NumPy's minimum and maximum: NaN wins.
template <typename T> __device__ __forceinline__ T smaller(T a, T b) { return a < b || a != a ? a : b; }
template <typename T> __device__ __forceinline__ T larger(T a, T b) { return a > b || a != a ? a : b; }
// The two halves of clip: NaN in x stays.
template <typename T> __device__ __forceinline__ T not_below(T x, T low) { return x < low ? low : x; }
template <typename T> __device__ __forceinline__ T not_above(T x, T high) { return x > high ? high : x; }

__device__ __forceinline__ float softplus(float x) { return (x > 0 ? x : 0) + log1pf(expf(-fabsf(x))); }
__device__ __forceinline__ double softplus(double x) { return (x > 0 ? x : 0) + log1p(exp(-fabs(x))); }

// The remainder with the sign of the divisor.
__device__ __forceinline__ float floor_modulo(float a, float b) {
    float r = fmodf(a, b);
    return r != 0 && (r < 0) != (b < 0) ? r + b : r;
}
__device__ __forceinline__ double floor_modulo(double a, double b) {
    double r = fmod(a, b);
    return r != 0 && (r < 0) != (b < 0) ? r + b : r;
}
template <typename T> __device__ __forceinline__ T floor_modulo(T a, T b) {
    T r = (T)(a % b);
    return r != 0 && (r < 0) != (b < 0) ? (T)(r + b) : r;
}

__device__ __forceinline__ i64 integer_power(i64 base, i64 exponent) {
    if (exponent < 0) return base == 1 ? 1 : base == -1 ? (exponent & 1 ? -1 : 1) : 0;
    u64 result = 1, square = (u64)base;
    for (; exponent; exponent >>= 1, square *= square)
        if (exponent & 1) result *= square;
    return (i64)result;
}

// Negative numbers wrap as they do in NumPy, where a plain conversion would give 0.
template <typename T, typename F> __device__ __forceinline__ T to_unsigned(F x) {
    return x < 0 ? (T)(i64)x : (T)(u64)x;
}

// round(x) to even, shifted and saturated.
__device__ __forceinline__ i32 quantize(float x, i32 zero, i32 low, i32 high) {
    i32 q = (i32)not_above(not_below(rintf(x), -1e6f), 1e6f) + zero;
    return q < low ? low : q > high ? high : q;
}
