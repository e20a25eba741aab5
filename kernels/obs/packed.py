"""Compiled linear algebra on the packed alive entries of a block: dampen, factor and invert in one matrix.

``u`` with ``u^T u = H + lambda I`` is in the upper triangle of the scratch matrix. ``z = u^-T`` and then ``A = z^T z`` are in the lower
triangle of the part that starts ``SHIFT`` rows further down, so that tiles may write beyond either triangle.
"""

from __future__ import annotations

import numba
import numpy as np

from kernels.linalg import RAISES, ROUNDING
from kernels.obs.vector import LINE_COLUMNS, TILE_COLUMNS, TILE_ROWS, add_line, add_tile

STRIP = 16  # rows that are updated line by line; a multiple of TILE_ROWS and of TILE_COLUMNS
SHIFT = LINE_COLUMNS + STRIP  # how far a tile or line may reach beyond the diagonal
LOOSE = {"contract", "reassoc"}  # sums may be computed in any (fixed) order


@numba.njit(nogil=True, error_model="numpy")
def pack(chosen_B, entry):
    """Writes the positions of the chosen entries in the block. Returns how many there are."""
    m = 0
    for i in range(len(chosen_B)):
        if chosen_B[i]:
            entry[m] = i
            m += 1
    return m


@numba.njit(nogil=True, error_model="numpy")
def factor_dampened(mean_BB, alive_B, entry, m, absolute, u, original, report):
    """Computes ``u`` with ``u^T u = H + lambda I`` on the packed entries, with those of the identity where they are not alive.

    ``report`` receives the lambda that was used, and +inf or the pivot that failed last.
    """
    report[0] = absolute
    for attempt in range(RAISES + 1):
        if attempt > 0:
            report[0] *= 10.0
        for i in range(m):
            row = mean_BB[entry[i]]
            for j in range(i, m):
                u[i, j] = row[entry[j]]
            u[i, i] += report[0]
        for i in range(m):
            if not alive_B[entry[i]]:
                u[:i, i] = 0.0
                u[i, i:m] = 0.0
                u[i, i] = 1.0
            original[i] = u[i, i]
        report[1] = _factor(u, original, m)
        if report[1] == np.inf:
            return


@numba.njit(nogil=True, error_model="numpy")
def _factor(u, original, m):
    """Computes the Cholesky factor in place, from the upper triangle. Returns +inf, or the pivot that is not larger than its rounding."""
    for start in range(0, m, STRIP):
        stop = min(start + STRIP, m)
        for p in range(start, stop):
            for j in range(start, m, LINE_COLUMNS):
                add_line(u, p, j, -1.0, u, p, u, start, p)
            if not u[p, p] > ROUNDING * original[p]:
                return u[p, p]
            scale = 1.0 / np.sqrt(u[p, p])
            for j in range(p, m):
                u[p, j] *= scale
        for i in range(stop, m, TILE_ROWS):
            for j in range(i // TILE_COLUMNS * TILE_COLUMNS, m, TILE_COLUMNS):
                add_tile(u, i, j, -1.0, u, i, u, start, stop)
    return np.inf


@numba.njit(nogil=True, error_model="numpy")
def invert_factor(u, z, m):
    """Computes ``z = u^-T``, lower triangular, with zeros as far as a tile reaches beyond the diagonal."""
    for start in range(0, m, STRIP):
        stop = min(start + STRIP, m)
        for p in range(start, stop):
            z[p, : p + SHIFT] = 0.0
        for j in range(0, start, TILE_COLUMNS):
            for i in range(start, stop, TILE_ROWS):
                add_tile(z, i, j, -1.0, u, i, z, j, start)
        for p in range(start, stop):
            for j in range(0, p, LINE_COLUMNS):
                add_line(z, p, j, -1.0, u, p, z, start, p)
            z[p, p] = 1.0
            scale = 1.0 / u[p, p]
            for j in range(p + 1):
                z[p, j] *= scale


@numba.njit(nogil=True, error_model="numpy")
def square(z, m, rows):
    """Computes the lower triangle of ``A = z^T z`` in place of ``z``, since a row of ``A`` needs no row of ``z`` above it.

    ``rows`` is scratch memory.
    """
    for start in range(0, m, STRIP):
        stop = min(start + STRIP, m)
        rows[:STRIP, : stop + TILE_COLUMNS] = 0.0
        for j in range(0, stop, TILE_COLUMNS):
            for i in range(start, stop, TILE_ROWS):
                if j < i + TILE_ROWS:
                    add_tile(rows, i - start, j, 1.0, z, i, z, i, m)
        for i in range(start, stop):
            for j in range(i + 1):
                z[i, j] = rows[i - start, j]


@numba.njit(nogil=True, error_model="numpy")
def subtract_square(a, m, panel, last):
    """Computes the lower triangle of ``a[:m, :m] -= sum_p panel[p]^T panel[p]`` for ``p < last``. Writes beyond it, up to whole tiles."""
    for i in range(0, m, TILE_ROWS):
        for j in range(0, min(i + TILE_ROWS, m), TILE_COLUMNS):
            add_tile(a, i, j, -1.0, panel, i, panel, 0, last)


@numba.njit(nogil=True, error_model="numpy", fastmath=LOOSE)
def dot(x, y, first, last):
    total = 0.0
    for j in range(first, last):
        total += x[j] * y[j]
    return total


@numba.njit(nogil=True, error_model="numpy", fastmath=LOOSE)
def gathered_dot(x, entry, y, count):
    total = 0.0
    for j in range(count):
        total += x[entry[j]] * y[j]
    return total


@numba.njit(nogil=True, error_model="numpy", fastmath={"contract"})
def subtract(x, factor, y, first, last):
    for j in range(first, last):
        x[j] -= factor * y[j]
