"""Elimination and solve on the CPU: one compiled pass for each block that dampens, factors, inverts and eliminates in cache.

The steps are in ``packed`` (factor and inverse), ``greedy`` (single weights) and ``tiles``; this module distributes blocks over threads. A
block is computed by one thread, with the same result for any number of threads (``torch.set_num_threads``), in one float64 matrix of its
size (``scratch_bytes``). If all blocks share ``H``, those with the same alive entries share its inverse.

**Why float64.** With fewer gradients than weights in a block, ``A`` starts at ``1 / lambda``. Once the removed weights exhaust the null
space, subtraction brings it down to the scale of ``1 / H``, which costs the digits in between. Measured against the literal loop in 80-bit
arithmetic (B = 96, 48 gradients, lambda as a fraction of the mean diagonal): float32 gives another order in 22 of 24 blocks at 1e-4 and in
all at 1e-5; this code gives the same order in all down to 1e-8, where the literal float64 loop differs in 14 of 24. Float32 sums of
gradients are themselves indefinite by about 1e-7 of their size, so a smaller relative lambda is raised, and the report says so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numba
import numpy as np
import torch
from torch import Tensor

from kernels import linalg
from kernels.linalg import NotPositiveDefinite, layer_dampening
from kernels.obs.block import LINES, copy_inverse, eliminate_block, invert_block, score_block, scratch, shape, solve_block, square_tiles
from kernels.obs.reference import Elimination, removable
from kernels.patterns import FREE, Pattern
from kernels.threads import run

PORTIONS = 64  # parts of the blocks, which are distributed over threads


def eliminate(
    weights_nB: Tensor, mean_nBB: Tensor, alive_nB: Tensor, dampening: float, relative: bool, pattern: Pattern = FREE
) -> Elimination:
    """See ``kernels.obs.eliminate``. Takes ``B^3`` flops to invert and ``B^3 / 3`` to eliminate, for the alive entries."""
    absolute = layer_dampening(mean_nBB, alive_nB, dampening, relative)
    blocks, tiles = len(weights_nB), weights_nB.shape[1] // pattern.tile
    order_nG = torch.empty(blocks, tiles, dtype=torch.int16)
    loss_nG = torch.empty(blocks, tiles, dtype=torch.float32)
    report_n2 = torch.empty(blocks, 2, dtype=torch.float64)
    inputs = (_array(weights_nB), _array(mean_nBB), _array(alive_nB), *_share(mean_nBB, alive_nB), absolute)
    limits = (pattern.tile, pattern.bucket, pattern.removable)
    run(_eliminate_all, *inputs, *limits, order_nG.numpy(), loss_nG.numpy(), report_n2.numpy())
    _refuse(report_n2)
    return Elimination(order_nG, loss_nG, report_n2[:, 0].clone())


def static_losses(
    weights_nB: Tensor, mean_nBB: Tensor, alive_nB: Tensor, dampening: float, relative: bool, pattern: Pattern = FREE
) -> tuple[Tensor, Tensor]:
    """See ``kernels.obs.static_losses``. Takes ``2/3 B^3`` flops; only the needed part of the inverse is computed."""
    absolute = layer_dampening(mean_nBB, alive_nB, dampening, relative)
    blocks, tiles = len(weights_nB), weights_nB.shape[1] // pattern.tile
    loss_nG = torch.full((blocks, tiles), torch.inf)
    report_n2 = torch.empty(blocks, 2, dtype=torch.float64)
    inputs = (_array(weights_nB), _array(mean_nBB), _array(alive_nB), *_share(mean_nBB, alive_nB), absolute)
    run(_score_all, *inputs, pattern.tile, loss_nG.numpy(), report_n2.numpy())
    _refuse(report_n2)
    loss_nG.masked_fill_(~removable(alive_nB.reshape(blocks, tiles, pattern.tile), pattern), torch.inf)
    return loss_nG, report_n2[:, 0].clone()


def solve_on_mask(
    weights_nB: Tensor,
    mean_nBB: Tensor,
    keep_nB: Tensor,
    alive_nB: Tensor,
    dampening: float,
    relative: bool,
    slope_nB: Tensor | None = None,
) -> Tensor:
    """See ``kernels.obs.solve_on_mask``. Takes one Cholesky factor of the kept entries for each block."""
    absolute = layer_dampening(mean_nBB, alive_nB, dampening, relative)
    solved_nB = torch.zeros_like(weights_nB, memory_format=torch.contiguous_format)
    report_n2 = torch.empty(len(weights_nB), 2, dtype=torch.float64)
    slope_nB = weights_nB.new_zeros(0, weights_nB.shape[1]) if slope_nB is None else slope_nB
    inputs = (_array(weights_nB), _array(mean_nBB), _array(keep_nB), _array(alive_nB), _array(slope_nB.double()), absolute)
    run(_solve_all, *inputs, solved_nB.numpy(), report_n2.numpy())
    _refuse(report_n2)
    return solved_nB


def scratch_bytes(block_size: int, threads: int, shared: bool = False, tile: int = 1) -> int:
    """Returns the memory that these functions take beside their arguments and results.

    It is a float64 matrix and a strip of it for each thread, and one more inverse if all blocks share one ``H``.
    """
    rows, width, panel = shape.py_func(block_size, tile)
    numbers = (rows + panel + LINES + 2) * width + block_size * (2 * tile + 2)
    return 8 * numbers * (threads + int(shared))


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()


def _share(mean_nBB: Tensor, alive_nB: Tensor) -> tuple[np.ndarray, int]:
    """Returns which blocks can start from one common inverse, and the first of them (-1: none).

    They share ``H``, and all entries that are alive in any block are alive in them.
    """
    if len(mean_nBB) == len(alive_nB):
        return np.zeros(len(alive_nB), dtype=bool), -1
    share_n = _array((alive_nB == alive_nB.any(dim=0)).all(dim=1))
    return share_n, int(share_n.argmax()) if share_n.any() else -1


def _refuse(report_n2: Tensor) -> None:
    """Raises NotPositiveDefinite if a block failed. A report is its dampening, and +inf or the pivot at which the last attempt failed."""
    dampening_n, pivot_n = report_n2.unbind(dim=1)
    failed_n = pivot_n != torch.inf
    if failed_n.any():
        raise NotPositiveDefinite(float(pivot_n[failed_n].min()), float(dampening_n[failed_n].max()), int(failed_n.sum()))


def _sources() -> str:
    """Returns a digest of the files that the compiled code depends on. numba only checks the file of the outermost function."""
    files = [*sorted(Path(__file__).parent.glob("*.py")), Path(linalg.__file__)]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _compiled(sources: str) -> tuple[Callable[..., None], Callable[..., None], Callable[..., None]]:
    """Returns the loops over blocks. numba caches a function by the values in its closure, which include ``sources``."""

    @numba.njit(cache=True, nogil=True, error_model="numpy", parallel=True)
    def eliminate_all(weights_nB, mean_nBB, alive_nB, share_n, leader, absolute, tile, bucket, removable, order_nG, loss_nG, report_n2):
        assert sources
        blocks, block_size = weights_nB.shape
        shared = len(mean_nBB) != blocks
        common, common_report = scratch(block_size if leader >= 0 else tile, tile), np.zeros(2)
        if leader >= 0:
            invert_block(mean_nBB[0], alive_nB[leader], absolute, tile, common_report, common)
        for portion in numba.prange(PORTIONS):
            first, last = portion * blocks // PORTIONS, (portion + 1) * blocks // PORTIONS
            if first == last:
                continue
            work = scratch(block_size, tile)
            for block in range(first, last):
                mean_BB, alive_B, report = mean_nBB[0 if shared else block], alive_nB[block], report_n2[block]
                if share_n[block]:
                    report[:] = common_report
                    m = copy_inverse(common, work, alive_B, tile)
                else:
                    m = invert_block(mean_BB, alive_B, absolute, tile, report, work)
                if report[1] == np.inf:
                    limits = tile, bucket, removable
                    eliminate_block(weights_nB[block], mean_BB, alive_B, limits, m, order_nG[block], loss_nG[block], report[0], work)

    @numba.njit(cache=True, nogil=True, error_model="numpy", parallel=True)
    def score_all(weights_nB, mean_nBB, alive_nB, share_n, leader, absolute, tile, loss_nG, report_n2):
        assert sources
        blocks, block_size = weights_nB.shape
        shared = len(mean_nBB) != blocks
        common, common_report = scratch(block_size if leader >= 0 else tile, tile), np.zeros(2)
        if leader >= 0:
            square_tiles(mean_nBB[0], alive_nB[leader], absolute, tile, common_report, common)
        for portion in numba.prange(PORTIONS):
            first, last = portion * blocks // PORTIONS, (portion + 1) * blocks // PORTIONS
            if first == last:
                continue
            work = scratch(block_size, tile)
            for block in range(first, last):
                alive_B, report = alive_nB[block], report_n2[block]
                if share_n[block]:
                    report[:] = common_report
                    if report[1] == np.inf:
                        score_block(weights_nB[block], alive_B, tile, loss_nG[block], common, work)
                else:
                    square_tiles(mean_nBB[0 if shared else block], alive_B, absolute, tile, report, work)
                    if report[1] == np.inf:
                        score_block(weights_nB[block], alive_B, tile, loss_nG[block], work, work)

    @numba.njit(cache=True, nogil=True, error_model="numpy", parallel=True)
    def solve_all(weights_nB, mean_nBB, keep_nB, alive_nB, slope_nB, absolute, solved_nB, report_n2):
        assert sources
        blocks, block_size = weights_nB.shape
        shared = len(mean_nBB) != blocks
        for portion in numba.prange(PORTIONS):
            first, last = portion * blocks // PORTIONS, (portion + 1) * blocks // PORTIONS
            if first == last:
                continue
            work = scratch(block_size, 1)
            for block in range(first, last):
                mean_BB, slope_1B = mean_nBB[0 if shared else block], slope_nB[block : block + 1]
                inputs = weights_nB[block], mean_BB, keep_nB[block], alive_nB[block], slope_1B
                solve_block(inputs, absolute, solved_nB[block], report_n2[block], work)

    return eliminate_all, score_all, solve_all


_eliminate_all, _score_all, _solve_all = _compiled(_sources())
