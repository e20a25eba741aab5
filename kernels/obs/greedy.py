"""Compiled elimination of single weights: Cholesky of the packed ``A`` with the pivot rule ``argmin w_q^2 / A_qq``.

It needs the pivot columns, the running diagonal and the running weights, but not the updated matrix. So pivots are processed in panels, and
the trailing matrix is updated once for each panel by a matrix product, lower triangle only. The last packed entry moves to the place of a
removed pivot, so that the packed matrix remains dense. An entry that is kept by its bucket is dropped in the same way: it will never be a
pivot, so its row and its weight do not matter any more.
"""

from __future__ import annotations

import numba
import numpy as np

from kernels.obs.packed import subtract_square
from kernels.obs.vector import LINE_COLUMNS, add_line

LAST = np.iinfo(np.int64).max


@numba.njit(nogil=True, error_model="numpy")
def eliminate_weights(a, w, diagonal, floor, m, entry, place, panel, score, bucket, removable, order_B, loss_B):
    """Eliminates all weights. Returns the number of steps. ``place[e]`` is the packed position of entry ``e`` of the block; -1: none."""
    place[:] = -1
    for i in range(m):
        place[entry[i]] = i
        score[i] = w[i] * w[i] / diagonal[i]
    if bucket:
        for e in range(0, len(order_B), bucket):
            if _unpacked(place, e, bucket) >= removable:
                m = _drop(a, panel, 0, w, diagonal, floor, score, entry, place, e, bucket, m)
    score_bits = score.view(np.int64)
    step = 0
    while m > 0:
        pivots = 0
        while pivots < len(panel) and m > 0:
            q = place[_cheapest(score_bits, entry, m)]
            e = entry[q]
            order_B[step] = e
            loss_B[step] = score[q] / 2
            step += 1
            take_column(a, panel, pivots, q, m)
            column = panel[pivots]
            root = np.sqrt(diagonal[q])
            _update_diagonal(column, 1.0 / root, diagonal, floor, m)
            _update_weights(column, w[q] / root, w, diagonal, score, m)
            pivots += 1
            m -= 1
            _unpack(a, panel, pivots, w, diagonal, floor, score, entry, place, q, m)
            if bucket and _unpacked(place, e // bucket * bucket, bucket) >= removable:
                m = _drop(a, panel, pivots, w, diagonal, floor, score, entry, place, e // bucket * bucket, bucket, m)
        subtract_square(a, m, panel, pivots)
    return step


@numba.njit(nogil=True, error_model="numpy")
def take_column(a, panel, p, q, m):
    """Computes ``panel[p] = A[:, q]``, updated for the pivots that are in the panel already."""
    column = panel[p]
    for i in range(q + 1):
        column[i] = a[q, i]
    for i in range(q + 1, m):
        column[i] = a[i, q]
    for j in range(0, m, LINE_COLUMNS):
        add_line(panel, p, j, -1.0, panel, q, panel, 0, p)


@numba.njit(nogil=True, error_model="numpy")
def move_entry(a, panel, pivots, q, last):
    """Moves the last packed entry to position ``q``, except for its diagonal."""
    for p in range(pivots):
        panel[p, q] = panel[p, last]
    for i in range(q):
        a[q, i] = a[last, i]
    for i in range(q + 1, last):
        a[i, q] = a[last, i]


@numba.njit(nogil=True, error_model="numpy")
def _cheapest(score_bits, entry, m):
    """Returns the entry with the least score; of several, the one that comes first in the block.

    Non-negative floats sort like their bits, and only the minimum of integers is compiled to vector instructions.
    """
    least = np.int64(LAST)
    for j in range(m):
        least = min(least, score_bits[j])
    first = np.int64(LAST)
    for j in range(m):
        first = min(first, entry[j] if score_bits[j] == least else np.int64(LAST))
    return first


@numba.njit(nogil=True, error_model="numpy", fastmath={"contract"})
def _update_diagonal(column, scale, diagonal, floor, m):
    for j in range(m):
        column[j] *= scale
        diagonal[j] = max(diagonal[j] - column[j] * column[j], floor[j])


@numba.njit(nogil=True, error_model="numpy", fastmath={"contract"})
def _update_weights(column, ratio, w, diagonal, score, m):
    for j in range(m):
        w[j] -= ratio * column[j]
        score[j] = w[j] * w[j] / diagonal[j]


@numba.njit(nogil=True, error_model="numpy")
def _unpack(a, panel, pivots, w, diagonal, floor, score, entry, place, q, last):
    """Removes packed position ``q`` by moving the last entry there.

    If ``q`` is the last position, it is moved to itself: a branch would make a pivot take a fifth longer.
    """
    removed = entry[q]
    w[q], diagonal[q], floor[q], score[q], entry[q] = w[last], diagonal[last], floor[last], score[last], entry[last]
    place[entry[q]] = q
    place[removed] = -1
    move_entry(a, panel, pivots, q, last)


@numba.njit(nogil=True, error_model="numpy")
def _unpacked(place, first, bucket):
    """Returns how many entries of a bucket are not packed any more."""
    count = 0
    for e in range(first, first + bucket):
        count += place[e] < 0
    return count


@numba.njit(nogil=True, error_model="numpy")
def _drop(a, panel, pivots, w, diagonal, floor, score, entry, place, first, bucket, m):
    """Drops the remaining entries of a bucket. Returns how many entries are still packed."""
    for e in range(first, first + bucket):
        if place[e] >= 0:
            m -= 1
            _unpack(a, panel, pivots, w, diagonal, floor, score, entry, place, place[e], m)
    return m
