"""Means along one block of axes, and maxima of windows.

Mean: ``y[o, i] = sum over n of x[o, n, i] / count``; x: float32[outer, count, inner]. Sums are kept in float64:
numbers of either sign may leave little of each other, and a mean may be the only output.
MaxPool: ``y[p, h, w] = max over the window of x[p, h', w']``; x: float32[planes, height, width], y:
float32[planes, out_height, out_width]. Padding never wins, so windows are cut to the image.

Both row-major, 4 bytes read for each element of x once (windows that overlap find it in the cache). A thread
has whole ``outer`` items or planes.
"""

from __future__ import annotations

import numpy as np

from tactician_numba.compiling import helper, kernel

ZERO = np.float64(0)


@helper(fastmath={"reassoc", "contract"})
def sum_of(x):
    """Return the sum, in lanes."""
    total = ZERO
    for i in range(x.size):
        total += x[i]
    return total


@kernel("void(float32[::1], float32[::1], float64[::1], int64, int64, int64)")
def mean(x, y, sums, count, begin, end):
    """Compute items ``begin`` to ``end``; sums: float64[inner], the thread's own."""
    inner = sums.size
    for o in range(begin, end):
        result = y[o * inner : (o + 1) * inner]
        if inner == 1:
            result[0] = sum_of(x[o * count : (o + 1) * count]) / count
            continue
        sums[:] = ZERO
        for n in range(count):
            line = x[(o * count + n) * inner : (o * count + n + 1) * inner]
            for i in range(line.size):
                sums[i] += line[i]
        for i in range(result.size):
            result[i] = sums[i] / count


@kernel("void(float32[::1], float32[::1], int64[::1], int64[::1], int64, int64)")
def max_pool(x, y, sizes, window, begin, end):
    height, width, out_height, out_width = sizes[0], sizes[1], sizes[2], sizes[3]
    kernel_h, kernel_w, stride_h, stride_w = window[0], window[1], window[2], window[3]
    dilation_h, dilation_w, pad_h, pad_w = window[4], window[5], window[6], window[7]
    for p in range(begin, end):
        plane = x[p * height * width : (p + 1) * height * width]
        result = y[p * out_height * out_width : (p + 1) * out_height * out_width]
        for oh in range(out_height):
            for ow in range(out_width):
                best = np.float32(-np.inf)
                for kh in range(kernel_h):
                    h = oh * stride_h - pad_h + kh * dilation_h
                    if h < 0 or h >= height:
                        continue
                    for kw in range(kernel_w):
                        w = ow * stride_w - pad_w + kw * dilation_w
                        if w >= 0 and w < width:
                            v = plane[h * width + w]
                            # once it is NaN it stays so: no comparison with NaN holds
                            best = best if v <= best or best != best else v
                result[oh * out_width + ow] = best
