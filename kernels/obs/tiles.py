"""Compiled elimination of whole tiles: Cholesky of the packed ``A`` by tiles, each time the tile with the least loss.

The pivot columns of a tile are those of its entries one by one; only the choice is made by ``w_G^T (A_GG)^-1 w_G``. Besides the panel,
``a_gg`` therefore keeps ``A_GG`` of every tile up to date. In all arrays with an entry for each tile, the tile is the last index, so that
loops over tiles are vectorised.
"""

from __future__ import annotations

import numba
import numpy as np

from kernels.linalg import ROUNDING
from kernels.obs.greedy import move_entry, take_column
from kernels.obs.packed import subtract, subtract_square


@numba.njit(nogil=True, error_model="numpy")
def pack_tiles(alive_B, tile, entry):
    """Writes the positions of all entries of tiles with an alive entry. Returns how many there are."""
    m = 0
    for first in range(0, len(alive_B), tile):
        if alive_B[first : first + tile].any():
            for e in range(first, first + tile):
                entry[m] = e
                m += 1
    return m


@numba.njit(nogil=True, error_model="numpy")
def eliminate_tiles(a, w, floor, a_gg, factor, m, tile, entry, panel, score, order_G, loss_G):
    """Eliminates all tiles. Returns the number of steps. ``floor`` comes from ``least_pivots``; ``a_gg`` and ``factor`` are scratch."""
    tiles = m // tile
    for g in range(tiles):
        for r in range(tile):
            for c in range(r + 1):
                a_gg[r, c, g] = a[g * tile + r, g * tile + c]
    score_tiles(a_gg, factor, floor, w, tile, tiles, score)
    step = 0
    while tiles > 0:
        pivots = 0
        while pivots + tile <= len(panel) and tiles > 0:
            g = _cheapest(score, entry, tile, tiles)
            order_G[step] = entry[g * tile] // tile
            loss_G[step] = score[g] / 2
            step += 1
            for r in range(tile):
                take_column(a, panel, pivots + r, g * tile + r, tiles * tile)
                column, scale = panel[pivots + r], 1.0 / factor[r, r, g]
                for j in range(tiles * tile):
                    column[j] *= scale
                subtract(w, factor[r, tile, g], column, 0, tiles * tile)
            _update_a_gg(a_gg, factor, panel, pivots, tile, tiles)
            pivots += tile
            tiles -= 1
            _unpack(a, panel, pivots, w, floor, a_gg, entry, tile, g, tiles)
            score_tiles(a_gg, factor, floor, w, tile, tiles, score)
        subtract_square(a, tiles * tile, panel, pivots)
    return step


@numba.njit(nogil=True, error_model="numpy")
def _cheapest(score, entry, tile, tiles):
    """Returns the tile with the least score; of several, the one that comes first in the block."""
    best = 0
    for g in range(1, tiles):
        if score[g] < score[best] or (score[g] == score[best] and entry[g * tile] < entry[best * tile]):
            best = g
    return best


@numba.njit(nogil=True, error_model="numpy")
def _update_a_gg(a_gg, spread, panel, pivots, tile, tiles):
    """Computes ``A_GG -= X_G X_G^T`` for every tile, with ``X`` the last pivot columns. ``spread`` is scratch."""
    for k in range(tile):
        for r in range(tile):
            for g in range(tiles):
                spread[k, r, g] = panel[pivots + k, g * tile + r]
    for r in range(tile):
        for c in range(r + 1):
            for k in range(tile):
                _subtract_product(a_gg[r, c], spread[k, r], spread[k, c], tiles)


@numba.njit(nogil=True, error_model="numpy", fastmath={"contract"})
def _subtract_product(total, x, y, tiles):
    for g in range(tiles):
        total[g] -= x[g] * y[g]


@numba.njit(nogil=True, error_model="numpy")
def _unpack(a, panel, pivots, w, floor, a_gg, entry, tile, g, last):
    """Removes tile ``g`` by moving the last tile to its place, from the last entry to the first."""
    for r in range(tile - 1, -1, -1):
        source, target = last * tile + r, g * tile + r
        move_entry(a, panel, pivots, target, source)
        w[target], entry[target], floor[r, g] = w[source], entry[source], floor[r, last]
        for c in range(r + 1):
            a_gg[r, c, g] = a_gg[r, c, last]


@numba.njit(nogil=True, error_model="numpy")
def a_gg_of_inverse(z, a_gg, m, tile):
    """Computes the lower triangles of ``A_GG`` for every tile from ``A = z^T z``, without the rest of ``A``."""
    a_gg[:] = 0.0
    for p in range(m):
        for r in range(min(tile, p + 1)):
            for c in range(r + 1):
                for g in range((p - r) // tile + 1):
                    a_gg[r, c, g] += z[p, g * tile + r] * z[p, g * tile + c]


@numba.njit(nogil=True, error_model="numpy")
def least_pivots(mean_BB, alive_B, dampening, entry, tile, tiles, rest, floor):
    """Computes lower bounds for the squared pivots of ``A_GG``; see ``reference.least_pivots``. ``rest`` is scratch."""
    for g in range(tiles):
        for r in range(tile):
            e = entry[g * tile + r]
            for c in range(r + 1):
                f = entry[g * tile + c]
                rest[r, c, g] = mean_BB[e, f] if alive_B[e] and alive_B[f] else 0.0
            rest[r, r, g] = rest[r, r, g] + dampening if alive_B[e] else 1.0
            floor[r, g] = 8.0 * (tile - 1) * ROUNDING * rest[r, r, g]
        for k in range(tile - 1, -1, -1):
            pivot = max(rest[k, k, g], 0.0) + floor[k, g]
            floor[k, g] = (1.0 if tile == 1 else 0.5) / pivot
            for r in range(k):
                for c in range(r + 1):
                    rest[r, c, g] -= rest[k, r, g] * rest[k, c, g] / pivot


@numba.njit(nogil=True, error_model="numpy", fastmath={"contract"})
def score_tiles(a_gg, factor, floor, w, tile, tiles, score):
    """Computes ``w_G^T (A_GG)^-1 w_G`` for every tile.

    ``factor[:, :tile]`` receives the Cholesky factors ``L`` of ``A_GG``, with no pivot below its floor, and ``factor[:, tile]`` receives
    ``L^-1 w_G``.
    """
    for g in range(tiles):
        score[g] = 0.0
    for r in range(tile):
        root = factor[r, tile]
        for g in range(tiles):
            root[g] = w[g * tile + r]
        for c in range(r):
            _substitute(factor[r, c], a_gg[r, c], factor, r, c, tiles)
            _subtract_product(root, factor[r, c], factor[c, tile], tiles)
        pivot = factor[r, r]
        for g in range(tiles):
            pivot[g] = a_gg[r, r, g]
        for k in range(r):
            _subtract_product(pivot, factor[r, k], factor[r, k], tiles)
        for g in range(tiles):
            pivot[g] = np.sqrt(max(pivot[g], floor[r, g]))
            root[g] /= pivot[g]
            score[g] += root[g] * root[g]


@numba.njit(nogil=True, error_model="numpy", fastmath={"contract"})
def _substitute(out, a_gg, factor, r, c, tiles):
    for g in range(tiles):
        out[g] = a_gg[g]
    for k in range(c):
        _subtract_product(out, factor[r, k], factor[c, k], tiles)
    for g in range(tiles):
        out[g] /= factor[c, c, g]
