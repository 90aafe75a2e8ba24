// y[i] = f(x0[o0(i)], x1[o1(i)], ...): any chain of elementwise operators over broadcast inputs, one read and one write.
//
//   xk, y : tensors of any element types, row-major, 16-byte aligned; y has COUNT elements
//   moves  each input once (repeated elements come from cache) and each output once
//   a thread computes UNROLL vectors of VECTOR consecutive elements; the vectors of a block lie THREADS apart, so that
//   each access of a warp is contiguous; all loads of a thread are issued before the first use
//
// The generator (pointwise_source.py) puts the types, the offsets ok and the expression f behind this file; here are
// the functions that expressions call. Arithmetic on 16-bit floats is done in float.

struct f8e4m3 { u8 bits; };
struct f8e5m2 { u8 bits; };

// The exponent's bias is 7, not 127; what has no exponent is denormal in both types. All ones are NaN, and nothing infinite.
__device__ __forceinline__ float to_float(f8e4m3 x) {
    const u32 magnitude = x.bits & 0x7f;
    const float y = __uint_as_float((x.bits & 0x80u) << 24 | magnitude << 20) * 0x1p120f;
    return magnitude == 0x7f ? __uint_as_float(0x7fc00000) : y;
}
__device__ __forceinline__ float to_float(f8e5m2 x) { return to_float(f16{(u16)(x.bits << 8)}); }

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

// Functions for results that are rounded to 16 bits: from one ex2, rcp or lg2 of the special-function unit each, with
// relative errors of some 1e-6 (a tenth of bf16's rounding in gelu_bf16) wherever results are not denormal floats.
__device__ __forceinline__ float fast_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ float fast_log2(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ float fast_reciprocal(float x) {  // 0 for more than 2^126
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ __forceinline__ float fast_root(float x) {
    float y;
    asm("sqrt.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
// Within 2 units in the last place for all magnitudes.
__device__ __forceinline__ float fast_quotient(float x, float y) {
    float z;
    asm("div.full.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(y));
    return z;
}

// Macros, as constants would be placed in global memory.
#define LOG2_E 1.44269504f
#define LN_2 0.693147181f

// The sum of c[i] * x^i.
template <int N> __device__ __forceinline__ float polynomial(const float (&c)[N], float x) {
    float y = c[N - 1];
#pragma unroll
    for (int i = N - 2; i >= 0; i--) y = fmaf(y, x, c[i]);
    return y;
}

// 1 / (1 + e^-x).
__device__ __forceinline__ float fast_sigmoid(float x) { return fast_reciprocal(1 + fast_exp2(-LOG2_E * x)); }

// The differences from 1 cancel near 0, where a few terms of the series are as good.
__device__ __forceinline__ float fast_expm1(float x) {
    const float series[] = {1, 1 / 2.f, 1 / 6.f, 1 / 24.f, 1 / 120.f};
    return fabsf(x) < 0.25f ? x * polynomial(series, x) : fast_exp2(LOG2_E * x) - 1;
}
__device__ __forceinline__ float fast_tanh(float x) {
    const float series[] = {1, -1 / 3.f, 2 / 15.f};
    return fabsf(x) < 0.2f ? x * polynomial(series, x * x) : 1 - 2 * fast_reciprocal(1 + fast_exp2(2 * LOG2_E * x));
}
__device__ __forceinline__ float fast_softplus(float x) {
    const float e = fast_exp2(-LOG2_E * fabsf(x));
    return x < -5 ? e - 0.5f * e * e : fmaf(LN_2, fast_log2(1 + e), x > 0 ? x : 0);
}
// x tanh(ln(1 + n)) with n = e^x, as a ratio of polynomials of n. Past the bound it is x, and n^2 still fits.
__device__ __forceinline__ float fast_mish(float x) {
    const float n = fast_exp2(LOG2_E * fminf(x, 20)), m = n * (n + 2);
    return x * (m * fast_reciprocal(m + 2));
}

// erf(x) = x p(x^2) / q(x^2): minimax up to the bound, where it is 1 - 7e-7 and stays; min and max keep NaN.
__device__ __forceinline__ float fast_erf(float x) {
    const float p[] = {1.12837318f, 0.15739736f, 0.0425581150f, 7.11606775e-4f};
    const float q[] = {1, 0.47277378f, 0.09535701f, 0.0089907f};
    const float bound = 3.5f, z = not_above(not_below(x, -bound), bound), u = z * z;
    return z * polynomial(p, u) * fast_reciprocal(polynomial(q, u));
}

// gelu(x) = x phi(x), where phi(x) = 1 - phi(-x) and the tail phi(-|x|) is as precise, relatively, as it gets: 1 + erf
// would cancel. -infinity gives NaN, 0 times infinity, as the formula of ONNX does.
__device__ __forceinline__ float gelu_of_tail(float x, float tail) { return x * (x > 0 ? 1 - tail : tail); }

// The tail as 2^p(|x|): p is a minimax polynomial over what the type can hold of the tail, and falls on behind it.
__device__ __forceinline__ float gelu_f16(float x) {  // up to 5.8: 6e-6
    const float p[] = {-0.99999535f, -1.1512504f, -0.45846689f, -0.053956654f, 0.0085057383f, -9.2984736e-4f,
                       6.1494924e-5f, -1.8287325e-6f};
    return gelu_of_tail(x, fast_exp2(polynomial(p, fabsf(x))));
}
__device__ __forceinline__ float gelu_bf16(float x) {  // up to 13.3: 7e-5
    const float p[] = {-1.0000316f, -1.1509639f, -0.4588252f, -0.05393112f, 0.008657238f, -0.0010188647f,
                       8.338923e-5f, -4.4457843e-6f, 1.378951e-7f, -1.8800055e-9f};
    return gelu_of_tail(x, fast_exp2(polynomial(p, fabsf(x))));
}
// The tail as e^(-x^2/2) p(s) with s = |x| / (1 + 0.3 |x|), where p is a minimax polynomial up to 13.5: 6e-8. It is
// exact where s is 0, so that small results lose nothing to rounding.
__device__ __forceinline__ float gelu_f32(float x) {
    const float p[] = {0.5f,           -0.398943782f,  0.130331099f,   -0.0189357419f,   -3.60234757e-4f,
                       2.62363697e-4f, 8.66869595e-5f, -3.01196978e-5f, 2.51509891e-6f};
    const float size = not_above(fabsf(x), 1e30f), s = size * fast_reciprocal(fmaf(0.3f, size, 1));
    return gelu_of_tail(x, fast_exp2(-0.5f * LOG2_E * (x * x)) * polynomial(p, s));
}
// 0.5 x (1 + tanh(u)) with u = x (a + b x^2), which is x / (1 + e^-2u).
__device__ __forceinline__ float gelu_tanh(float x) {
    const float a = 0.797884561f, b = 0.0356774081f;
    return x * fast_sigmoid(2 * x * fmaf(b, x * x, a));
}
