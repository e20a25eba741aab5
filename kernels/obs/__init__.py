"""Optimal brain surgeon inside blocks: the order of removal, its losses, and the re-fitted weights.

There are three implementations with the same signatures: ``reference`` (torch, any device), ``cpu`` (compiled, for CPU tensors) and ``gpu``
(for CUDA tensors). The functions here choose one by the device of the weights.
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
    r"""Removes all alive weights of each block one by one, each time the one with the least loss.

        q = argmin_alive w_q^2 / A_qq       loss = w_q^2 / (2 A_qq)       A = (H + lambda I)^-1 over the alive entries
        w <- w - (w_q / A_qq) A[:, q]       A <- A - A[:, q] A[q, :] / A_qq

    Among equal losses, the first entry of the block is removed. ``mean_nBB`` may be (1, B, B) if all blocks share it. ``lambda`` is
    ``dampening``, with ``relative`` times the mean diagonal of ``H`` over the alive entries of all given blocks, so pass whole layers. The
    weights are not returned; ``solve_on_mask`` computes them for any prefix of the order.

    ``pattern.bucket``: once a bucket has lost ``pattern.removable`` entries, including those that are not alive, its other entries are
    kept. They are still re-fitted, so they remain in ``A``, but are never pivots.

    ``pattern.tile``: with ``G`` the entries of a tile, ``loss = 1/2 w_G^T (A_GG)^-1 w_G``, ``w <- w - A[:, G] (A_GG)^-1 w_G`` and
    ``A <- A - A[:, G] (A_GG)^-1 A[G, :]``. Order and loss are then over tiles, (n, B / tile). A tile is alive if one of its entries is, and
    entries that are not alive have no effect.

    Entries that cannot be removed, because they are not alive or kept by their bucket, come last in the order of the block, with a loss of
    +inf.

    Source: Hassibi & Stork 1992, eq. 5; Frantar & Alistarh 2022 (OBC), section 4 (N:M, groups); Kuznedelev et al. 2023 (CAP), algorithm 1.
    Raises: NotPositiveDefinite if a block has no factor after its dampening was raised tenfold ``linalg.RAISES`` times; ValueError if a
    tile or bucket does not fit the block.
    """
    pattern.check(weights_nB.shape[1])
    return _implementation(weights_nB).eliminate(weights_nB, mean_nBB, alive_nB, dampening, relative, pattern)


def static_losses(
    weights_nB: Tensor, mean_nBB: Tensor, alive_nB: Tensor, dampening: float, relative: bool, pattern: Pattern = FREE
) -> tuple[Tensor, Tensor]:
    r"""Returns the loss of removing each weight or tile alone, ``w_q^2 / (2 A_qq)`` or ``1/2 w_G^T (A_GG)^-1 w_G``.

    This is the loss of the first step of ``eliminate``, for every entry. Arguments and errors are those of ``eliminate``.
    Returns: losses (n, B / tile), float32, in the order of the block, +inf for entries that cannot be removed; and the dampening of each
    block (float64).
    Source: Singh & Alistarh 2020 (WoodFisher); Kurtic et al. 2022 (oBERT), eq. 7.
    """
    pattern.check(weights_nB.shape[1])
    if weights_nB.is_cuda:  # the reference consists of batched factors only
        return reference.static_losses(weights_nB, mean_nBB, alive_nB, dampening, relative, pattern)
    from kernels.obs import cpu

    return cpu.static_losses(weights_nB, mean_nBB, alive_nB, dampening, relative, pattern)


def solve_on_mask(
    weights_nB: Tensor,
    mean_nBB: Tensor,
    keep_nB: Tensor,
    alive_nB: Tensor,
    dampening: float,
    relative: bool,
    slope_nB: Tensor | None = None,
) -> Tensor:
    r"""Returns the optimal weights of each block, (n, B), if those that are alive and not kept are set to zero.

        minimise 1/2 delta^T (H + lambda I) delta - s^T delta   with   delta_R = -w_R:
        w'_K = w_K + (H + lambda I)_KK^-1 (H_KR w_R + s_K)

    with K = alive & keep, R = alive & ~keep and s = ``slope_nB``, (n, B), which is zero if it is None. The result has the type of the
    weights and is exactly 0 outside of K. Arguments and errors are those of ``eliminate``.
    """
    return _implementation(weights_nB).solve_on_mask(weights_nB, mean_nBB, keep_nB, alive_nB, dampening, relative, slope_nB)


def _implementation(weights_nB: Tensor) -> ModuleType:
    if weights_nB.is_cuda:
        from kernels.obs import gpu

        return gpu
    from kernels.obs import cpu

    return cpu
