// Element types, conversions and vectors, without any header: NVRTC finds none.
//
// T is the element type of x, w, b and y: float or, with HALF, float16. Sums are float always.

typedef unsigned int u32;
typedef unsigned long long u64;

struct f16 { unsigned short bits; };

#if HALF
typedef f16 T;
#else
typedef float T;
#endif

__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ float widen(f16 value) {
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
    return wide;
}
__device__ __forceinline__ void narrow(float value, float& to) { to = value; }
__device__ __forceinline__ void narrow(float value, f16& to) {
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(value));
}

// COUNT elements that move as one aligned access.
template <typename Element, u32 COUNT> struct __align__(sizeof(Element) * COUNT) Vector { Element at[COUNT]; };

__device__ __forceinline__ u32 shared_address(const void* place) { return (u32)__cvta_generic_to_shared(place); }

// What stands for filter `filter` in the sums: its bias, or nothing.
__device__ __forceinline__ float bias_of(const T* __restrict__ b, u32 filter) {
    return b == nullptr ? 0.0f : widen(b[filter]);
}

template <u32 COUNT> __device__ __forceinline__ void store_results(T* y, const float* sum, float bias) {
    Vector<T, COUNT> out;
#pragma unroll
    for (u32 e = 0; e < COUNT; e++) narrow(sum[e] + bias, out.at[e]);
    *(Vector<T, COUNT>*)y = out;
}
