"""Elimination and group solve on the CPU: one compiled pass per block that dampens, factors, inverts and eliminates in cache.

Greedy elimination is Cholesky of ``A = H^-1`` with the pivot rule ``argmin w_q^2 / A_qq``: it needs the pivot columns, the running
diagonal and the running weights, not the updated matrix. So pivots are taken in panels and the trailing matrix is updated once per panel
by a matrix product, lower triangle only. A pivot's place is taken by the last entry that is still there, so that what is left stays dense.

Each block is computed by one thread, the same way whatever the number of threads (``torch.set_num_threads`` is obeyed). The compiled code
is cached by numba, which notices changes of this file only: touch it when ``vector.py`` or a constant of ``linalg.py`` changes.

**Why float64.** With fewer gradients than weights in a block, ``A`` starts at ``1 / lambda`` and must come down to the scale of ``1 / H``
by subtraction once the removed weights exhaust the null space, which costs the digits in between. Measured against the literal loop in
80-bit arithmetic (B = 96, 48 gradients, lambda as a fraction of the mean diagonal): float32 gives another order in 22 of 24 blocks at
1e-4 and in all at 1e-5; this code gives the same order in all down to 1e-8, where the literal float64 loop differs in 14 of 24.
Float32 sums of gradients are themselves indefinite by about 1e-7 of their size: a smaller relative lambda is raised, and reported.
"""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np
import torch
from torch import Tensor

from kernels.linalg import RAISES, ROUNDING, NotPositiveDefinite, layer_dampening
from kernels.obs.reference import Elimination
from kernels.obs.vector import LINE_COLUMNS, TILE_COLUMNS, TILE_ROWS, add_line, add_tile

PANEL = 16  # pivots between two updates of the trailing matrix; a multiple of TILE_ROWS and of TILE_COLUMNS
MARGIN = LINE_COLUMNS + PANEL  # what scratch matrices have beyond a block, so that tiles need no clean edges
GROUPS = 64  # portions of the blocks that threads take
LOOSE = {"contract", "reassoc"}  # sums may be taken in any (fixed) order

LAST = np.iinfo(np.int64).max
SCRATCH = 4  # matrices of a thread
LINES = 4  # vectors of a thread


def eliminate(weights_nB: Tensor, mean_nBB: Tensor, alive_nB: Tensor, dampening: float, relative: bool) -> Elimination:
    """See ``kernels.obs.eliminate``. ``B^3`` flops to invert and ``B^3 / 3`` to eliminate, for the entries that are alive."""
    absolute = layer_dampening(mean_nBB, alive_nB, dampening, relative)
    blocks, block_size = weights_nB.shape
    order_nB = torch.empty(blocks, block_size, dtype=torch.int16)
    loss_nB = torch.empty(blocks, block_size, dtype=torch.float32)
    dampening_n = torch.empty(blocks, dtype=torch.float64)
    pivot_n = torch.empty(blocks, dtype=torch.float64)
    inputs = (_array(weights_nB), _array(mean_nBB), _array(alive_nB), absolute)
    _run(_eliminate_all, *inputs, order_nB.numpy(), loss_nB.numpy(), dampening_n.numpy(), pivot_n.numpy())
    _refuse(dampening_n, pivot_n)
    return Elimination(order_nB, loss_nB, dampening_n)


def solve_on_mask(weights_nB: Tensor, mean_nBB: Tensor, keep_nB: Tensor, alive_nB: Tensor, dampening: float, relative: bool) -> Tensor:
    """See ``kernels.obs.solve_on_mask``. One Cholesky factor of the kept entries per block."""
    absolute = layer_dampening(mean_nBB, alive_nB, dampening, relative)
    solved_nB = torch.zeros_like(weights_nB, memory_format=torch.contiguous_format)
    dampening_n = torch.empty(len(weights_nB), dtype=torch.float64)
    pivot_n = torch.empty(len(weights_nB), dtype=torch.float64)
    inputs = (_array(weights_nB), _array(mean_nBB), _array(keep_nB), _array(alive_nB), absolute)
    _run(_solve_all, *inputs, solved_nB.numpy(), dampening_n.numpy(), pivot_n.numpy())
    _refuse(dampening_n, pivot_n)
    return solved_nB


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()


def _run(kernel: Callable[..., None], *arguments: object) -> None:
    """Run on as many threads as torch uses. The first use of numba's threads changes torch's number (both share OpenMP): put it back."""
    threads = torch.get_num_threads()
    before = numba.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    try:
        kernel(*arguments)
    finally:
        numba.set_num_threads(before)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


def _refuse(dampening_n: Tensor, pivot_n: Tensor) -> None:
    """``pivot_n`` is +inf for blocks that were factored, else the pivot at which the last attempt failed."""
    failed_n = pivot_n != torch.inf
    if failed_n.any():
        raise NotPositiveDefinite(float(pivot_n[failed_n].min()), float(dampening_n[failed_n].max()), int(failed_n.sum()))


@numba.njit(cache=True, nogil=True, error_model="numpy", parallel=True)
def _eliminate_all(weights_nB, mean_nBB, alive_nB, absolute, order_nB, loss_nB, dampening_n, pivot_n):
    blocks, block_size = weights_nB.shape
    shared = mean_nBB.shape[0] != blocks
    for group in numba.prange(GROUPS):
        first, last = group * blocks // GROUPS, (group + 1) * blocks // GROUPS
        if first == last:
            continue
        scratch, lines, places = _scratch(block_size)
        for block in range(first, last):
            _eliminate_block(
                weights_nB[block],
                mean_nBB[0 if shared else block],
                alive_nB[block],
                absolute,
                order_nB[block],
                loss_nB[block],
                dampening_n[block : block + 1],
                pivot_n[block : block + 1],
                scratch,
                lines,
                places,
            )


@numba.njit(cache=True, nogil=True, error_model="numpy", parallel=True)
def _solve_all(weights_nB, mean_nBB, keep_nB, alive_nB, absolute, solved_nB, dampening_n, pivot_n):
    blocks, block_size = weights_nB.shape
    shared = mean_nBB.shape[0] != blocks
    for group in numba.prange(GROUPS):
        first, last = group * blocks // GROUPS, (group + 1) * blocks // GROUPS
        if first == last:
            continue
        scratch, lines, places = _scratch(block_size)
        for block in range(first, last):
            _solve_block(
                weights_nB[block],
                mean_nBB[0 if shared else block],
                keep_nB[block],
                alive_nB[block],
                absolute,
                solved_nB[block],
                dampening_n[block : block + 1],
                pivot_n[block : block + 1],
                scratch,
                lines,
                places,
            )


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _scratch(block_size):
    """A row takes an odd number of cache lines, so that the entries of a column do not compete for the same few places in cache."""
    width = ((block_size + MARGIN) // 16 + 1) * 16 + 8
    return np.zeros((SCRATCH, width, width)), np.zeros((LINES, width)), np.zeros((2, width), dtype=np.int64)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _eliminate_block(weight_B, mean_BB, alive_B, absolute, order_B, loss_B, dampening, pivot, scratch, lines, places):
    """Work on the ``m`` entries that are alive, packed together; ``entry[i]`` is where the i-th of them stands in the block."""
    entry = places[0]
    m = _pack(alive_B, entry)
    u, z, a, panel = scratch[0], scratch[1], scratch[2], scratch[3]
    _factor_dampened(mean_BB, entry, m, absolute, u, lines[0], dampening, pivot)
    if pivot[0] != np.inf:
        return
    _invert(u, z, a, m)
    w, diagonal, floor = lines[0], lines[1], lines[2]
    for i in range(m):
        w[i] = weight_B[entry[i]]
        diagonal[i] = a[i, i]
        floor[i] = 1.0 / (mean_BB[entry[i], entry[i]] + dampening[0])
    _eliminate_packed(a, w, diagonal, floor, m, entry, places[1], panel, lines[3], order_B, loss_B)
    step = m
    for i in range(len(alive_B)):
        if not alive_B[i]:
            order_B[step] = i
            loss_B[step] = np.inf
            step += 1


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _solve_block(weight_B, mean_BB, keep_B, alive_B, absolute, solved_B, dampening, pivot, scratch, lines, places):
    kept = places[0]
    m = _pack(keep_B & alive_B, kept)
    u = scratch[0]
    _factor_dampened(mean_BB, kept, m, absolute, u, lines[0], dampening, pivot)
    if pivot[0] != np.inf:
        return
    removed, lost, pull = places[1], lines[0], lines[1]
    gone = _pack(alive_B & ~keep_B, removed)
    for j in range(gone):
        lost[j] = weight_B[removed[j]]
    for i in range(m):
        pull[i] = _gathered_dot(mean_BB[kept[i]], removed, lost, gone)
    for p in range(m):
        pull[p] /= u[p, p]
        _subtract(pull, pull[p], u[p], p + 1, m)
    for p in range(m - 1, -1, -1):
        pull[p] = (pull[p] - _dot(u[p], pull, p + 1, m)) / u[p, p]
    for i in range(m):
        solved_B[kept[i]] = weight_B[kept[i]] + pull[i]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _pack(chosen_B, entry):
    m = 0
    for i in range(len(chosen_B)):
        if chosen_B[i]:
            entry[m] = i
            m += 1
    return m


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=LOOSE)
def _dot(x, y, first, last):
    total = 0.0
    for j in range(first, last):
        total += x[j] * y[j]
    return total


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=LOOSE)
def _gathered_dot(x, entry, y, count):
    total = 0.0
    for j in range(count):
        total += x[entry[j]] * y[j]
    return total


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def _subtract(x, factor, y, first, last):
    for j in range(first, last):
        x[j] -= factor * y[j]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _factor_dampened(mean_BB, entry, m, absolute, u, original, dampening, pivot):
    """``u`` with ``u^T u = H + lambda I`` on the packed entries; sets ``dampening`` to the lambda used and ``pivot`` to +inf, or to the
    pivot that failed last."""
    dampening[0] = absolute
    for attempt in range(RAISES + 1):
        if attempt > 0:
            dampening[0] *= 10.0
        for i in range(m):
            row = mean_BB[entry[i]]
            for j in range(i, m):
                u[i, j] = row[entry[j]]
            u[i, i] += dampening[0]
            original[i] = u[i, i]
        pivot[0] = _factor(u, original, m)
        if pivot[0] == np.inf:
            return


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _factor(u, original, m):
    """Cholesky factor in place, from the upper triangle. Returns +inf, or the pivot that is not larger than its rounding."""
    for start in range(0, m, PANEL):
        stop = min(start + PANEL, m)
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


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _invert(u, z, a, m):
    """Lower triangle of ``a = (u^T u)^-1 = z^T z`` with ``z = u^-T``, whose rows are found and used a panel at a time."""
    a[: m + TILE_ROWS] = 0.0
    for start in range(0, m, PANEL):
        stop = min(start + PANEL, m)
        z[start : start + PANEL] = 0.0
        for done in range(0, start, PANEL):
            for i in range(start, stop, TILE_ROWS):
                for j in range(0, done + PANEL, TILE_COLUMNS):
                    add_tile(z, i, j, -1.0, u, i, z, done, done + PANEL)
        for p in range(start, stop):
            for j in range(0, p, LINE_COLUMNS):
                add_line(z, p, j, -1.0, u, p, z, start, p)
            z[p, p] = 1.0
            scale = 1.0 / u[p, p]
            for j in range(p + 1):
                z[p, j] *= scale
        _add_products(a, stop, 1.0, z, start, stop)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _add_products(c, m, alpha, x, first, last):
    """Lower triangle of ``c[:m, :m] += alpha * sum_p x[p]^T x[p]`` for ``first <= p < last``; writes beyond it, up to whole tiles."""
    for i in range(0, m, TILE_ROWS):
        for j in range(0, min(i + TILE_ROWS, m), TILE_COLUMNS):
            add_tile(c, i, j, alpha, x, i, x, first, last)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _eliminate_packed(a, w, diagonal, floor, m, entry, place, panel, score, order_B, loss_B):
    """Pivoted Cholesky of the lower triangle of ``a``; ``place[e]`` is where entry ``e`` of the block now stands among the packed ones."""
    for i in range(m):
        place[entry[i]] = i
        score[i] = w[i] * w[i] / diagonal[i]
    score_bits = score.view(np.int64)
    step = 0
    while m > 0:
        width = min(PANEL, m)
        for p in range(width):
            q = place[_cheapest(score_bits, entry, m)]
            order_B[step] = entry[q]
            loss_B[step] = score[q] / 2
            step += 1
            column = panel[p]
            for i in range(q + 1):
                column[i] = a[q, i]
            for i in range(q + 1, m):
                column[i] = a[i, q]
            for j in range(0, m, LINE_COLUMNS):
                add_line(panel, p, j, -1.0, panel, q, panel, 0, p)
            root = np.sqrt(diagonal[q])
            _update_diagonal(column, 1.0 / root, diagonal, floor, m)
            _update_weights(column, w[q] / root, w, diagonal, score, m)
            m -= 1
            _move_last(a, panel, p + 1, w, diagonal, floor, score, entry, place, q, m)
        _add_products(a, m, -1.0, panel, 0, width)


@numba.njit(cache=True, nogil=True, error_model="numpy")
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


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def _update_diagonal(column, scale, diagonal, floor, m):
    for j in range(m):
        column[j] *= scale
        diagonal[j] = max(diagonal[j] - column[j] * column[j], floor[j])


@numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def _update_weights(column, ratio, w, diagonal, score, m):
    for j in range(m):
        w[j] -= ratio * column[j]
        score[j] = w[j] * w[j] / diagonal[j]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _move_last(a, panel, pivots, w, diagonal, floor, score, entry, place, q, last):
    """Put the last packed entry where the pivot stood."""
    w[q], diagonal[q], floor[q], score[q], entry[q] = w[last], diagonal[last], floor[last], score[last], entry[last]
    place[entry[q]] = q
    for p in range(pivots):
        panel[p, q] = panel[p, last]
    for i in range(q):
        a[q, i] = a[last, i]
    for i in range(q + 1, last):
        a[i, q] = a[last, i]
