// What both products share: the way of the tiles of w and x to shared memory, and of the sums to y.
//
//   y[n, m, p] = b[m] + sum over c of w[m, c] * x[n, c, q(p)],    q(p) the input pixel under output pixel p
//
//   x : T[batch, channels, in_pixels]   w : T[filters, channels]   b : T[filters] or null   y : T[batch, filters, pixels]
//
// A block makes TILE_M filters by TILE_P pixels of one image from its share of the channels: SPLIT_K blocks, neighbours
// in the grid's x, share a tile. Steps of TILE_C channels pass through STAGES places in shared memory, each with
// w as [filter][channel], rows PITCH_W apart, and x as [channel][pixel], rows PITCH_X apart. Copies are asynchronous
// (cp.async) wherever a vector has 4 bytes; else they wait in registers for the end of a step.
//
// A block reads (TILE_M + TILE_P) * channels / SPLIT_K * sizeof(T) bytes. The sums of shared tiles meet
//   with CLUSTER  in shared memory: the blocks are a cluster (sm_90), and each adds up its part of the tile;
//   else          in `parts`, float[SPLIT_K, batch, filters, pixels], which add_parts adds up.
// Either way they are added in the order of the channels, so that every run gives the same bits.
//
// Set by the tactic: HALF, THREADS, TILE_M, TILE_P, TILE_C, STAGES, SPLIT_K, CLUSTER, PITCH_W, PITCH_X, VECTOR_W,
// VECTOR_X, VECTOR_Y, and FLAT: one tile has all pixels, so that its channels of x are one row of 16-byte vectors.

#if CLUSTER
#define CLUSTER_SHAPE __cluster_dims__(SPLIT_K, 1, 1)
#else
#define CLUSTER_SHAPE
#endif

constexpr u32 STAGE_W = TILE_M * PITCH_W, STAGE = STAGE_W + TILE_C * PITCH_X;  // elements

struct Shape { u32 channels, filters, pixels, in_pixels, in_w, out_w, stride; };

// Where this block's tile lies, and which steps of channels are its own.
struct Tile {
    Shape shape;
    u32 filter, pixel, image, part, first, last;

    __device__ __forceinline__ explicit Tile(const Shape& shape)
        : shape(shape), filter(blockIdx.y * TILE_M), pixel(blockIdx.x / SPLIT_K * TILE_P), image(blockIdx.z),
          part(blockIdx.x % SPLIT_K) {
        const u32 steps = (shape.channels + TILE_C - 1) / TILE_C;
        first = (u32)((u64)steps * part / SPLIT_K);
        last = (u32)((u64)steps * (part + 1) / SPLIT_K);
    }
    __device__ __forceinline__ bool has(u32 row, u32 column) const {
        return filter + row < shape.filters && pixel + column < shape.pixels;
    }
    __device__ __forceinline__ u64 place(u32 row, u32 column) const {
        return ((u64)image * shape.filters + filter + row) * shape.pixels + pixel + column;
    }
};

template <u32 BYTES> __device__ __forceinline__ void copy_async(void* to, const void* from, bool there) {
    // of what is not there no byte is read, and zeros are written
    const u32 read = there ? BYTES : 0;
    if constexpr (BYTES == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(read) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(to)), "l"(from), "n"(BYTES), "r"(read)
                     : "memory");
}

// The copy of a tile of ROWS x COLUMNS elements: a thread keeps its VECTOR columns, and takes every AT_ONCE-th row.
template <u32 ROWS, u32 COLUMNS, u32 PITCH, u32 VECTOR> struct RowCopy {
    static constexpr u32 ALONG = COLUMNS / VECTOR, AT_ONCE = THREADS / ALONG, CARRIED = (ROWS + AT_ONCE - 1) / AT_ONCE;
    static constexpr bool ASYNC = VECTOR * sizeof(T) >= 4, EXACT = THREADS % ALONG == 0 && ROWS % AT_ONCE == 0;
    static_assert(COLUMNS % VECTOR == 0 && PITCH % VECTOR == 0 && ALONG <= THREADS, "whole vectors, a thread for each");

    u32 row = threadIdx.x / ALONG, column = threadIdx.x % ALONG * VECTOR;
    Vector<T, VECTOR> held[ASYNC ? 1 : CARRIED];

    // Starts to bring the rows; `from` is this thread's column in the first of `rows` rows that are there.
    __device__ __forceinline__ void fetch(T* to, const T* from, u64 pitch, u32 rows) {
#pragma unroll
        for (u32 i = 0; i < CARRIED; i++) {
            const u32 r = row + i * AT_ONCE;
            if (!mine(r)) continue;
            if constexpr (ASYNC)
                copy_async<VECTOR * sizeof(T)>(to + r * PITCH + column, from + r * pitch, r < rows);
            else
                held[i] = r < rows ? *(const Vector<T, VECTOR>*)(from + r * pitch) : Vector<T, VECTOR>{};
        }
    }
    __device__ __forceinline__ void put(T* to) const {
        if constexpr (!ASYNC)
#pragma unroll
            for (u32 i = 0; i < CARRIED; i++)
                if (mine(row + i * AT_ONCE)) *(Vector<T, VECTOR>*)(to + (row + i * AT_ONCE) * PITCH + column) = held[i];
    }

private:
    __device__ __forceinline__ bool mine(u32 r) const { return EXACT || (row < AT_ONCE && r < ROWS); }
};

// The copy of TILE_C channels of x that lie in memory as they will in shared memory, one behind the other.
struct FlatCopy {
    static constexpr u32 VECTOR = 16 / sizeof(T), VECTORS = TILE_C * PITCH_X / VECTOR;
    static constexpr u32 CARRIED = (VECTORS + THREADS - 1) / THREADS;

    __device__ __forceinline__ void fetch(T* to, const T* from, u64 elements) {
#pragma unroll
        for (u32 c = 0; c < CARRIED; c++) {
            const u32 i = c * THREADS + threadIdx.x;
            if (VECTORS % THREADS == 0 || i < VECTORS)
                copy_async<16>(to + i * VECTOR, from + i * VECTOR, i * VECTOR < elements);
        }
    }
};

// Brings this thread's part of both tiles of one step.
struct StepCopy {
    const Tile& tile;
    RowCopy<TILE_M, TILE_C, PITCH_W, VECTOR_W> filters;
#if FLAT
    FlatCopy image;
#else
    RowCopy<TILE_C, TILE_P, PITCH_X, VECTOR_X> image;
    bool inside;
#endif
    const T *x, *w;  // this thread's first columns, in the first channel of x

    __device__ __forceinline__ StepCopy(const Tile& tile, const T* x_, const T* w_) : tile(tile) {
        const Shape& shape = tile.shape;
        w = w_ + (u64)tile.filter * shape.channels + filters.column;
        x = x_ + (u64)tile.image * shape.channels * shape.in_pixels;
#if !FLAT
        const u32 pixel = tile.pixel + image.column;
        x += shape.stride == 1 ? pixel : (pixel / shape.out_w * shape.in_w + pixel % shape.out_w) * shape.stride;
        inside = pixel < shape.pixels;
#endif
    }
    __device__ __forceinline__ void fetch(T* stage, u32 step) {
        const Shape& shape = tile.shape;
        const u32 channel = step * TILE_C, left = shape.channels - channel;
        filters.fetch(stage, w + channel, shape.channels, filters.column < left ? shape.filters - tile.filter : 0);
        const T* from = x + (u64)channel * shape.in_pixels;
#if FLAT
        image.fetch(stage + STAGE_W, from, (u64)left * PITCH_X);
#else
        image.fetch(stage + STAGE_W, from, shape.in_pixels, inside ? left : 0);
#endif
    }
    __device__ __forceinline__ void put(T* stage) const {
        filters.put(stage);
#if !FLAT
        image.put(stage + STAGE_W);
#endif
    }
};

// Calls `multiply` with the tiles of w and x of each of this block's steps, while later ones are on their way.
template <typename Multiply>
__device__ __forceinline__ void each_step(const Tile& tile, const T* x, const T* w, T* shared, const Multiply& multiply) {
    StepCopy copy(tile, x, w);
    const auto stage = [&](u32 step) { return shared + (step - tile.first) % STAGES * STAGE; };
    const auto fetch = [&](u32 step) {
        if (step < tile.last) copy.fetch(stage(step), step);
        asm volatile("cp.async.commit_group;" ::: "memory");  // empty groups too: they keep the count
    };
    // 1. all stages but one on their way
#pragma unroll
    for (u32 ahead = 0; ahead < STAGES - 1; ahead++) {
        fetch(tile.first + ahead);
        if (tile.first + ahead < tile.last) copy.put(stage(tile.first + ahead));
    }
#pragma unroll 1
    for (u32 step = tile.first; step < tile.last; step++) {
        // 2. this step has come, and all threads have left the stage of the one before, which is filled again
        asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory");
        __syncthreads();
        fetch(step + STAGES - 1);
        // 3. this step's products
        multiply(stage(step), stage(step) + STAGE_W);
        if (step + STAGES - 1 < tile.last) copy.put(stage(step + STAGES - 1));
    }
}

// COUNT floats at the same place of the shared memory of block `part` of the cluster.
template <u32 COUNT> __device__ __forceinline__ Vector<float, COUNT> read_part(const float* place, u32 part) {
    Vector<float, COUNT> v;
    u32 at;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(at) : "r"(shared_address(place)), "r"(part));
    if constexpr (COUNT == 4)
        asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
                     : "=f"(v.at[0]), "=f"(v.at[1]), "=f"(v.at[2]), "=f"(v.at[3]) : "r"(at) : "memory");
    else if constexpr (COUNT == 2)
        asm volatile("ld.shared::cluster.v2.f32 {%0, %1}, [%2];" : "=f"(v.at[0]), "=f"(v.at[1]) : "r"(at) : "memory");
    else
        asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(v.at[0]) : "r"(at) : "memory");
    return v;
}

// Adds up this block's share of the tile, whose parts lie in the shared memory of the cluster's blocks.
__device__ __forceinline__ void add_in_cluster(const Tile& tile, const T* b, T* y, const float* own) {
    constexpr u32 ALONG = TILE_P / VECTOR_Y;
    for (u32 i = tile.part * THREADS + threadIdx.x; i < TILE_M * ALONG; i += SPLIT_K * THREADS) {
        const u32 row = i / ALONG, column = i % ALONG * VECTOR_Y;
        if (!tile.has(row, column)) continue;
        Vector<float, VECTOR_Y> parts[SPLIT_K];
#pragma unroll
        for (u32 s = 0; s < SPLIT_K; s++) parts[s] = read_part<VECTOR_Y>(own + i * VECTOR_Y, s);
#pragma unroll
        for (u32 s = 1; s < SPLIT_K; s++)
#pragma unroll
            for (u32 e = 0; e < VECTOR_Y; e++) parts[0].at[e] += parts[s].at[e];
        store_results<VECTOR_Y>(y + tile.place(row, column), parts[0].at, bias_of(b, tile.filter + row));
    }
}

// Where sums go: to the result, to shared memory, or to the workspace as this block's part. A struct, not a lambda:
// older compilers take generic lambdas for host code.
struct Sink {
    const Tile& tile;
    const T* b;
    T* y;
    float* parts;
    float* shared;

    __device__ __forceinline__ void operator()(u32 row, u32 column, const float* sum) const {
        if (!(SPLIT_K > 1 && CLUSTER) && !tile.has(row, column)) return;
        if constexpr (SPLIT_K == 1) {
            store_results<VECTOR_Y>(y + tile.place(row, column), sum, bias_of(b, tile.filter + row));
        } else {
            float* to = CLUSTER ? shared + row * TILE_P + column : parts + tile.place(row, column);
            Vector<float, VECTOR_Y> out;
#pragma unroll
            for (u32 e = 0; e < VECTOR_Y; e++) out.at[e] = sum[e];
            *(Vector<float, VECTOR_Y>*)to = out;
        }
    }
};

// Writes a block's sums: `each(sink)` calls sink(row, column, sums) for every VECTOR_Y neighbours of the tile.
template <typename Each>
__device__ __forceinline__ void write_sums(const Tile& tile, const T* b, T* y, float* parts, float* shared, const Each& each) {
    if constexpr (SPLIT_K == 1) {
        each(Sink{tile, b, y, parts, shared});
        return;
    }
    if constexpr (CLUSTER) {
        __syncthreads();  // all have left the stages, where the sums go now
    } else {
        parts += (u64)tile.part * gridDim.z * tile.shape.filters * tile.shape.pixels;
    }
    each(Sink{tile, b, y, parts, shared});
    if constexpr (CLUSTER) {
        asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
        asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
        add_in_cluster(tile, b, y, shared);
        // no block may end, and with it its shared memory, before all have read
        asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
        asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
    }
}

// Biases are weights: they come from memory, unless they are asked for in time.
__device__ __forceinline__ void prefetch_bias(const Tile& tile, const T* b) {
    constexpr u32 PER_LINE = 32 / sizeof(T);
    const u32 filter = tile.filter + threadIdx.x * PER_LINE;
    if (b != nullptr && threadIdx.x < TILE_M / PER_LINE && filter < tile.shape.filters)
        asm volatile("prefetch.global.L2 [%0];" ::"l"(b + filter));
}
