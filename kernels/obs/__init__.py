"""Optimal brain surgeon inside blocks: the order in which weights go, what that costs, and the weights that are left.

One signature, three implementations: ``reference`` (plain torch, any device), ``cpu`` (compiled, for CPU tensors), ``gpu`` (for CUDA
tensors). ``eliminate`` and ``solve_on_mask`` here choose by the device of the weights.
"""

from __future__ import annotations

from types import ModuleType

from torch import Tensor

from kernels.obs.reference import Elimination

__all__ = ["Elimination", "eliminate", "solve_on_mask"]


def eliminate(weights_nB: Tensor, mean_nBB: Tensor, alive_nB: Tensor, dampening: float, relative: bool) -> Elimination:
    r"""Remove all alive weights of each block one after the other, each time the one that costs least.

        q = argmin_alive w_q^2 / A_qq       loss = w_q^2 / (2 A_qq)       A = (H + lambda I)^-1 over the alive entries
        w <- w - (w_q / A_qq) A[:, q]       A <- A - A[:, q] A[q, :] / A_qq

    Ties go to the entry that comes first in the block. ``mean_nBB`` may be (1, B, B): all blocks share it. ``lambda`` is ``dampening``,
    or with ``relative`` that many times the mean diagonal of ``H`` over the alive entries of all blocks given, so give whole layers.
    Source: Hassibi & Stork 1992, eq. 5; Kuznedelev et al. 2023 (CAP), algorithm 1. The weights themselves are not returned:
    ``solve_on_mask`` gives them for any prefix of the order.
    Raises: NotPositiveDefinite when a block has no factor with its dampening raised ``linalg.RAISES`` times tenfold.
    """
    return _implementation(weights_nB).eliminate(weights_nB, mean_nBB, alive_nB, dampening, relative)


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
