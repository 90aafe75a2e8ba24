// y[i] = x[source(i)] where i lies inside of the padded box, the fill value or a mirrored, clamped or wrapped x elsewhere.
//
//   x, y : Word, 1 to 16 bytes, row-major; fill : one element, of type Item, or null for FILL
//   moves sizeof(Word) * (COUNT + elements of x) bytes; a thread does one word
//
// pad.py writes the statements that map word i of y to a word `place` of x, and to `inside`, as MAP.

__device__ __forceinline__ i32 reflected(i32 c, i32 n) {
    if (n == 1) return 0;
    const i32 period = 2 * (n - 1);
    c = ((c % period) + period) % period;
    return c < n ? c : period - c;
}
__device__ __forceinline__ i32 clamped(i32 c, i32 n) { return c < 0 ? 0 : c >= n ? n - 1 : c; }
__device__ __forceinline__ i32 wrapped(i32 c, i32 n) { return ((c % n) + n) % n; }

extern "C" __global__ void __launch_bounds__(THREADS)
pad(const Word* __restrict__ x, const Item* __restrict__ fill, Word* __restrict__ y) {
    await_predecessors();
    const Index i = (Index)blockIdx.x * THREADS + threadIdx.x;
    if (i >= COUNT) return;
    bool inside = true;
    Index place = 0;
    MAP
    if (inside) {
        y[i] = x[place];
    } else {
        const Item item = fill ? *fill : (Item)FILL;
        Pack<Item, sizeof(Word) / sizeof(Item)> filled = Pack<Item, sizeof(Word) / sizeof(Item)>::filled(item);
        y[i] = *(const Word*)&filled;
    }
}
