"""Elimination and solve in batched torch, on any device: the reference for the compiled kernels.

Everything is float64; ``kernels/obs/cpu.py`` explains why float32 is not enough.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.linalg import ROUNDING, dampened_cholesky, dampened_inverse, decouple, layer_dampening
from kernels.patterns import FREE, Pattern

SCRATCH_BYTES = 1 << 28  # for one float64 matrix for each block of a chunk; about five of these exist at once


@dataclass(frozen=True)
class Elimination:
    """The result of an elimination, for each block.

    ``order_nB`` (int16) are weights, or tiles of the pattern, in the order of their removal; those that cannot be removed come last.
    ``loss_nB`` (float32) is the loss of each step in units of the calibration loss, +inf for those that cannot be removed.
    ``dampening_n`` (float64) is the dampening that was used.
    """

    order_nB: Tensor
    loss_nB: Tensor
    dampening_n: Tensor


def eliminate(
    weights_nB: Tensor, mean_nBB: Tensor, alive_nB: Tensor, dampening: float, relative: bool, pattern: Pattern = FREE
) -> Elimination:
    """See ``kernels.obs.eliminate``. Updates the whole inverse at each step: ``2 B^3`` flops per block."""
    absolute = layer_dampening(mean_nBB, alive_nB, dampening, relative)
    done = [
        _eliminate_chunk(weights_nB[part], matrix_nBB, alive_nB[part], absolute, pattern)
        for part, matrix_nBB in chunks(mean_nBB, len(weights_nB))
    ]
    return Elimination(
        torch.cat([part.order_nB for part in done]),
        torch.cat([part.loss_nB for part in done]),
        torch.cat([part.dampening_n for part in done]),
    )


def _eliminate_chunk(weights_nB: Tensor, mean_nBB: Tensor, alive_nB: Tensor, absolute: float, pattern: Pattern) -> Elimination:
    """In the names of tensors, ``G`` are the tiles of a block and ``E`` the entries of a tile."""
    tile, (blocks, block_size) = pattern.tile, weights_nB.shape
    tiles = block_size // tile
    inverse_nBB, dampening_n = dampened_inverse(mean_nBB, alive_nB, absolute, relative=False)
    floor_nGE = least_pivots(mean_nBB, alive_nB, dampening_n, tile)
    w_nB = torch.where(alive_nB, weights_nB, 0.0).double()
    alive_nGE = alive_nB.clone().reshape(blocks, tiles, tile)
    loss_nG = torch.full((blocks, tiles), torch.inf, dtype=torch.float64, device=w_nB.device)
    step_nG = torch.full((blocks, tiles), tiles, device=w_nB.device)  # in which each tile was removed
    position_G = torch.arange(tiles, device=w_nB.device)
    for step in range(tiles):
        factor_nGEE = _factor(_tiles_of(inverse_nBB, tile), floor_nGE)
        root_nGE = _solve_lower(factor_nGEE, w_nB.reshape(blocks, tiles, tile, 1))[..., 0]
        cost_nG = torch.where(removable(alive_nGE, pattern), root_nGE.square().sum(dim=2) / 2, torch.inf)
        least_n1 = cost_nG.amin(dim=1, keepdim=True)
        if (least_n1 == torch.inf).all():
            break
        removed_nG = position_G == torch.where(cost_nG == least_n1, position_G, tiles).amin(dim=1, keepdim=True)
        removed_nG &= least_n1 < torch.inf  # blocks in which nothing more can be removed do not change
        loss_nG[removed_nG], step_nG[removed_nG] = cost_nG[removed_nG], step
        q_n = removed_nG.int().argmax(dim=1)
        changed_n, block_n = removed_nG.any(dim=1), torch.arange(blocks, device=w_nB.device)
        rows_nEB = inverse_nBB.reshape(blocks, tiles, tile, block_size)[block_n, q_n]
        rows_nEB = _solve_lower(factor_nGEE[block_n, q_n], rows_nEB) * changed_n[:, None, None]
        w_nB -= (root_nGE[block_n, q_n][:, None, :] @ rows_nEB)[:, 0]
        inverse_nBB.baddbmm_(rows_nEB.mT, rows_nEB, alpha=-1)
        alive_nGE &= ~removed_nG[:, :, None]
    order_nG = step_nG.argsort(dim=1, stable=True)
    return Elimination(order_nG.to(torch.int16), loss_nG.gather(1, order_nG).float(), dampening_n)


def static_losses(
    weights_nB: Tensor, mean_nBB: Tensor, alive_nB: Tensor, dampening: float, relative: bool, pattern: Pattern = FREE
) -> tuple[Tensor, Tensor]:
    """See ``kernels.obs.static_losses``."""
    absolute = layer_dampening(mean_nBB, alive_nB, dampening, relative)
    tile, tiles = pattern.tile, weights_nB.shape[1] // pattern.tile
    losses, dampenings = [], []
    for part, matrix_nBB in chunks(mean_nBB, len(weights_nB)):
        inverse_nBB, dampening_n = dampened_inverse(matrix_nBB, alive_nB[part], absolute, relative=False)
        factor_nGEE = _factor(_tiles_of(inverse_nBB, tile), least_pivots(matrix_nBB, alive_nB[part], dampening_n, tile))
        w_nGE1 = torch.where(alive_nB[part], weights_nB[part], 0.0).double().reshape(-1, tiles, tile, 1)
        loss_nG = _solve_lower(factor_nGEE, w_nGE1).square().sum(dim=(2, 3)) / 2
        losses.append(torch.where(removable(alive_nB[part].reshape(-1, tiles, tile), pattern), loss_nG, torch.inf).float())
        dampenings.append(dampening_n)
    return torch.cat(losses), torch.cat(dampenings)


def removable(alive_nGE: Tensor, pattern: Pattern) -> Tensor:
    """Returns which tiles can be removed now, (n, G): those with an alive entry, in buckets that have not lost all they may lose."""
    open_nG = alive_nGE.any(dim=2)
    if not pattern.bucket:
        return open_nG
    bucket_nbM = open_nG.reshape(len(open_nG), -1, pattern.bucket)
    may_lose_nb1 = (~bucket_nbM).sum(dim=2, keepdim=True) < pattern.removable
    return (bucket_nbM & may_lose_nb1).reshape(open_nG.shape)


def _tiles_of(matrix_nBB: Tensor, tile: int) -> Tensor:
    """Returns the square submatrices of ``tile`` entries along the diagonal, (n, G, E, E)."""
    blocks, block_size = matrix_nBB.shape[:2]
    pieces_nGEGE = matrix_nBB.reshape(blocks, block_size // tile, tile, block_size // tile, tile)
    return pieces_nGEGE.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)


def _factor(matrix_nGEE: Tensor, floor_nGE: Tensor) -> Tensor:
    """Returns lower Cholesky factors with no pivot below its floor."""
    rest_nGEE, lower_nGEE = matrix_nGEE.clone(), torch.zeros_like(matrix_nGEE)
    for k in range(matrix_nGEE.shape[-1]):
        root_nG = rest_nGEE[..., k, k].maximum(floor_nGE[..., k]).sqrt()
        column_nGE = rest_nGEE[..., k:, k] / root_nG[..., None]
        lower_nGEE[..., k:, k], lower_nGEE[..., k, k] = column_nGE, root_nG
        rest_nGEE[..., k:, k:] -= column_nGE[..., :, None] * column_nGE[..., None, :]
    return lower_nGEE


def _solve_lower(lower_nEE: Tensor, right_nEx: Tensor) -> Tensor:
    """Returns ``L^-1 right`` by substitution, since torch solves small matrices one by one."""
    solved_nEx = torch.empty_like(right_nEx)
    for k in range(lower_nEE.shape[-1]):
        known_nx = (lower_nEE[..., k, :k, None] * solved_nEx[..., :k, :]).sum(dim=-2)
        solved_nEx[..., k, :] = (right_nEx[..., k, :] - known_nx) / lower_nEE[..., k, k, None]
    return solved_nEx


def least_pivots(mean_nBB: Tensor, alive_nB: Tensor, dampening_n: Tensor, tile: int) -> Tensor:
    r"""Returns lower bounds for the squared pivots of ``A_GG``, (n, G, E), so that rounding cannot make them negative.

    The inverse of a principal submatrix of ``H`` that contains ``G`` is at least ``(H_GG)^-1``, so its pivots are at least those of
    ``(H_GG)^-1``: the inverses of the pivots of ``H_GG``, taken from its last entry to its first. For single weights the bound is
    ``1 / H_qq``. In a tile, later pivots are small differences that depend on the computed earlier ones, including their errors. The bound
    for a tile is half of that value, less the possible rounding error.
    """
    rest_nGEE = _tiles_of(decouple(mean_nBB, alive_nB) + torch.diag_embed(alive_nB * dampening_n[:, None]), tile).clone()
    slack_nGE = 8 * (tile - 1) * ROUNDING * rest_nGEE.diagonal(dim1=-2, dim2=-1)
    floor_nGE = torch.empty_like(slack_nGE)
    for k in reversed(range(tile)):
        pivot_nG = rest_nGEE[..., k, k].clamp(min=0.0) + slack_nGE[..., k]
        floor_nGE[..., k] = (1.0 if tile == 1 else 0.5) / pivot_nG
        column_nGE = rest_nGEE[..., :k, k]
        rest_nGEE[..., :k, :k] -= column_nGE[..., :, None] * column_nGE[..., None, :] / pivot_nG[..., None, None]
    return floor_nGE


def solve_on_mask(
    weights_nB: Tensor,
    mean_nBB: Tensor,
    keep_nB: Tensor,
    alive_nB: Tensor,
    dampening: float,
    relative: bool,
    slope_nB: Tensor | None = None,
) -> Tensor:
    """See ``kernels.obs.solve_on_mask``: ``M = D_K H D_K + D_R``, one batched Cholesky solve."""
    absolute = layer_dampening(mean_nBB, alive_nB, dampening, relative)
    solved_nB = torch.empty_like(weights_nB)
    for part, matrix_nBB in chunks(mean_nBB, len(weights_nB)):
        kept_nB, removed_nB = alive_nB[part] & keep_nB[part], alive_nB[part] & ~keep_nB[part]
        w_nB = weights_nB[part].double()
        lower_nBB, _ = dampened_cholesky(decouple(matrix_nBB, kept_nB), kept_nB, absolute)
        coupling_nBB = torch.where(kept_nB[:, :, None] & removed_nB[:, None, :], matrix_nBB.double(), 0.0)
        pull_nB1 = coupling_nBB @ torch.where(removed_nB, w_nB, 0.0)[:, :, None]
        if slope_nB is not None:
            pull_nB1 += torch.where(kept_nB, slope_nB[part].double(), 0.0)[:, :, None]
        delta_nB1 = torch.cholesky_solve(pull_nB1, lower_nBB)
        solved_nB[part] = torch.where(kept_nB, w_nB + delta_nB1[:, :, 0], 0.0).to(weights_nB.dtype)
    return solved_nB


def chunks(mean_nBB: Tensor, blocks: int) -> Iterator[tuple[slice, Tensor]]:
    """Yields slices of the blocks whose matrices fit into the scratch memory, with these matrices. A single matrix is repeated."""
    size = max(1, SCRATCH_BYTES // (8 * mean_nBB.shape[-1] ** 2))
    for start in range(0, blocks, size):
        part = slice(start, min(start + size, blocks))
        yield part, mean_nBB[part] if len(mean_nBB) == blocks else mean_nBB.expand(part.stop - part.start, -1, -1)
