"""Compiled operations on one block, in the scratch memory of its thread.

``work`` is (matrix, panel, lines, places, a_gg, factor, floor): the matrix for the factor and then the inverse, a strip of pivot columns,
vectors of numbers and of positions, and what ``tiles`` needs for each tile. ``report`` receives the dampening, and +inf or the pivot that
failed.
"""

from __future__ import annotations

import numba
import numpy as np

from kernels.obs.greedy import eliminate_weights
from kernels.obs.packed import SHIFT, STRIP, dot, factor_dampened, gathered_dot, invert_factor, pack, square, subtract
from kernels.obs.tiles import a_gg_of_inverse, eliminate_tiles, least_pivots, pack_tiles, score_tiles
from kernels.obs.vector import LINE_COLUMNS, TILE_ROWS

LINES = 4  # vectors of a thread


@numba.njit(nogil=True, error_model="numpy")
def shape(block_size, tile):
    """Returns rows and width of a thread's matrix, and rows of its panel.

    A row takes an odd number of cache lines, so that the entries of a column do not compete for the same cache sets.
    """
    panel = max(STRIP, (tile + STRIP - 1) // STRIP * STRIP)
    return block_size + SHIFT + TILE_ROWS, ((block_size + LINE_COLUMNS + STRIP) // 16 + 1) * 16 + 8, panel


@numba.njit(nogil=True, error_model="numpy")
def scratch(block_size, tile):
    rows, width, panel = shape(block_size, tile)
    tiles = max(1, block_size // tile)
    return (
        _lines(rows, width),
        _lines(panel, width),
        _lines(LINES, width),
        np.zeros((2, width), dtype=np.int64),
        np.zeros((tile, tile, tiles)),
        np.zeros((tile, tile + 1, tiles)),
        np.zeros((tile, tiles)),
    )


@numba.njit(nogil=True, error_model="numpy")
def _lines(rows, width):
    """Returns zeros whose rows start at cache lines, since vectors across two lines take twice as long."""
    flat = np.zeros(rows * width + 8)
    skip = (8 - flat.ctypes.data // 8 % 8) % 8
    return flat[skip : skip + rows * width].reshape(rows, width)


@numba.njit(nogil=True, error_model="numpy")
def _pack(alive_B, tile, entry):
    return pack(alive_B, entry) if tile == 1 else pack_tiles(alive_B, tile, entry)


@numba.njit(nogil=True, error_model="numpy")
def _invert_factor(mean_BB, alive_B, absolute, tile, report, work):
    matrix, _, lines, places, _, _, _ = work
    m = _pack(alive_B, tile, places[0])
    factor_dampened(mean_BB, alive_B, places[0], m, absolute, matrix, lines[0], report)
    if report[1] == np.inf:
        invert_factor(matrix, matrix[SHIFT:], m)
    return m


@numba.njit(nogil=True, error_model="numpy")
def invert_block(mean_BB, alive_B, absolute, tile, report, work):
    """Computes ``A`` of the packed entries. Returns how many there are."""
    m = _invert_factor(mean_BB, alive_B, absolute, tile, report, work)
    if report[1] == np.inf:
        square(work[0][SHIFT:], m, work[1])
    return m


@numba.njit(nogil=True, error_model="numpy")
def square_tiles(mean_BB, alive_B, absolute, tile, report, work):
    """Computes ``A_GG`` of every tile, and the lower bounds of its pivots."""
    _, _, _, places, a_gg, factor, floor = work
    m = _invert_factor(mean_BB, alive_B, absolute, tile, report, work)
    if report[1] == np.inf:
        least_pivots(mean_BB, alive_B, report[0], places[0], tile, m // tile, factor, floor)
        a_gg_of_inverse(work[0][SHIFT:], a_gg, m, tile)


@numba.njit(nogil=True, error_model="numpy")
def copy_inverse(common, work, alive_B, tile):
    """Copies the result of ``invert_block`` for the same entries."""
    a, copy = common[0][SHIFT:], work[0][SHIFT:]
    m = _pack(alive_B, tile, work[3][0])
    for i in range(m):
        copy[i, : i + 1] = a[i, : i + 1]
    return m


@numba.njit(nogil=True, error_model="numpy")
def _take_weights(weight_B, alive_B, entry, m, w):
    for i in range(m):
        w[i] = weight_B[entry[i]] if alive_B[entry[i]] else 0.0


@numba.njit(nogil=True, error_model="numpy")
def eliminate_block(weight_B, mean_BB, alive_B, limits, m, order_G, loss_G, dampening, work):
    """Runs all steps from the inverse of the ``m`` packed entries, then appends entries that cannot be removed.

    ``limits`` is (tile, bucket, removable).
    """
    matrix, panel, lines, places, a_gg, factor, floor = work
    (tile, bucket, removable), a = limits, matrix[SHIFT:]
    entry, place, w, score = places[0], places[1], lines[0], lines[1]
    _take_weights(weight_B, alive_B, entry, m, w)
    if tile == 1:
        diagonal, least = lines[2], lines[3]
        for i in range(m):
            diagonal[i] = a[i, i]
            least[i] = 1.0 / (mean_BB[entry[i], entry[i]] + dampening)
        steps = eliminate_weights(a, w, diagonal, least, m, entry, place, panel, score, bucket, removable, order_G, loss_G)
    else:
        least_pivots(mean_BB, alive_B, dampening, entry, tile, m // tile, a_gg, floor)
        steps = eliminate_tiles(a, w, floor, a_gg, factor, m, tile, entry, panel, score, order_G, loss_G)
    removed = places[1]
    removed[: len(order_G)] = 0
    for k in range(steps):
        removed[order_G[k]] = 1
    for g in range(len(order_G)):
        if removed[g] == 0:
            order_G[steps] = g
            loss_G[steps] = np.inf
            steps += 1


@numba.njit(nogil=True, error_model="numpy")
def score_block(weight_B, alive_B, tile, loss_G, squared, work):
    """Computes the loss of removing each tile alone; ``squared`` is the ``work`` that ``square_tiles`` wrote."""
    entry, a_gg, floor = squared[3][0], squared[4], squared[6]
    w, score, factor = work[2][0], work[2][1], work[5]
    m = _pack(alive_B, tile, work[3][1])
    _take_weights(weight_B, alive_B, entry, m, w)
    score_tiles(a_gg, factor, floor, w, tile, m // tile, score)
    for g in range(m // tile):
        loss_G[entry[g * tile] // tile] = score[g] / 2


@numba.njit(nogil=True, error_model="numpy")
def solve_block(inputs, absolute, solved_B, report, work):
    """Re-fits the kept entries. The slope among ``inputs`` has one row, or none if it is zero."""
    weight_B, mean_BB, keep_B, alive_B, slope_1B = inputs
    u, _, lines, places, _, _, _ = work
    kept = places[0]
    m = pack(keep_B & alive_B, kept)
    factor_dampened(mean_BB, alive_B, kept, m, absolute, u, lines[0], report)
    if report[1] != np.inf:
        return
    removed, lost, pull = places[1], lines[0], lines[1]
    count = pack(alive_B & ~keep_B, removed)
    for j in range(count):
        lost[j] = weight_B[removed[j]]
    for i in range(m):
        pull[i] = gathered_dot(mean_BB[kept[i]], removed, lost, count)
        if len(slope_1B):
            pull[i] += slope_1B[0, kept[i]]
    for p in range(m):
        pull[p] /= u[p, p]
        subtract(pull, pull[p], u[p], p + 1, m)
    for p in range(m - 1, -1, -1):
        pull[p] = (pull[p] - dot(u[p], pull, p + 1, m)) / u[p, p]
    for i in range(m):
        solved_B[kept[i]] = weight_B[kept[i]] + pull[i]
