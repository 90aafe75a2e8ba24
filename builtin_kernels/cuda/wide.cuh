// The type that sums are kept in, and conversions from and to the element type T.
#ifdef DOUBLE
typedef double A;
__device__ __forceinline__ A wide(T x) { return x; }
__device__ __forceinline__ T narrow(A x) { return x; }
#else
typedef float A;
__device__ __forceinline__ A wide(T x) { return to_float(x); }
__device__ __forceinline__ T narrow(A x) { return Convert<T>::from(x); }
#endif
