// y[n, p, q, c] = bias[c] + sum over r, s of w[c, r, s] * x[n, p * STRIDE_H - PAD_H + r * DILATION_H, ..., c]
//
//   x : T[BATCH, IN_H, IN_W, GROUPS];   w : T[GROUPS, KERNEL_H, KERNEL_W];   y : T[BATCH, OUT_H, OUT_W, GROUPS]
//
// A thread has VECTOR neighbouring channels of ROWS x COLUMNS neighbouring outputs: it walks down the input rows that their
// windows touch, holds one row of vectors and adds each to all outputs that it meets, so that an element is loaded
// once and not once for each tap. Threads next to each other have neighbouring channels, then neighbouring columns.
// Moves (x + y) * sizeof(T) bytes, x once for each of the threads whose windows share it, from the cache; and the
// VECTOR * TAPS weights of the thread's channels, which lie together and stay in registers. Results pass through the
// epilogue (epilogue_source.py).

constexpr u32 PARTS = GROUPS / VECTOR;
constexpr u32 TILES_H = (OUT_H + ROWS - 1) / ROWS, TILES_W = (OUT_W + COLUMNS - 1) / COLUMNS;
constexpr u32 TOUCHED_H = (ROWS - 1) * STRIDE_H + (KERNEL_H - 1) * DILATION_H + 1;
constexpr u32 TOUCHED_W = (COLUMNS - 1) * STRIDE_W + (KERNEL_W - 1) * DILATION_W + 1;

struct alignas(sizeof(T) * VECTOR) Vector {
    T of[VECTOR];
};

// Whether some tap of some output meets the touched column i, or row i.
__device__ constexpr bool meets(u32 i, u32 outputs, u32 stride, u32 kernel, u32 dilation) {
    for (u32 o = 0; o < outputs; o++)
        for (u32 t = 0; t < kernel; t++)
            if (o * stride + t * dilation == i) return true;
    return false;
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
conv_depthwise_nhwc(const T* __restrict__ x, const T* __restrict__ w, const T* __restrict__ bias, T* __restrict__ y
                    EPILOGUE_PARAMETERS) {
    await_predecessors();
    const u64 i = (u64)blockIdx.x * THREADS + threadIdx.x;
    if (i >= (u64)BATCH * (TILES_H * TILES_W) * PARTS) return;
    const u32 part = (u32)(i % PARTS), tile = (u32)(i / PARTS % (TILES_H * TILES_W));
    const u64 image = i / PARTS / (TILES_H * TILES_W);
    const u32 p0 = tile / TILES_W * ROWS, q0 = tile % TILES_W * COLUMNS;
    const i32 h0 = (i32)p0 * STRIDE_H - PAD_H, w0 = (i32)q0 * STRIDE_W - PAD_W;
    // outputs that stick out reach into rows and columns that are not there
    constexpr bool CHECK_H = LEAVES_H || OUT_H % ROWS != 0, CHECK_W = LEAVES_W || OUT_W % COLUMNS != 0;
    const Vector* const from = (const Vector*)x + image * (IN_SIZE * PARTS) + part;

    Vector weights[TAPS];  // the channels' taps, one channel after the other
#pragma unroll
    for (u32 t = 0; t < TAPS; t++) weights[t] = ((const Vector*)w)[part * TAPS + t];
    A sum[ROWS][COLUMNS][VECTOR];
#pragma unroll
    for (u32 v = 0; v < VECTOR; v++) {
        const A start = HAS_BIAS ? wide(bias[part * VECTOR + v]) : 0;
#pragma unroll
        for (u32 r = 0; r < ROWS; r++)
#pragma unroll
            for (u32 c = 0; c < COLUMNS; c++) sum[r][c][v] = start;
    }

#pragma unroll
    for (u32 h = 0; h < TOUCHED_H; h++) {
        if (!meets(h, ROWS, STRIDE_H, KERNEL_H, DILATION_H)) continue;
        const bool row_there = !CHECK_H || (u32)(h0 + (i32)h) < IN_H;
        Vector row[TOUCHED_W];
#pragma unroll
        for (u32 c = 0; c < TOUCHED_W; c++) {
            if (!meets(c, COLUMNS, STRIDE_W, KERNEL_W, DILATION_W)) continue;
            row[c] = Vector{};
            if (row_there && (!CHECK_W || (u32)(w0 + (i32)c) < IN_W))
                row[c] = from[((i64)(h0 + (i32)h) * (i32)IN_W + w0 + (i32)c) * (i64)PARTS];
        }
#pragma unroll
        for (u32 r = 0; r < ROWS; r++)
#pragma unroll
            for (u32 t = 0; t < KERNEL_H; t++) {
                if (r * STRIDE_H + t * DILATION_H != h) continue;
#pragma unroll
                for (u32 c = 0; c < COLUMNS; c++)
#pragma unroll
                    for (u32 s = 0; s < KERNEL_W; s++)
#pragma unroll
                        for (u32 v = 0; v < VECTOR; v++) {
                            const u32 e = v * TAPS + t * KERNEL_W + s;
                            sum[r][c][v] += wide(weights[e / VECTOR].of[e % VECTOR]) * wide(row[c * STRIDE_W + s * DILATION_W].of[v]);
                        }
            }
    }

    Vector* const to = (Vector*)y + image * (OUT_SIZE * PARTS) + part;
    const Epilogue epilogue{EPILOGUE_ARGUMENTS};
    const auto finished = [&](A result, u32 pixel, u32 v) {
        if constexpr (Epilogue::EMPTY) return result;
        return epilogue.finish_at(result, ((image * OUT_SIZE + pixel) * PARTS + part) * VECTOR + v);
    };
#pragma unroll
    for (u32 r = 0; r < ROWS; r++)
#pragma unroll
        for (u32 c = 0; c < COLUMNS; c++) {
            if ((OUT_H % ROWS != 0 && p0 + r >= OUT_H) || (OUT_W % COLUMNS != 0 && q0 + c >= OUT_W)) continue;
            Vector made;
            const u32 pixel = (p0 + r) * OUT_W + q0 + c;
#pragma unroll
            for (u32 v = 0; v < VECTOR; v++) made.of[v] = narrow(finished(sum[r][c][v], pixel, v));
            to[(u64)pixel * PARTS] = made;
        }
}
