// What comes before and after an implicit GEMM.
//
// pack_filters: packed[g, m, j] = w[g, m, c, t], rows of PITCH elements, zero where there is no weight
//   with TAP_MAJOR j = t * CHANNEL_PITCH + c, else j = c * TAPS + t. One thread for each element that is written; moves
//   GROUPS * FILTERS * (CHANNELS * TAPS + PITCH) * sizeof(T) bytes.
//
// add_parts: y[n, f, p] = bias[f] + sum over s < SPLITS of parts[s, n, f, p], in this order
//   and what the epilogue makes of it. A thread takes an output of each part; moves OUTPUTS * (SPLITS * sizeof(A) + sizeof(T)) bytes.
#ifdef PACK_FILTERS
extern "C" __global__ void __launch_bounds__(256) pack_filters(const T* __restrict__ w, T* __restrict__ packed) {
    await_predecessors();
    const u32 i = blockIdx.x * 256 + threadIdx.x, j = i % PITCH, row = i / PITCH;
    if (row >= GROUPS * FILTERS) return;
    const u32 channel = TAP_MAJOR ? j % CHANNEL_PITCH : j / TAPS, tap = TAP_MAJOR ? j / CHANNEL_PITCH : j % TAPS;
    packed[i] = channel < CHANNELS && tap < TAPS ? w[(u64)row * DEPTH + channel * TAPS + tap] : T{0};
}
#endif

#ifdef ADD_PARTS
extern "C" __global__ void __launch_bounds__(256)
add_parts(const A* __restrict__ parts, const T* __restrict__ bias, T* __restrict__ y EPILOGUE_PARAMETERS) {
    await_predecessors();
    constexpr u64 OUTPUTS = (u64)PIXELS * GROUPS * FILTERS;
    const u64 i = (u64)blockIdx.x * 256 + threadIdx.x;
    if (i >= OUTPUTS) return;
    A sum = HAS_BIAS ? wide(bias[i / OUT_SIZE % (GROUPS * FILTERS)]) : 0;
#pragma unroll
    for (u32 s = 0; s < SPLITS; s++) sum += parts[s * OUTPUTS + i];
    y[i] = narrow(Epilogue{EPILOGUE_ARGUMENTS}.finish_at(sum, i));
}
#endif
