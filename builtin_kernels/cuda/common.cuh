// Element types and conversions shared by all kernels, without any header: NVRTC finds none.
//
// f16 and bf16 are 16-bit boxes; arithmetic on them is done in float. load/store of 16 bytes go through Pack.

typedef signed char i8;
typedef unsigned char u8;
typedef short i16;
typedef unsigned short u16;
typedef int i32;
typedef unsigned int u32;
typedef long long i64;
typedef unsigned long long u64;

struct f16 { u16 bits; };
struct bf16 { u16 bits; };

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(f16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}
__device__ __forceinline__ float to_float(bf16 x) { return __uint_as_float((u32)x.bits << 16); }

template <typename T> struct Convert {
    static __device__ __forceinline__ T from(float x) { return (T)x; }
};
template <> struct Convert<f16> {
    static __device__ __forceinline__ f16 from(float x) {
        f16 y;
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
        return y;
    }
};
template <> struct Convert<bf16> {
    static __device__ __forceinline__ bf16 from(float x) {
        bf16 y;
        asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
        return y;
    }
};

// N elements of T moved as one aligned access.
template <typename T, int N> struct __align__(sizeof(T) * N) Pack {
    T at[N];
    static __device__ __forceinline__ Pack filled(T x) {
        Pack y;
#pragma unroll
        for (int i = 0; i < N; i++) y.at[i] = x;
        return y;
    }
};

// Lets the kernels behind this one be launched now (programmatic dependent launch), and waits for those before it to have
// ended. A kernel that calls this may be launched so itself: until then it touches no memory that others write.
__device__ __forceinline__ void await_predecessors() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }
