"""SparseGPT's sweep: prune the columns of a matrix from left to right, each time making up for it in the columns that follow.

Source: Frantar & Alistarh 2023 (arXiv 2301.00774), algorithm 1. With ``H^-1 = U^T U`` and U upper triangular, row j of U / U_jj is row j of
the inverse of H restricted to columns j and later, for all rows of the weights at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.linalg import dampened_cholesky
from kernels.patterns import Pattern


def inverse_factor(mean_CC: Tensor, dampening: float) -> tuple[Tensor, float]:
    """Upper triangular ``U`` (C, C), float64, with ``U^T U = (H + lambda I)^-1``, and the ``lambda`` used. Raises: NotPositiveDefinite.

    With P the reversal of the order of columns and ``P (H + lambda I) P = L L^T``, ``U = (P L P)^-1``: the inverse itself, which the paper
    factors a second time, is not needed.
    """
    alive_1C = torch.ones(1, len(mean_CC), dtype=torch.bool, device=mean_CC.device)
    lower_1CC, dampening_1 = dampened_cholesky(mean_CC.double().flip(0, 1)[None], alive_1C, dampening)
    identity_CC = torch.eye(len(mean_CC), dtype=torch.float64, device=mean_CC.device)
    return torch.linalg.solve_triangular(lower_1CC[0].flip(0, 1), identity_CC, upper=True), float(dampening_1[0])


def column_costs(weight_RC: Tensor, upper_CC: Tensor) -> Tensor:
    """``w_ij^2 / U_jj^2``: twice the loss of zeroing a weight when columns to its left stay; +inf where it is zero already."""
    cost_RC = weight_RC.double().square() / upper_CC.diagonal().square()
    return cost_RC.masked_fill(weight_RC == 0, torch.inf)


def sweep(weight_RC: Tensor, upper_CC: Tensor, keep_RC: Tensor, mask_block: int, pattern: Pattern) -> tuple[Tensor, Tensor]:
    """Prune as many weights in each block of ``mask_block`` columns as ``keep_RC`` does, but which ones is decided during the sweep.

    Under N:M the decision is made bucket by bucket, ``pattern.removable`` in each row. Weights that are zero stay zero and count.
    Returns: swept weights (R, C) in float64, exactly zero where pruned; and what was kept.
    """
    w_RC, dead_RC = weight_RC.double().clone(), weight_RC == 0
    kept_RC = torch.empty_like(keep_RC)
    for start in range(0, w_RC.shape[1], mask_block):
        stop = min(start + mask_block, w_RC.shape[1])
        part = slice(start, stop)
        if not pattern.bucket:
            kept_RC[:, part] = _cheapest_go(w_RC[:, part], upper_CC[part, part], dead_RC[:, part], int((~keep_RC[:, part]).sum()))
        errors_RS = torch.empty_like(w_RC[:, part])
        for j in range(start, stop):
            if pattern.bucket and j % pattern.bucket == 0:
                bucket = slice(j, j + pattern.bucket)
                kept_RC[:, bucket] = _cheapest_of_each_row_go(
                    w_RC[:, bucket], upper_CC[bucket, bucket], dead_RC[:, bucket], pattern.removable
                )
            pruned_R = torch.where(kept_RC[:, j], 0.0, w_RC[:, j])
            errors_RS[:, j - start] = pruned_R / upper_CC[j, j]
            w_RC[:, j:stop] -= errors_RS[:, j - start, None] * upper_CC[j, j:stop]
        w_RC[:, stop:] -= errors_RS @ upper_CC[part, stop:]
    return torch.where(kept_RC, w_RC, 0.0), kept_RC


def _ordered_costs(w_RS: Tensor, upper_SS: Tensor, dead_RS: Tensor) -> Tensor:
    return (w_RS.square() / upper_SS.diagonal().square()).masked_fill(dead_RS, -1.0)


def _cheapest_go(w_RS: Tensor, upper_SS: Tensor, dead_RS: Tensor, count: int) -> Tensor:
    order = _ordered_costs(w_RS, upper_SS, dead_RS).flatten().argsort(stable=True)
    kept = torch.ones(w_RS.numel(), dtype=torch.bool, device=w_RS.device)
    kept[order[:count]] = False
    return kept.reshape(w_RS.shape)


def _cheapest_of_each_row_go(w_RS: Tensor, upper_SS: Tensor, dead_RS: Tensor, count: int) -> Tensor:
    """Dead weights go in any case, also when they are more than ``count``."""
    order_RS = _ordered_costs(w_RS, upper_SS, dead_RS).argsort(dim=1, stable=True)
    kept_RS = torch.ones_like(dead_RS).scatter_(1, order_RS[:, :count], False)
    return kept_RS & ~dead_RS
