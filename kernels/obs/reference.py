"""Elimination and group solve in plain batched torch, on any device: what the compiled kernels must reproduce.

Everything is float64: see ``kernels/obs/cpu.py`` for why float32 is not enough.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.linalg import dampened_cholesky, dampened_inverse, decouple, layer_dampening

SCRATCH_BYTES = 1 << 28  # for one float64 matrix per block of a chunk; about five of these are alive at once


@dataclass(frozen=True)
class Elimination:
    """Per block: positions in the order they go (int16; entries that are not alive last), the loss of each step (float32; +inf for entries
    that are not alive; units of the calibration loss) and the dampening that was used (float64)."""

    order_nB: Tensor
    loss_nB: Tensor
    dampening_n: Tensor


def eliminate(weights_nB: Tensor, mean_nBB: Tensor, alive_nB: Tensor, dampening: float, relative: bool) -> Elimination:
    """See ``kernels.obs.eliminate``. Updates the whole inverse at each step: ``2 B^3`` flops per block."""
    absolute = layer_dampening(mean_nBB, alive_nB, dampening, relative)
    done = [
        _eliminate_chunk(weights_nB[part], matrix_nBB, alive_nB[part], absolute) for part, matrix_nBB in _chunks(mean_nBB, len(weights_nB))
    ]
    return Elimination(
        torch.cat([each.order_nB for each in done]),
        torch.cat([each.loss_nB for each in done]),
        torch.cat([each.dampening_n for each in done]),
    )


def _eliminate_chunk(weights_nB: Tensor, mean_nBB: Tensor, alive_nB: Tensor, absolute: float) -> Elimination:
    inverse_nBB, dampening_n = dampened_inverse(mean_nBB, alive_nB, absolute, relative=False)
    # No inverse of a principal submatrix of H has a diagonal below 1 / H_qq; holding on to that keeps rounding from making it negative.
    floor_nB = torch.where(alive_nB, 1 / (mean_nBB.diagonal(dim1=-2, dim2=-1).double() + dampening_n[:, None]), 0.0)
    w_nB, alive_nB = weights_nB.double(), alive_nB.clone()
    blocks, block_size = w_nB.shape
    everything_n = torch.arange(blocks, device=w_nB.device)
    position_B = torch.arange(block_size, device=w_nB.device)
    order_nB = torch.empty(blocks, block_size, dtype=torch.int16, device=w_nB.device)
    loss_nB = torch.empty(blocks, block_size, dtype=torch.float32, device=w_nB.device)
    present_nB = torch.ones_like(alive_nB)
    for step in range(block_size):
        diagonal_nB = inverse_nBB.diagonal(dim1=-2, dim2=-1).maximum(floor_nB)
        twice_loss_nB = torch.where(alive_nB, w_nB.square() / diagonal_nB, torch.inf)
        least_n1 = torch.where(present_nB, twice_loss_nB, torch.inf).amin(dim=1, keepdim=True)
        q_n = torch.where(present_nB & (twice_loss_nB == least_n1), position_B, block_size).amin(dim=1)
        order_nB[:, step] = q_n.to(torch.int16)
        loss_nB[:, step] = (least_n1[:, 0] / 2).float()
        pivot_n = diagonal_nB[everything_n, q_n]
        column_nB = inverse_nBB[everything_n, :, q_n]
        ratio_n = torch.where(alive_nB[everything_n, q_n], w_nB[everything_n, q_n] / pivot_n, 0.0)
        w_nB -= ratio_n[:, None] * column_nB
        inverse_nBB.baddbmm_(column_nB[:, :, None], (column_nB / pivot_n[:, None])[:, None, :], alpha=-1)
        alive_nB[everything_n, q_n] = False
        present_nB[everything_n, q_n] = False
    return Elimination(order_nB, loss_nB, dampening_n)


def solve_on_mask(weights_nB: Tensor, mean_nBB: Tensor, keep_nB: Tensor, alive_nB: Tensor, dampening: float, relative: bool) -> Tensor:
    """See ``kernels.obs.solve_on_mask``: ``M = D_K H D_K + D_R``, one batched Cholesky solve."""
    absolute = layer_dampening(mean_nBB, alive_nB, dampening, relative)
    solved_nB = torch.empty_like(weights_nB)
    for part, matrix_nBB in _chunks(mean_nBB, len(weights_nB)):
        kept_nB, removed_nB = alive_nB[part] & keep_nB[part], alive_nB[part] & ~keep_nB[part]
        w_nB = weights_nB[part].double()
        lower_nBB, _ = dampened_cholesky(decouple(matrix_nBB, kept_nB), kept_nB, absolute)
        coupling_nBB = torch.where(kept_nB[:, :, None] & removed_nB[:, None, :], matrix_nBB.double(), 0.0)
        pull_nB1 = coupling_nBB @ torch.where(removed_nB, w_nB, 0.0)[:, :, None]
        delta_nB1 = torch.cholesky_solve(pull_nB1, lower_nBB)
        solved_nB[part] = torch.where(kept_nB, w_nB + delta_nB1[:, :, 0], 0.0).to(weights_nB.dtype)
    return solved_nB


def _chunks(mean_nBB: Tensor, blocks: int) -> Iterator[tuple[slice, Tensor]]:
    """Slices of the blocks whose matrices fit the scratch memory, with these matrices; a single matrix is repeated."""
    size = max(1, SCRATCH_BYTES // (8 * mean_nBB.shape[-1] ** 2))
    for start in range(0, blocks, size):
        part = slice(start, min(start + size, blocks))
        yield part, mean_nBB[part] if len(mean_nBB) == blocks else mean_nBB.expand(part.stop - part.start, -1, -1)
