// y[n, f, p, q] = bias[f] + sum over r, s of w[f, r, s] * x[n, f / FILTERS, p * STRIDE_H - PAD_H + r * DILATION_H, ...]
//
// Layouts as in conv.cuh, with one channel in each of GROUPS groups and FILTERS filters on it. A thread makes ROWS x COLUMNS
// neighbouring outputs: it walks down the input rows that their windows touch, holds one row of elements and adds
// each to all outputs that it meets, so that an element is loaded once and not once for each tap. Threads next to
// each other have neighbouring columns of the same rows. Moves about (x + y) * sizeof(T) bytes, and the w of a
// filter, which stays in registers, once per thread from the cache. Results pass through the epilogue.

constexpr u32 TILES_H = (OUT_H + ROWS - 1) / ROWS, TILES_W = (OUT_W + COLUMNS - 1) / COLUMNS;
constexpr u32 TOUCHED_H = (ROWS - 1) * STRIDE_H + (KERNEL_H - 1) * DILATION_H + 1;
constexpr u32 TOUCHED_W = (COLUMNS - 1) * STRIDE_W + (KERNEL_W - 1) * DILATION_W + 1;

// Whether some tap of some output meets the touched column i, or row i.
__device__ constexpr bool meets(u32 i, u32 outputs, u32 stride, u32 kernel, u32 dilation) {
    for (u32 o = 0; o < outputs; o++)
        for (u32 t = 0; t < kernel; t++)
            if (o * stride + t * dilation == i) return true;
    return false;
}

extern "C" __global__ void __launch_bounds__(THREADS)
conv_depthwise(const T* __restrict__ x, const T* __restrict__ w, const T* __restrict__ bias, T* __restrict__ y
               EPILOGUE_PARAMETERS) {
    await_predecessors();
    const u64 i = (u64)blockIdx.x * THREADS + threadIdx.x;
    if (i >= (u64)BATCH * GROUPS * FILTERS * (TILES_H * TILES_W)) return;
    const u32 tile = (u32)(i % (TILES_H * TILES_W));
    const u64 plane = i / (TILES_H * TILES_W);  // of y
    const u32 filter = (u32)(plane % (GROUPS * FILTERS));
    const u32 p0 = tile / TILES_W * ROWS, q0 = tile % TILES_W * COLUMNS;
    const i32 h0 = (i32)p0 * STRIDE_H - PAD_H, w0 = (i32)q0 * STRIDE_W - PAD_W;
    // outputs that stick out reach into rows and columns that are not there
    constexpr bool CHECK_H = LEAVES_H || OUT_H % ROWS != 0, CHECK_W = LEAVES_W || OUT_W % COLUMNS != 0;
    const T* const from = x + plane / FILTERS * IN_SIZE;

    A weights[TAPS], sum[ROWS][COLUMNS];
#pragma unroll
    for (u32 t = 0; t < TAPS; t++) weights[t] = wide(w[filter * TAPS + t]);
    const A start = HAS_BIAS ? wide(bias[filter]) : 0;
#pragma unroll
    for (u32 r = 0; r < ROWS; r++)
#pragma unroll
        for (u32 c = 0; c < COLUMNS; c++) sum[r][c] = start;

#pragma unroll
    for (u32 h = 0; h < TOUCHED_H; h++) {
        if (!meets(h, ROWS, STRIDE_H, KERNEL_H, DILATION_H)) continue;
        const bool row_there = !CHECK_H || (u32)(h0 + (i32)h) < IN_H;
        A row[TOUCHED_W];
#pragma unroll
        for (u32 c = 0; c < TOUCHED_W; c++) {
            if (!meets(c, COLUMNS, STRIDE_W, KERNEL_W, DILATION_W)) continue;
            const bool there = row_there && (!CHECK_W || (u32)(w0 + (i32)c) < IN_W);
            row[c] = there ? wide(from[(i64)(h0 + (i32)h) * (i32)IN_W + w0 + (i32)c]) : 0;
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
                        sum[r][c] += weights[t * KERNEL_W + s] * row[c * STRIDE_W + s * DILATION_W];
            }
    }

    const Epilogue epilogue{EPILOGUE_ARGUMENTS};
#pragma unroll
    for (u32 r = 0; r < ROWS; r++)
#pragma unroll
        for (u32 c = 0; c < COLUMNS; c++)
            if ((OUT_H % ROWS == 0 || p0 + r < OUT_H) && (OUT_W % COLUMNS == 0 || q0 + c < OUT_W)) {
                const u64 at = plane * OUT_SIZE + (p0 + r) * OUT_W + q0 + c;
                y[at] = narrow(epilogue.finish_at(sum[r][c], at));
            }
}
