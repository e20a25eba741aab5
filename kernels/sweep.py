"""SparseGPT's sweep, which prunes the columns of a matrix from left to right and corrects the following columns for the error.

With ``H^-1 = U^T U`` and U upper triangular, row j of U / U_jj is row j of the inverse of H restricted to columns j and later, divided by
its diagonal entry, for all rows of the weights at once. Source: Frantar & Alistarh 2023 (arXiv 2301.00774), algorithm 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.linalg import dampened_cholesky
from kernels.patterns import Pattern


def inverse_factor(mean_CC: Tensor, dampening: float) -> tuple[Tensor, float]:
    """Returns the upper triangular ``U`` (C, C), float64, with ``U^T U = (H + lambda I)^-1``, and the ``lambda`` that was used.

    With P the reversal of the order of columns and ``P (H + lambda I) P = L L^T``, ``U = (P L P)^-1``. The inverse itself, which the paper
    computes and factors again, is not needed. Raises: NotPositiveDefinite.
    """
    alive_1C = torch.ones(1, len(mean_CC), dtype=torch.bool, device=mean_CC.device)
    lower_1CC, dampening_1 = dampened_cholesky(mean_CC.double().flip(0, 1)[None], alive_1C, dampening)
    identity_CC = torch.eye(len(mean_CC), dtype=torch.float64, device=mean_CC.device)
    return torch.linalg.solve_triangular(lower_1CC[0].flip(0, 1), identity_CC, upper=True), float(dampening_1[0])


def column_costs(weight_RC: Tensor, upper_CC: Tensor) -> Tensor:
    """Returns ``w_ij^2 / U_jj^2``, twice the loss of zeroing a weight if columns to its left do not change; +inf where it is zero."""
    cost_RC = weight_RC.double().square() / upper_CC.diagonal().square()
    return cost_RC.masked_fill(weight_RC == 0, torch.inf)


def sweep(weight_RC: Tensor, upper_CC: Tensor, keep_RC: Tensor, mask_block: int, pattern: Pattern) -> tuple[Tensor, Tensor]:
    """Prunes as many weights in each block of ``mask_block`` columns as ``keep_RC`` does, and decides during the sweep which ones.

    Under N:M the decision is made bucket by bucket, with ``pattern.removable`` weights in each row. Weights that are zero before remain
    zero and count as pruned.
    Returns: the new weights (R, C) in float64, exactly zero where pruned, and which weights were kept.
    """
    w_RC, zero_RC = weight_RC.double().clone(), weight_RC == 0
    kept_RC = torch.empty_like(keep_RC)
    for start in range(0, w_RC.shape[1], mask_block):
        stop = min(start + mask_block, w_RC.shape[1])
        part = slice(start, stop)
        if not pattern.bucket:
            kept_RC[:, part] = _without_cheapest(w_RC[:, part], upper_CC[part, part], zero_RC[:, part], int((~keep_RC[:, part]).sum()))
        errors_RS = torch.empty_like(w_RC[:, part])
        for j in range(start, stop):
            if pattern.bucket and j % pattern.bucket == 0:
                bucket = slice(j, j + pattern.bucket)
                kept_RC[:, bucket] = _without_cheapest_of_each_row(
                    w_RC[:, bucket], upper_CC[bucket, bucket], zero_RC[:, bucket], pattern.removable
                )
            pruned_R = torch.where(kept_RC[:, j], 0.0, w_RC[:, j])
            errors_RS[:, j - start] = pruned_R / upper_CC[j, j]
            w_RC[:, j:stop] -= errors_RS[:, j - start, None] * upper_CC[j, j:stop]
        w_RC[:, stop:] -= errors_RS @ upper_CC[part, stop:]
    return torch.where(kept_RC, w_RC, 0.0), kept_RC


def _costs(w_RS: Tensor, upper_SS: Tensor, zero_RS: Tensor) -> Tensor:
    """Returns the costs of removal, with those of zeros below all others."""
    return (w_RS.square() / upper_SS.diagonal().square()).masked_fill(zero_RS, -1.0)


def _without_cheapest(w_RS: Tensor, upper_SS: Tensor, zero_RS: Tensor, count: int) -> Tensor:
    """Returns which weights are kept if the ``count`` cheapest are pruned."""
    order = _costs(w_RS, upper_SS, zero_RS).flatten().argsort(stable=True)
    kept = torch.ones(w_RS.numel(), dtype=torch.bool, device=w_RS.device)
    kept[order[:count]] = False
    return kept.reshape(w_RS.shape)


def _without_cheapest_of_each_row(w_RS: Tensor, upper_SS: Tensor, zero_RS: Tensor, count: int) -> Tensor:
    """Returns which weights are kept if the ``count`` cheapest of each row are pruned, and all zeros even if they are more."""
    order_RS = _costs(w_RS, upper_SS, zero_RS).argsort(dim=1, stable=True)
    kept_RS = torch.ones_like(zero_RS).scatter_(1, order_RS[:, :count], False)
    return kept_RS & ~zero_RS
