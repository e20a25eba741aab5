"""Compiled elimination of single weights: Cholesky of the packed ``A`` with the pivot rule ``argmin w_q^2 / A_qq``.

It needs the pivot columns, the running diagonal and the running weights, not the updated matrix. So pivots are taken in panels and the
trailing matrix is updated once per panel by a matrix product, lower triangle only. A pivot's place is taken by the last entry that is still
there, so that what is left stays dense. An entry that its bucket holds back leaves in the same way: it will never be a pivot, so neither
its row nor its weight matters any more.
"""

from __future__ import annotations

import numba
import numpy as np

from kernels.obs.packed import subtract_square
from kernels.obs.vector import LINE_COLUMNS, add_line

LAST = np.iinfo(np.int64).max


@numba.njit(nogil=True, error_model="numpy")
def eliminate_weights(a, w, diagonal, floor, m, entry, place, panel, score, bucket, removable, order_B, loss_B):
    """Returns the number of steps. ``place[e]`` is where entry ``e`` of the block stands among the packed ones; -1: nowhere."""
    place[:] = -1
    for i in range(m):
        place[entry[i]] = i
        score[i] = w[i] * w[i] / diagonal[i]
    if bucket:
        for e in range(0, len(order_B), bucket):
            if _gone(place, e, bucket) >= removable:
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
            _leave(a, panel, pivots, w, diagonal, floor, score, entry, place, q, m)
            if bucket and _gone(place, e // bucket * bucket, bucket) >= removable:
                m = _drop(a, panel, pivots, w, diagonal, floor, score, entry, place, e // bucket * bucket, bucket, m)
        subtract_square(a, m, panel, pivots)
    return step


@numba.njit(nogil=True, error_model="numpy")
def take_column(a, panel, p, q, m):
    """``panel[p] = A[:, q]``, brought up to date with the pivots that the panel has already."""
    column = panel[p]
    for i in range(q + 1):
        column[i] = a[q, i]
    for i in range(q + 1, m):
        column[i] = a[i, q]
    for j in range(0, m, LINE_COLUMNS):
        add_line(panel, p, j, -1.0, panel, q, panel, 0, p)


@numba.njit(nogil=True, error_model="numpy")
def move_entry(a, panel, pivots, q, last):
    """Put the last packed entry where ``q`` stood, but for its diagonal."""
    for p in range(pivots):
        panel[p, q] = panel[p, last]
    for i in range(q):
        a[q, i] = a[last, i]
    for i in range(q + 1, last):
        a[i, q] = a[last, i]


@numba.njit(nogil=True, error_model="numpy")
def _cheapest(score_bits, entry, m):
    """The entry with the least score; of several the one that comes first in the block. Floats that are not negative sort like their bits,
    and only the minimum of whole numbers is compiled to vector instructions."""
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
def _leave(a, panel, pivots, w, diagonal, floor, score, entry, place, q, last):
    """Put the last packed entry where ``q`` stood. Also when ``q`` is the last: a branch here makes a pivot take a fifth longer."""
    gone = entry[q]
    w[q], diagonal[q], floor[q], score[q], entry[q] = w[last], diagonal[last], floor[last], score[last], entry[last]
    place[entry[q]] = q
    place[gone] = -1
    move_entry(a, panel, pivots, q, last)


@numba.njit(nogil=True, error_model="numpy")
def _gone(place, first, bucket):
    """How many entries of a bucket are not there any more."""
    gone = 0
    for e in range(first, first + bucket):
        gone += place[e] < 0
    return gone


@numba.njit(nogil=True, error_model="numpy")
def _drop(a, panel, pivots, w, diagonal, floor, score, entry, place, first, bucket, m):
    """Let what is left of a bucket leave; returns how many entries stay packed."""
    for e in range(first, first + bucket):
        if place[e] >= 0:
            m -= 1
            _leave(a, panel, pivots, w, diagonal, floor, score, entry, place, place[e], m)
    return m
