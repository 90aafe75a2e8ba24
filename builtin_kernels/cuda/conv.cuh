// Geometry of a convolution: which element of x a tap of the window meets for an output pixel.
//
//   x : T[BATCH, GROUPS, CHANNELS, IN_D, IN_H, IN_W];   w : T[GROUPS, FILTERS, CHANNELS, KERNEL_D, KERNEL_H, KERNEL_W]
//   y : T[BATCH, GROUPS, FILTERS, OUT_D, OUT_H, OUT_W]
//
// Pixels of all images are numbered in a row, taps within a window too. All extents are constants, so that the
// divisions are multiplications, and what has extent 1 goes away.

constexpr u32 TAPS = KERNEL_D * KERNEL_H * KERNEL_W;
constexpr u32 IN_SIZE = IN_D * IN_H * IN_W, OUT_SIZE = OUT_D * OUT_H * OUT_W;
[[maybe_unused]] constexpr u32 PIXELS = BATCH * OUT_SIZE, DEPTH = CHANNELS * TAPS;

__device__ __forceinline__ i32 input_offset(i32 d, i32 h, i32 w) { return (d * (i32)IN_H + h) * (i32)IN_W + w; }

// Where the first tap of an output pixel lies, possibly outside of the input.
struct Pixel {
    u64 image;      // element of x that the first channel of the pixel's image and group begins with
    i32 d, h, w;

    Pixel() = default;
    __device__ __forceinline__ Pixel(u32 number, u32 group) {
        // pixels that are not there are taken for the first one: what is made of them is not stored
        const u32 pixel = number < PIXELS ? number : 0, place = pixel % OUT_SIZE;
        image = (u64)(pixel / OUT_SIZE * GROUPS + group) * (CHANNELS * IN_SIZE);
        d = (i32)(place / (OUT_H * OUT_W)) * STRIDE_D - PAD_D;
        h = (i32)(place / OUT_W % OUT_H) * STRIDE_H - PAD_H;
        w = (i32)(place % OUT_W) * STRIDE_W - PAD_W;
    }
    __device__ __forceinline__ i32 corner() const { return input_offset(d, h, w); }
};

struct Tap {
    i32 d, h, w;

    __device__ __forceinline__ explicit Tap(u32 tap)
        : d((i32)(tap / (KERNEL_H * KERNEL_W)) * DILATION_D), h((i32)(tap / KERNEL_W % KERNEL_H) * DILATION_H),
          w((i32)(tap % KERNEL_W) * DILATION_W) {}
    __device__ __forceinline__ i32 offset() const { return input_offset(d, h, w); }
    // Dimensions in which no window leaves the input are not looked at.
    __device__ __forceinline__ bool inside(const Pixel& p) const {
        return (!LEAVES_D || (u32)(p.d + d) < IN_D) && (!LEAVES_H || (u32)(p.h + h) < IN_H) &&
               (!LEAVES_W || (u32)(p.w + w) < IN_W);
    }
};
