"""Matrix products and convolutions: sums of products, in three orders of the loops.

Product: ``y[m, i, j] = alpha * sum over k of a[m, i, k] * b[m, k, j] + beta * bias[i, j]``.
Convolution: ``y[n, o, p] = bias[o] + sum over c, t of w[o, c, t] * x[n, c, p's pixel at tap t]``, in groups.

* ``dots`` takes the sum as a dot product of two contiguous rows, so it wants b transposed. It keeps 2 x 4 sums in
  registers: 6 loads for 8 multiply-adds. The sums run in lanes, hence ``reassoc``.
* ``row_updates`` adds four rows of b, scaled, to a row of y: 5 loads and a store for 4 multiply-adds, but needs
  no copy of anything, and the order of each sum is that of k.
* ``direct_conv`` adds a scaled, shifted row of the image to a row of the output.

All tensors float32, row-major. Each reads its operands from memory once for every tile of the other one.
"""

from __future__ import annotations

import numpy as np

from tactician_numba.compiling import helper, kernel

SUM, PRODUCT = {"reassoc", "contract"}, {"contract"}

ZERO = np.float32(0)
COPY_COLUMNS = 16
"""Columns that are transposed together: one cache line of float32."""


@helper(fastmath=SUM)
def dots(a, b, y, stride, bias, bias_row, bias_column, alpha, beta, depth, rows, columns):
    """Write ``y[i * stride + j] = alpha * dot(a[i], b[j]) + beta * bias[i * bias_row + j * bias_column]``.

    a: float32[rows, depth], b: float32[columns, depth]. An odd last row is computed twice, to the same end.
    """
    for i in range(0, rows, 2):
        i2 = min(i + 1, rows - 1)
        u, v = a[i * depth : (i + 1) * depth], a[i2 * depth : (i2 + 1) * depth]
        whole = columns // 4 * 4
        for j in range(0, whole, 4):
            b0, b1 = b[j * depth : (j + 1) * depth], b[(j + 1) * depth : (j + 2) * depth]
            b2, b3 = b[(j + 2) * depth : (j + 3) * depth], b[(j + 3) * depth : (j + 4) * depth]
            s0 = s1 = s2 = s3 = t0 = t1 = t2 = t3 = ZERO
            for k in range(depth):
                s0 += u[k] * b0[k]
                s1 += u[k] * b1[k]
                s2 += u[k] * b2[k]
                s3 += u[k] * b3[k]
                t0 += v[k] * b0[k]
                t1 += v[k] * b1[k]
                t2 += v[k] * b2[k]
                t3 += v[k] * b3[k]
            for number, s, t in ((0, s0, t0), (1, s1, t1), (2, s2, t2), (3, s3, t3)):
                at = (j + number) * bias_column
                y[i * stride + j + number] = alpha * s + beta * bias[i * bias_row + at]
                y[i2 * stride + j + number] = alpha * t + beta * bias[i2 * bias_row + at]
        for j in range(whole, columns):
            b0 = b[j * depth : (j + 1) * depth]
            s0 = t0 = ZERO
            for k in range(depth):
                s0 += u[k] * b0[k]
                t0 += v[k] * b0[k]
            y[i * stride + j] = alpha * s0 + beta * bias[i * bias_row + j * bias_column]
            y[i2 * stride + j] = alpha * t0 + beta * bias[i2 * bias_row + j * bias_column]


@kernel("void(float32[::1], float32[::1], int64, int64, int64, int64)")
def transpose(x, y, rows, columns, begin, end):
    """Write y[m, j, i] = x[m, i, j] for the matrices m from ``begin`` to ``end``."""
    for m in range(begin, end):
        source, result = x[m * rows * columns :], y[m * rows * columns :]
        for j0 in range(0, columns, COPY_COLUMNS):
            j1 = min(j0 + COPY_COLUMNS, columns)
            for i in range(rows):
                for j in range(j0, j1):
                    result[j * rows + i] = source[i * columns + j]


@kernel(
    "void(float32[::1], float32[::1], float32[::1], float32[::1], int64[::1], int64[::1], int64[::1], float32, "
    "float32, int64, int64)"
)
def dot_products(a, b, y, bias, a_at, b_at, sizes, alpha, beta, begin, end):
    """Compute strips ``begin`` to ``end``: ``strip`` rows each, of one matrix after the other.

    sizes: rows, columns, depth, strip, tile, and the strides of bias along rows and columns. A tile of rows of b is
    used for a whole strip before the next one.
    """
    rows, columns, depth, strip, tile = sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]
    bias_row, bias_column = sizes[5], sizes[6]
    strips = (rows + strip - 1) // strip
    for number in range(begin, end):
        m, i = number // strips, number % strips * strip
        height = min(strip, rows - i)
        left = a[a_at[m] + i * depth : a_at[m] + (i + height) * depth]
        for j in range(0, columns, tile):
            width = min(tile, columns - j)
            right = b[b_at[m] + j * depth : b_at[m] + (j + width) * depth]
            result = y[(m * rows + i) * columns + j :]
            dots(
                left, right, result, columns, bias[i * bias_row + j * bias_column :], bias_row, bias_column,
                alpha, beta, depth, height, width,
            )  # fmt: skip


@kernel(
    "void(float32[::1], float32[::1], float32[::1], float32[::1], int64[::1], int64[::1], int64[::1], float32, "
    "float32, int64, int64)",
    fastmath=PRODUCT,
)
def row_updates(a, b, y, bias, a_at, b_at, sizes, alpha, beta, begin, end):
    """Compute rows ``begin`` to ``end`` of all matrices, counted through.

    sizes: rows, columns, depth, strides of a along rows and depth, tile, and the strides of bias. ``tile`` columns
    of y stay in the innermost cache while all of k goes by.
    """
    rows, columns, depth, a_row, a_depth, tile = sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5]
    bias_row, bias_column = sizes[6], sizes[7]
    for j in range(0, columns, tile):
        width = min(tile, columns - j)
        for number in range(begin, end):
            m, i = number // rows, number % rows
            result = y[number * columns + j : number * columns + j + width]
            result[:] = ZERO
            right, at = b[b_at[m] + j :], a_at[m] + i * a_row
            k = 0
            while k + 4 <= depth:
                a0, a1 = a[at + k * a_depth], a[at + (k + 1) * a_depth]
                a2, a3 = a[at + (k + 2) * a_depth], a[at + (k + 3) * a_depth]
                b0, b1 = right[k * columns :][:width], right[(k + 1) * columns :][:width]
                b2, b3 = right[(k + 2) * columns :][:width], right[(k + 3) * columns :][:width]
                for q in range(result.size):
                    result[q] += a0 * b0[q] + a1 * b1[q] + a2 * b2[q] + a3 * b3[q]
                k += 4
            while k < depth:
                a0, b0 = a[at + k * a_depth], right[k * columns :][:width]
                for q in range(result.size):
                    result[q] += a0 * b0[q]
                k += 1
            if alpha != np.float32(1) or beta != ZERO:
                offset = i * bias_row + j * bias_column
                for q in range(result.size):
                    result[q] = alpha * result[q] + beta * bias[offset + q * bias_column]


@helper()
def gather(x, patches, channels, sizes, window, first, count):
    """Write the windows of ``count`` pixels from ``first`` on as rows [channels, taps]; padding is 0."""
    height, width, out_width = sizes[0], sizes[1], sizes[3]
    kernel_h, kernel_w = window[0], window[1]
    at = 0
    for p in range(first, first + count):
        top = p // out_width * window[2] - window[6]
        left = p % out_width * window[3] - window[7]
        for c in range(channels):
            for kh in range(kernel_h):
                h = top + kh * window[4]
                inside = h >= 0 and h < height
                line = (c * height + h) * width
                for kw in range(kernel_w):
                    w = left + kw * window[5]
                    patches[at] = x[line + w] if inside and w >= 0 and w < width else ZERO
                    at += 1


@kernel(
    "void(float32[::1], float32[::1], float32[::1], float32[::1], float32[::1], int64[::1], int64[::1], int64[::1], "
    "int64, int64)"
)
def patch_conv(x, w, bias, y, patches, problem, sizes, window, begin, end):
    """Compute tiles of pixels ``begin`` to ``end``: gather their windows, then dot products with the filters.

    problem: groups, channels and filters of one group, tile. patches: float32[tile, channels * taps], the
    thread's own.
    """
    groups, channels, filters, tile = problem[0], problem[1], problem[2], problem[3]
    plane, pixels = sizes[0] * sizes[1], sizes[2] * sizes[3]
    depth = channels * window[0] * window[1]
    tiles = (pixels + tile - 1) // tile
    for number in range(begin, end):
        image_group, first = number // tiles, number % tiles * tile
        count, group = min(tile, pixels - first), image_group % groups
        gather(x[image_group * channels * plane :], patches, channels, sizes, window, first, count)
        left = w[group * filters * depth : (group + 1) * filters * depth]
        result = y[image_group * filters * pixels + first :]
        one = np.float32(1)
        dots(
            left, patches, result, pixels, bias[group * filters :], 1, 0, one, one, depth, filters, count
        )  # fmt: skip


@kernel(
    "void(float32[::1], float32[::1], float32[::1], float32[::1], int64[::1], int64[::1], int64[::1], int64, int64)",
    fastmath=PRODUCT,
)
def direct_conv(x, w, bias, y, problem, sizes, window, begin, end):
    """Compute planes ``begin`` to ``end`` of the output, counted over images and filters."""
    groups, channels, filters = problem[0], problem[1], problem[2]
    height, width, out_height, out_width = sizes[0], sizes[1], sizes[2], sizes[3]
    kernel_h, kernel_w, stride_h, stride_w = window[0], window[1], window[2], window[3]
    dilation_h, dilation_w, pad_h, pad_w = window[4], window[5], window[6], window[7]
    for number in range(begin, end):
        image, o = number // (groups * filters), number % (groups * filters)
        result = y[number * out_height * out_width : (number + 1) * out_height * out_width]
        result[:] = bias[o]
        for c in range(channels):
            source = x[((image * groups + o // filters) * channels + c) * height * width :]
            for kw in range(kernel_w):
                # of the outputs in a row, those from `low` to `high` meet the image with this tap
                shift = kw * dilation_w - pad_w
                low = (max(0, -shift) + stride_w - 1) // stride_w
                high = min(out_width, (width - 1 - shift) // stride_w + 1)
                if low >= high:
                    continue
                for kh in range(kernel_h):
                    weight = w[((o * channels + c) * kernel_h + kh) * kernel_w + kw]
                    for oh in range(out_height):
                        h = oh * stride_h - pad_h + kh * dilation_h
                        if h < 0 or h >= height:
                            continue
                        line = result[oh * out_width + low : oh * out_width + high]
                        pixels = source[h * width + low * stride_w + shift :]
                        if stride_w == 1:
                            for q in range(line.size):
                                line[q] += weight * pixels[q]
                        else:
                            for q in range(line.size):
                                line[q] += weight * pixels[q * stride_w]
