"""Compiled elimination of whole units of neighbours: Cholesky of the packed ``A`` by units, each time the one that costs least.

The pivot columns of a unit are those that its entries would have one after the other; only the choice is made by
``w_G^T (A_GG)^-1 w_G``. So next to the panel, ``own`` keeps ``A_GG`` of every unit up to date. Everything per unit has the unit as its last
index, for vectors over units.
"""

from __future__ import annotations

import numba
import numpy as np

from kernels.linalg import ROUNDING
from kernels.obs.greedy import move_entry, take_column
from kernels.obs.packed import subtract, subtract_square


@numba.njit(nogil=True, error_model="numpy")
def pack_units(alive_B, unit, entry):
    """All entries of the units that have something alive; returns how many entries that are."""
    m = 0
    for first in range(0, len(alive_B), unit):
        if alive_B[first : first + unit].any():
            for e in range(first, first + unit):
                entry[m] = e
                m += 1
    return m


@numba.njit(nogil=True, error_model="numpy")
def eliminate_units(a, w, floor, own, factor, m, unit, entry, panel, score, order_G, loss_G):
    """Returns the number of steps. ``floor`` as ``least_pivots`` leaves it; ``own`` and ``factor`` are scratch."""
    units = m // unit
    for g in range(units):
        for r in range(unit):
            for c in range(r + 1):
                own[r, c, g] = a[g * unit + r, g * unit + c]
    score_units(own, factor, floor, w, unit, units, score)
    step = 0
    while units > 0:
        pivots = 0
        while pivots + unit <= len(panel) and units > 0:
            g = _cheapest(score, entry, unit, units)
            order_G[step] = entry[g * unit] // unit
            loss_G[step] = score[g] / 2
            step += 1
            for r in range(unit):
                take_column(a, panel, pivots + r, g * unit + r, units * unit)
                column, scale = panel[pivots + r], 1.0 / factor[r, r, g]
                for j in range(units * unit):
                    column[j] *= scale
                subtract(w, factor[r, unit, g], column, 0, units * unit)
            _update_own(own, factor, panel, pivots, unit, units)
            pivots += unit
            units -= 1
            _leave(a, panel, pivots, w, floor, own, entry, unit, g, units)
            score_units(own, factor, floor, w, unit, units, score)
        subtract_square(a, units * unit, panel, pivots)
    return step


@numba.njit(nogil=True, error_model="numpy")
def _cheapest(score, entry, unit, units):
    """The unit with the least score; of several the one that comes first in the block."""
    best = 0
    for g in range(1, units):
        if score[g] < score[best] or (score[g] == score[best] and entry[g * unit] < entry[best * unit]):
            best = g
    return best


@numba.njit(nogil=True, error_model="numpy")
def _update_own(own, spread, panel, pivots, unit, units):
    """``A_GG -= X_G X_G^T`` of every unit, ``X`` the last pivot columns. ``spread`` is scratch."""
    for k in range(unit):
        for r in range(unit):
            for g in range(units):
                spread[k, r, g] = panel[pivots + k, g * unit + r]
    for r in range(unit):
        for c in range(r + 1):
            for k in range(unit):
                _subtract_product(own[r, c], spread[k, r], spread[k, c], units)


@numba.njit(nogil=True, error_model="numpy", fastmath={"contract"})
def _subtract_product(total, x, y, units):
    for g in range(units):
        total[g] -= x[g] * y[g]


@numba.njit(nogil=True, error_model="numpy")
def _leave(a, panel, pivots, w, floor, own, entry, unit, g, last):
    """Put the last unit where ``g`` stood, from its last entry to its first."""
    for r in range(unit - 1, -1, -1):
        there, here = last * unit + r, g * unit + r
        move_entry(a, panel, pivots, here, there)
        w[here], entry[here], floor[r, g] = w[there], entry[there], floor[r, last]
        for c in range(r + 1):
            own[r, c, g] = own[r, c, last]


@numba.njit(nogil=True, error_model="numpy")
def own_of_inverse(z, own, m, unit):
    """``A_GG`` of every unit, lower triangles, from ``A = z^T z``: nothing else of ``A`` is computed."""
    own[:] = 0.0
    for p in range(m):
        for r in range(min(unit, p + 1)):
            for c in range(r + 1):
                for g in range((p - r) // unit + 1):
                    own[r, c, g] += z[p, g * unit + r] * z[p, g * unit + c]


@numba.njit(nogil=True, error_model="numpy")
def least_pivots(mean_BB, alive_B, dampening, entry, unit, units, rest, floor):
    """What the squared pivots of ``A_GG`` may not fall below: see ``reference.least_pivots``. ``rest`` is scratch."""
    for g in range(units):
        for r in range(unit):
            e = entry[g * unit + r]
            for c in range(r + 1):
                f = entry[g * unit + c]
                rest[r, c, g] = mean_BB[e, f] if alive_B[e] and alive_B[f] else 0.0
            rest[r, r, g] = rest[r, r, g] + dampening if alive_B[e] else 1.0
            floor[r, g] = 8.0 * (unit - 1) * ROUNDING * rest[r, r, g]
        for k in range(unit - 1, -1, -1):
            pivot = max(rest[k, k, g], 0.0) + floor[k, g]
            floor[k, g] = (1.0 if unit == 1 else 0.5) / pivot
            for r in range(k):
                for c in range(r + 1):
                    rest[r, c, g] -= rest[k, r, g] * rest[k, c, g] / pivot


@numba.njit(nogil=True, error_model="numpy", fastmath={"contract"})
def score_units(own, factor, floor, w, unit, units, score):
    """``w_G^T (A_GG)^-1 w_G`` of every unit. ``factor[:, :unit]`` gets the Cholesky factors ``L`` of ``A_GG``, with no pivot below its
    floor, and ``factor[:, unit]`` gets ``L^-1 w_G``."""
    for g in range(units):
        score[g] = 0.0
    for r in range(unit):
        root = factor[r, unit]
        for g in range(units):
            root[g] = w[g * unit + r]
        for c in range(r):
            _substitute(factor[r, c], own[r, c], factor, r, c, units)
            _subtract_product(root, factor[r, c], factor[c, unit], units)
        pivot = factor[r, r]
        for g in range(units):
            pivot[g] = own[r, r, g]
        for k in range(r):
            _subtract_product(pivot, factor[r, k], factor[r, k], units)
        for g in range(units):
            pivot[g] = np.sqrt(max(pivot[g], floor[r, g]))
            root[g] /= pivot[g]
            score[g] += root[g] * root[g]


@numba.njit(nogil=True, error_model="numpy", fastmath={"contract"})
def _substitute(at, own, factor, r, c, units):
    for g in range(units):
        at[g] = own[g]
    for k in range(c):
        _subtract_product(at, factor[r, k], factor[c, k], units)
    for g in range(units):
        at[g] /= factor[c, c, g]
