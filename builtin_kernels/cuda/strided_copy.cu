// d[t(i)] = s[o(i)] for every word i of every piece: slices, concatenations, splits, tilings and permutations.
//
//   a piece is a box of the source that lies as a box of the same shape in the target, each with its own strides
//   moves 2 * COUNT * sizeof(Word) bytes; Word is the widest type that divides the contiguous runs of both sides
//   a thread moves UNROLL words that lie THREADS apart; the blocks of a piece are consecutive
//
// strided_copy.py writes the specialisations of Piece and the kernel's parameters and dispatch behind this file.

template <int P> struct Piece;

template <int P> __device__ __forceinline__ void copy_piece(const void* source, void* target, u32 block) {
    typedef typename Piece<P>::Word Word;
    const Index first = (Index)block * (THREADS * UNROLL) + threadIdx.x;
    Word word[UNROLL];
#pragma unroll
    for (u32 u = 0; u < UNROLL; u++) {
        const Index i = first + u * THREADS;
        if (i < Piece<P>::count) word[u] = ((const Word*)source)[Piece<P>::source(i)];
    }
#pragma unroll
    for (u32 u = 0; u < UNROLL; u++) {
        const Index i = first + u * THREADS;
        if (i < Piece<P>::count) ((Word*)target)[Piece<P>::target(i)] = word[u];
    }
}
