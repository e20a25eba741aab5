"""Optimal brain surgeon inside blocks: the order in which weights go, what that costs, and the weights that are left.

One signature, three implementations: ``reference`` (plain torch, any device), ``cpu`` (compiled, for CPU tensors), ``gpu`` (for CUDA
tensors). The functions here choose by the device of the weights.
"""

from __future__ import annotations

from types import ModuleType

from torch import Tensor

from kernels.obs import reference
from kernels.obs.reference import Elimination
from kernels.patterns import FREE, Pattern

__all__ = ["Elimination", "eliminate", "solve_on_mask", "static_losses"]


def eliminate(
    weights_nB: Tensor, mean_nBB: Tensor, alive_nB: Tensor, dampening: float, relative: bool, pattern: Pattern = FREE
) -> Elimination:
    r"""Remove all alive weights of each block one after the other, each time the one that costs least.

        q = argmin_alive w_q^2 / A_qq       loss = w_q^2 / (2 A_qq)       A = (H + lambda I)^-1 over the alive entries
        w <- w - (w_q / A_qq) A[:, q]       A <- A - A[:, q] A[q, :] / A_qq

    Ties go to the entry that comes first in the block. ``mean_nBB`` may be (1, B, B): all blocks share it. ``lambda`` is ``dampening``,
    or with ``relative`` that many times the mean diagonal of ``H`` over the alive entries of all blocks given, so give whole layers.
    The weights themselves are not returned: ``solve_on_mask`` gives them for any prefix of the order.

    ``pattern.bucket``: once a bucket has lost ``pattern.removable`` entries, those that are not alive counted, the rest of it stays. What
    stays is still re-fitted, so it remains in ``A``, and is never a pivot.

    ``pattern.tile``: with ``G`` the entries of a tile, ``loss = 1/2 w_G^T (A_GG)^-1 w_G``, ``w <- w - A[:, G] (A_GG)^-1 w_G`` and
    ``A <- A - A[:, G] (A_GG)^-1 A[G, :]``. Order and loss are then (n, B / tile), over tiles; a tile is alive if one of its entries is,
    and entries that are not alive count for nothing.

    Whatever cannot go, not alive or held by its bucket, comes last, in the order of the block, with a loss of +inf.

    Source: Hassibi & Stork 1992, eq. 5; Frantar & Alistarh 2022 (OBC), section 4 (N:M, groups); Kuznedelev et al. 2023 (CAP), algorithm 1.
    Raises: NotPositiveDefinite when a block has no factor with its dampening raised ``linalg.RAISES`` times tenfold; ValueError when a
    tile or bucket does not fit the block.
    """
    pattern.check(weights_nB.shape[1])
    return _implementation(weights_nB).eliminate(weights_nB, mean_nBB, alive_nB, dampening, relative, pattern)


def static_losses(
    weights_nB: Tensor, mean_nBB: Tensor, alive_nB: Tensor, dampening: float, relative: bool, pattern: Pattern = FREE
) -> tuple[Tensor, Tensor]:
    r"""What the removal of each weight, or tile, would cost if it were the only one: ``w_q^2 / (2 A_qq)`` or ``1/2 w_G^T (A_GG)^-1 w_G``.

    The loss of the first step of ``eliminate``, for every entry. Arguments and what is raised are those of ``eliminate``.
    Source: Singh & Alistarh 2020 (WoodFisher); Kurtic et al. 2022 (oBERT), eq. 7.
    Returns: losses (n, B / tile), float32, in the order of the block, +inf for what cannot go; and the dampening of each block (float64).
    """
    pattern.check(weights_nB.shape[1])
    if weights_nB.is_cuda:  # batched factors are all there is to it
        return reference.static_losses(weights_nB, mean_nBB, alive_nB, dampening, relative, pattern)
    from kernels.obs import cpu

    return cpu.static_losses(weights_nB, mean_nBB, alive_nB, dampening, relative, pattern)


def solve_on_mask(weights_nB: Tensor, mean_nBB: Tensor, keep_nB: Tensor, alive_nB: Tensor, dampening: float, relative: bool) -> Tensor:
    r"""The best weights of each block when those that are alive and not kept go to zero.

        minimise 1/2 delta^T (H + lambda I) delta   with   delta_R = -w_R:      w'_K = w_K + (H + lambda I)_KK^-1 H_KR w_R

    with K = alive & keep and R = alive & ~keep. Exactly 0 off K. Arguments and what is raised are those of ``eliminate``.
    Returns: (n, B) in the type of the weights.
    """
    return _implementation(weights_nB).solve_on_mask(weights_nB, mean_nBB, keep_nB, alive_nB, dampening, relative)


def _implementation(weights_nB: Tensor) -> ModuleType:
    if weights_nB.is_cuda:
        from kernels.obs import gpu

        return gpu
    from kernels.obs import cpu

    return cpu
