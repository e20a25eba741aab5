"""Products of sparse rows with dense inputs on the CPU, tile by tile.

A tile is a few vector registers of positions (tokens, pixels). Tokens are packed first, inputs by positions, and the pixels of a
convolution are neighbours already, so a tile of all inputs stays in the second-level cache while all rows use it. A row keeps its sums in
registers. A weight that is not zero costs one multiply-add for each vector; one that is zero costs nothing.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import types

from kernels.sparse.vector import LANES, row_product, transposition

LINE_BYTES = 64  # a vector that crosses a line of the cache takes two loads

_multiply_packed = row_product(types.uint16, packed=True)
_multiply_placed = row_product(types.uint32, packed=False)
_transpose_square = transposition()
_compiled = numba.njit(cache=True, nogil=True, error_model="numpy")


@numba.njit(cache=True, nogil=True, error_model="numpy", parallel=True)
def linear(x_TC, values, columns, starts, bias_R, out_TR, vectors, tiles, parts):
    """Computes ``out = x W^T + bias`` for the sparse rows of W, in ``tiles`` of the tokens by ``parts`` of the rows.

    All arrays are contiguous; ``out_TR`` does not overlap the others.
    """
    rows = len(bias_R)
    for task in numba.prange(tiles * parts):
        tile, part = task // parts, task % parts
        _linear_tile(x_TC, values, columns, starts, bias_R, out_TR, vectors, tile, part * rows // parts, (part + 1) * rows // parts)


@_compiled
def _linear_tile(x_TC, values, columns, starts, bias_R, out_TR, vectors, tile, first, last):
    tokens, inputs = x_TC.shape
    outputs, width, begin = len(bias_R), vectors * LANES, tile * vectors * LANES
    count = min(width, tokens - begin)
    packed, at = _buffer(inputs * width)
    _pack_tokens(x_TC.reshape(-1), begin, count, inputs, packed, at, width)
    sums, sums_at = _buffer(LANES * width)
    flat = out_TR.reshape(-1)
    for row in range(first, last, LANES):
        lines = min(LANES, last - row)
        for line in range(lines):
            r = row + line
            _multiply_packed(vectors, sums, sums_at + line * width, bias_R[r], values, columns, starts[r], starts[r + 1], packed, at)
        whole = count // LANES * LANES if lines == LANES else 0
        for t in range(0, whole, LANES):
            _transpose_square(flat, (begin + t) * outputs + row, outputs, sums, sums_at + t, width)
        for t in range(whole, count):
            for line in range(lines):
                flat[(begin + t) * outputs + row + line] = sums[sums_at + line * width + t]


@_compiled
def _pack_tokens(x, begin, count, inputs, packed, at, width):
    """Copies tokens of ``inputs`` floats to inputs of ``width`` floats, with zeros beyond the last token."""
    whole, square = inputs // LANES * LANES, count // LANES * LANES
    for c in range(0, whole, LANES):
        for t in range(0, square, LANES):
            _transpose_square(packed, at + c * width + t, width, x, (begin + t) * inputs + c, inputs)
    for c in range(inputs):
        for t in range(square if c < whole else 0, count):
            packed[at + c * width + t] = x[(begin + t) * inputs + c]
        for t in range(count, width):
            packed[at + c * width + t] = 0.0


@numba.njit(cache=True, nogil=True, error_model="numpy", parallel=True)
def convolution(x_NCHW, values, places, starts, bias_R, out_NRHW, groups, stride, phases, padding, padded_sizes, vectors, tiles, parts):
    """Computes a convolution with the sparse rows of its weight, in ``tiles`` of the positions by ``parts`` of the rows.

    The padded image has a height, a breadth, and a number of floats from one channel to the next (``padded_sizes``), for each of the
    ``phases`` of the ``stride``, so that the inputs of neighbouring outputs are neighbours. ``places`` are those of the inputs of the
    first output. Height 0: the images themselves are read, and no tile is larger than an image.
    """
    height, breadth, distance = padded_sizes
    images, channels, rows = len(x_NCHW), x_NCHW.shape[1], len(bias_R) // groups
    pixels, size = x_NCHW.shape[2] * x_NCHW.shape[3], phases[0] * phases[1] * channels * distance
    padded, at = x_NCHW.reshape(-1), 0
    if height:
        padded, at = _buffer(images * size + vectors * LANES)
        x = x_NCHW.reshape(-1)
        for line in numba.prange(images * channels):
            image, channel = line // channels, line % channels
            for phase in range(phases[0] * phases[1]):
                start = at + image * size + (phase * channels + channel) * distance
                top, left = phase // phases[1] - padding[0], phase % phases[1] - padding[1]
                _pad(x, line * pixels, x_NCHW.shape[2], x_NCHW.shape[3], padded, start, top, left, stride, height, breadth)
    for task in numba.prange(images * groups * tiles * parts):
        image, rest = task // (groups * tiles * parts), task % (groups * tiles * parts)
        group, tile, part = rest // (tiles * parts), rest // parts % tiles, rest % parts
        first, last = group * rows + part * rows // parts, group * rows + (part + 1) * rows // parts
        inputs_at = at + image * size + group * (channels // groups) * distance
        _convolve(padded, inputs_at, values, places, starts, bias_R, out_NRHW[image], breadth, height == 0, vectors, tile, first, last)


@_compiled
def _pad(x, source, source_height, source_breadth, padded, start, top, left, stride, height, breadth):
    """Writes the pixels of one phase of an image, with zeros around it."""
    before = max(0, -(left // stride[1]))
    within = min(breadth, before + max(0, -(-(source_breadth - left - before * stride[1]) // stride[1])))
    for y in range(height):
        line, row = start + y * breadth, top + y * stride[0]
        if row < 0 or row >= source_height:
            for k in range(breadth):
                padded[line + k] = 0.0
            continue
        first = source + row * source_breadth + left
        for k in range(before):
            padded[line + k] = 0.0
        if stride[1] == 1:
            for k in range(before, within):
                padded[line + k] = x[first + k]
        else:
            for k in range(before, within):
                padded[line + k] = x[first + k * stride[1]]
        for k in range(within, breadth):
            padded[line + k] = 0.0


@_compiled
def _convolve(inputs, inputs_at, values, places, starts, bias_R, out_RHW, breadth, direct, vectors, tile, first, last):
    lines, columns = out_RHW.shape[1:]
    width, positions = vectors * LANES, (lines - 1) * breadth + columns
    begin = min(tile * width, positions - width) if direct else tile * width
    end = min(begin + width, positions)
    sums, sums_at = _buffer(width)
    flat = out_RHW.reshape(-1)
    begin_y, begin_x = begin // breadth, begin % breadth
    for r in range(first, last):
        start, stop, target = starts[r], starts[r + 1], r * lines * columns
        if direct:
            _multiply_placed(vectors, flat, target + begin, bias_R[r], values, places, start, stop, inputs, inputs_at + begin)
            continue
        _multiply_placed(vectors, sums, sums_at, bias_R[r], values, places, start, stop, inputs, inputs_at + begin)
        y, x, t = begin_y, begin_x, begin
        while t < end:  # one line of the output, without the inputs between two lines
            to, source = target + y * columns + x, sums_at + t - begin
            for k in range(min(columns - x, end - t)):
                flat[to + k] = sums[source + k]
            t += breadth - x
            x, y = 0, y + 1


@_compiled
def _buffer(size):
    """Returns memory for floats, and the first index at a line of the cache."""
    memory = np.empty(size + LINE_BYTES // 4, dtype=np.float32)
    return memory, -(memory.ctypes.data // 4) % (LINE_BYTES // 4)
