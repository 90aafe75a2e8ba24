// Hopper's asynchronous machinery (sm_90a) in inline PTX: mbarriers, the tensor memory accelerator, wgmma's ordering.
//
// Shared memory is addressed with 32 bits of its window (shared_address). Names follow the PTX manual.

struct __align__(64) TensorMap { u64 words[16]; };

__device__ __forceinline__ void barrier_init(u32 barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}

// One arrival, and `bytes` that the copy engine has still to bring.
__device__ __forceinline__ void barrier_expect(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

__device__ __forceinline__ void barrier_wait(u32 barrier, u32 parity) {
    u32 done;
    do {
        asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
                     : "=r"(done) : "r"(barrier), "r"(parity) : "memory");
    } while (!done);
}

__device__ __forceinline__ void barrier_arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Relaxed: who only has read publishes nothing, and a release to the cluster puts a fence of the whole GPU into every
// step of k (seen on an H200: 0.9 us each).
__device__ __forceinline__ void barrier_arrive_at(u32 barrier, u32 block) {
    asm volatile("{.reg .b32 there; mapa.shared::cluster.u32 there, %0, %1;"
                 "mbarrier.arrive.relaxed.cluster.shared::cluster.b64 _, [there];}" ::"r"(barrier), "r"(block)
                 : "memory");
}

// Starts the copy of a box of a tensor of three dimensions, x innermost; what lies outside is zero.
__device__ __forceinline__ void load_box(u32 to, const TensorMap* map, u32 barrier, u32 x, u32 y, u32 z) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
                 " [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(to), "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z) : "memory");
}

// The same into the same place of every block of the cluster that `mask` names, completing on each one's barrier.
__device__ __forceinline__ void load_box_to(u16 mask, u32 to, const TensorMap* map, u32 barrier, u32 x, u32 y, u32 z) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster"
                 " [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(to), "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z),
                 "h"(mask) : "memory");
}

// Starts the copy of a box to the tensor, as a bulk group of its own; what lies outside is dropped.
__device__ __forceinline__ void store_box(const TensorMap* map, u32 from, u32 x, u32 y, u32 z) {
    asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map), "r"(from),
                 "r"(x), "r"(y), "r"(z) : "memory");
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

// Waits until no store of this thread reads shared memory any more.
__device__ __forceinline__ void await_stores_read() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }
__device__ __forceinline__ void await_stores() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }

__device__ __forceinline__ void prefetch_map(const TensorMap* map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// Makes ordinary writes to shared memory visible to the copy engine and to wgmma.
__device__ __forceinline__ void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

template <u32 THREADS> __device__ __forceinline__ void named_sync(u32 name) {
    asm volatile("bar.sync %0, %1;" ::"r"(name), "n"(THREADS) : "memory");
}
template <u32 THREADS> __device__ __forceinline__ void named_arrive(u32 name) {
    asm volatile("bar.arrive %0, %1;" ::"r"(name), "n"(THREADS) : "memory");
}

__device__ __forceinline__ u32 cluster_rank() {
    u32 rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
__device__ __forceinline__ void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release; barrier.cluster.wait.acquire;" ::: "memory");
}
// The address of the same place in the shared memory of another block of the cluster.
__device__ __forceinline__ u32 address_at(u32 address, u32 block) {
    u32 there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(block));
    return there;
}

// Whether this is the lane that the hardware picks of a warp that is together. Copies that one lane starts have their
// operands in uniform registers; behind any other condition the compiler puts a loop over lanes around each of them.
__device__ __forceinline__ bool elect_lane() {
    u32 elected;
    asm volatile("{.reg .pred p; elect.sync _|p, 0xffffffff; selp.u32 %0, 1, 0, p;}" : "=r"(elected));
    return elected;
}

// Shows the compiler that all lanes have the same value. Descriptors then are made in uniform registers; otherwise each
// instruction waits for its own to get there, which takes longer than 64 columns' products (seen on an H100).
__device__ __forceinline__ u32 uniform(u32 value) { return __shfl_sync(~0u, value, 0); }

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING> __device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}
// Ties accumulators to this point of the program: nothing may read them earlier.
template <int N> __device__ __forceinline__ void pin(float (&values)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(values[i])::"memory");
}
template <int N> __device__ __forceinline__ void pin(i32 (&values)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+r"(values[i])::"memory");
}

// Sums of either type as they lie in shared memory.
__device__ __forceinline__ u32 word_of(float x) { return __float_as_uint(x); }
__device__ __forceinline__ u32 word_of(i32 x) { return (u32)x; }
__device__ __forceinline__ float from_word(u32 word, float) { return __uint_as_float(word); }
__device__ __forceinline__ i32 from_word(u32 word, i32) { return (i32)word; }

// The descriptor of an operand, K-major or of 16-bit elements, in tiles of rows of 128 bytes, swizzled by 128 bytes.
// Eight rows make a pattern of 1024 bytes. Where rows are of k (K-major), patterns follow along m or n; where rows
// are of m or n (MN-major), patterns follow along k, and `next` bytes lie between neighbouring tiles of 64 of m or n.
__device__ __forceinline__ u64 operand_descriptor(u32 address, u32 next) {
    return (u64)((address & 0x3ffff) >> 4) | (u64)(next >> 4) << 16 | (u64)(1024 >> 4) << 32 | 1ull << 62;
}

template <int REGISTERS> __device__ __forceinline__ void give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
template <int REGISTERS> __device__ __forceinline__ void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

__device__ __forceinline__ u32 pack_pair(float low, float high, f16) {
    u32 word;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}
__device__ __forceinline__ u32 pack_pair(float low, float high, bf16) {
    u32 word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}

__device__ __forceinline__ void store_matrices(u32 to, u32 a, u32 b, u32 c, u32 d) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(a), "r"(b), "r"(c),
                 "r"(d) : "memory");
}
