// What epilogues read: once, from tensors that nothing writes while the kernel runs.

// Not to be moved: a kernel that asks early has the values when it needs them.
template <typename P> __device__ __forceinline__ P read_once(const void* from) {
    P to;
    if constexpr (sizeof(P) == 4)
        asm volatile("ld.global.nc.b32 %0, [%1];" : "=r"(*(u32*)&to) : "l"(from));
    else if constexpr (sizeof(P) == 8)
        asm volatile("ld.global.nc.v2.b32 {%0, %1}, [%2];" : "=r"(((u32*)&to)[0]), "=r"(((u32*)&to)[1]) : "l"(from));
    else if constexpr (sizeof(P) == 16)
        asm volatile("ld.global.nc.v4.b32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(((u32*)&to)[0]), "=r"(((u32*)&to)[1]), "=r"(((u32*)&to)[2]), "=r"(((u32*)&to)[3]) : "l"(from));
    else
        to = *(const P*)from;
    return to;
}
