// y[i] = VALUE: tensors whose elements follow from their place, or from one element of an input, alone.
//
//   y : T[COUNT]; a, b : TA, TB, inputs that VALUE may read, or null        moves COUNT * sizeof(T) bytes and the inputs

extern "C" __global__ void __launch_bounds__(THREADS)
fill(const TA* __restrict__ a, const TB* __restrict__ b, T* __restrict__ y) {
    await_predecessors();
    const Index i = (Index)blockIdx.x * THREADS + threadIdx.x;
    if (i < COUNT) y[i] = (T)(VALUE);
}
