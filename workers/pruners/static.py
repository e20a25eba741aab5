"""Sensitivities of methods that score every tile once, without elimination."""

from __future__ import annotations

import torch
from torch import Tensor

from workers.pruners.base import Sensitivity
from workers.pruners.layout import Layout


def static_sensitivity(cost_RG: Tensor, layout: Layout, notes: dict[str, float], predicts: bool) -> Sensitivity:
    """Returns the sensitivity whose scores are the costs themselves, whichever other tiles are removed.

    ``cost_RG`` (float32, columns in the order of ``layout.arrange``) is +inf where nothing can be removed. Under N:M the blocks are the
    buckets, and each may lose its ``removable`` cheapest entries, including those that were zero before. ``predicts`` says that the costs
    are predicted losses.
    """
    bucket = layout.pattern.bucket or 1
    cost_nB = cost_RG.float().reshape(-1, bucket)
    score_nB, order_nB = cost_nB.sort(dim=1, stable=True)
    if layout.pattern.bucket:
        zeros_n1 = torch.isinf(score_nB).sum(dim=1, keepdim=True)
        positions_B = torch.arange(bucket, device=cost_RG.device)
        score_nB = score_nB.masked_fill(positions_B >= layout.pattern.removable - zeros_n1, torch.inf)
    return Sensitivity(order_nB.to(torch.int16), score_nB.clone() if predicts else torch.full_like(score_nB, torch.nan), score_nB, notes)


def quantiles(cost_GS: Tensor) -> Tensor:
    """Returns the rank of each cost in its row, as a fraction of the row's length, so that any threshold prunes the same share of all rows.

    Entries with a cost of +inf are zero already. They take the first ranks of their row, and their result is +inf.
    """
    zero_GS = torch.isinf(cost_GS)
    rank_GS = torch.empty_like(cost_GS)
    steps_S = torch.arange(1, cost_GS.shape[1] + 1, device=cost_GS.device, dtype=cost_GS.dtype).expand(cost_GS.shape)
    rank_GS.scatter_(1, cost_GS.argsort(dim=1, stable=True), steps_S.contiguous())
    return torch.where(zero_GS, torch.inf, (rank_GS + zero_GS.sum(dim=1, keepdim=True)) / cost_GS.shape[1])
