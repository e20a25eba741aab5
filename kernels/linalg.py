"""Dampened Cholesky factors of second moments, in float64."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

RAISES = 6  # how often a block's dampening is raised tenfold before the block fails
ROUNDING = torch.finfo(torch.float64).eps


class NotPositiveDefinite(ArithmeticError):
    """A block has no Cholesky factor, even after its dampening was raised tenfold ``RAISES`` times.

    ``smallest_pivot`` is the smallest pivot (may be NaN), ``dampening`` the largest that was tried, ``blocks`` how many blocks failed.
    """

    def __init__(self, smallest_pivot: float, dampening: float, blocks: int) -> None:
        super().__init__(smallest_pivot, dampening, blocks)
        self.smallest_pivot = smallest_pivot
        self.dampening = dampening
        self.blocks = blocks

    def __str__(self) -> str:
        return f"{self.blocks} blocks are not positive definite (smallest pivot {self.smallest_pivot:.1e}, dampening {self.dampening:.1e})"


@contextmanager
def full_precision() -> Iterator[None]:
    """A context in which float32 matrix products are computed in float32, not in TF32 or bfloat16."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def layer_dampening(mean_nBB: Tensor, alive_nB: Tensor, dampening: float, relative: bool) -> float:
    """Returns ``lambda``: ``dampening``, if ``relative`` times the mean of the diagonal over the alive entries of all given blocks.

    Pass all blocks of a layer. To process only some of them, compute ``lambda`` here and pass it on as an absolute value.
    ``mean_nBB`` may be a single matrix that all rows of ``alive_nB`` share.
    """
    if not relative:
        return float(dampening)
    diagonal_nB = mean_nBB.diagonal(dim1=-2, dim2=-1).double().expand(alive_nB.shape)
    total = torch.where(alive_nB, diagonal_nB, 0.0).sum()
    return float(dampening * total / alive_nB.sum().clamp(min=1))


def decouple(mean_nBB: Tensor, alive_nB: Tensor) -> Tensor:
    """Returns ``H`` in float64, with the rows and columns of entries that are not alive set to those of the identity."""
    matrix_nBB = torch.where(alive_nB[:, :, None] & alive_nB[:, None, :], mean_nBB.double(), 0.0)
    matrix_nBB.diagonal(dim1=-2, dim2=-1).add_((~alive_nB).double())
    return matrix_nBB


def dampened_cholesky(matrix_nBB: Tensor, alive_nB: Tensor, dampening: float) -> tuple[Tensor, Tensor]:
    r"""Returns ``L_nBB`` (float64) with ``L L^T = matrix + lambda D``, and the ``lambda`` of each block.

    ``D`` is the diagonal of the alive entries (0/1). Only the lower triangle of ``matrix_nBB`` is read. If a pivot is not larger than the
    rounding error of its diagonal entry, the block's ``lambda`` is raised tenfold, at most ``RAISES`` times.
    Raises: NotPositiveDefinite if a block still fails.
    """
    blocks = matrix_nBB.shape[0]
    lower_nBB = torch.empty_like(matrix_nBB)
    dampening_n = torch.full((blocks,), float(dampening), dtype=torch.float64, device=matrix_nBB.device)
    pending = torch.arange(blocks, device=matrix_nBB.device)
    for _ in range(RAISES + 1):
        attempt_nBB = matrix_nBB[pending]
        attempt_nBB.diagonal(dim1=-2, dim2=-1).add_(alive_nB[pending] * dampening_n[pending, None])
        factor_nBB, info_n = torch.linalg.cholesky_ex(attempt_nBB)
        roots_nB = factor_nBB.diagonal(dim1=-2, dim2=-1)
        pivots_nB = roots_nB * roots_nB.abs()
        positive_n = (info_n == 0) & (pivots_nB > ROUNDING * attempt_nBB.diagonal(dim1=-2, dim2=-1)).all(dim=1)
        lower_nBB[pending[positive_n]] = factor_nBB[positive_n]
        pending, pivots_nB = pending[~positive_n], pivots_nB[~positive_n]
        if not len(pending):
            return lower_nBB, dampening_n
        dampening_n[pending] *= 10
    raise NotPositiveDefinite(float(pivots_nB.min()), float(dampening_n[pending].max() / 10), len(pending))


def dampened_inverse(mean_nBB: Tensor, alive_nB: Tensor, dampening: float, relative: bool) -> tuple[Tensor, Tensor]:
    r"""Returns ``A_nBB = (H + lambda I)^-1`` in float64, and the ``lambda`` of each block, which is larger where a block needed more.

    Entries that are not alive decouple: their rows of ``A`` are those of the identity. ``lambda`` is ``dampening``, with ``relative`` times
    the mean diagonal over the alive entries of all given blocks.
    Raises: NotPositiveDefinite if a block fails after its dampening was raised tenfold ``RAISES`` times.
    """
    absolute = layer_dampening(mean_nBB, alive_nB, dampening, relative)
    lower_nBB, dampening_n = dampened_cholesky(decouple(mean_nBB, alive_nB), alive_nB, absolute)
    return torch.cholesky_inverse(lower_nBB), dampening_n
