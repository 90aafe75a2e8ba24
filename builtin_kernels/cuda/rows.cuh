// Helpers of kernels that give each row to a group of threads: GROUP of them, a power of two up to 32, or a whole block.

// The type that arithmetic on T is done in: float for 16-bit floats, T otherwise.
__device__ __forceinline__ float widen(f16 x) { return to_float(x); }
__device__ __forceinline__ float widen(bf16 x) { return to_float(x); }
template <typename T> __device__ __forceinline__ T widen(T x) { return x; }
template <typename T> struct Narrow {
    template <typename A> static __device__ __forceinline__ T from(A x) { return (T)x; }
};
template <> struct Narrow<f16> {
    template <typename A> static __device__ __forceinline__ f16 from(A x) { return Convert<f16>::from((float)x); }
};
template <> struct Narrow<bf16> {
    template <typename A> static __device__ __forceinline__ bf16 from(A x) { return Convert<bf16>::from((float)x); }
};

__device__ __forceinline__ float maximum(float a, float b) { return fmaxf(a, b); }
__device__ __forceinline__ double maximum(double a, double b) { return fmax(a, b); }

struct Add {
    template <typename A> __device__ __forceinline__ A operator()(A a, A b) const { return a + b; }
};
struct Maximum {
    template <typename A> __device__ __forceinline__ A operator()(A a, A b) const { return maximum(a, b); }
};

// Combines x over the Group threads of a row, in a fixed order; all of them get the result. Every thread of the block
// has to call it. With a whole block per row, `scratch` is shared memory for Threads / 32 values.
template <int Group, int Threads, typename A, typename F>
__device__ __forceinline__ A group_reduce(A x, F combine, A* scratch) {
#pragma unroll
    for (int mask = (Group < 32 ? Group : 32) / 2; mask > 0; mask /= 2) x = combine(x, __shfl_xor_sync(0xffffffffu, x, mask));
    if (Group > 32) {
        __syncthreads();  // the scratch of an earlier call has been read
        if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
        __syncthreads();
        x = scratch[0];
#pragma unroll
        for (int w = 1; w < Threads / 32; w++) x = combine(x, scratch[w]);
    }
    return x;
}
