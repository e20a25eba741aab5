"""Sensitivities that come from one number per tile of weights, without elimination."""

from __future__ import annotations

import torch
from torch import Tensor

from workers.pruners.base import Sensitivity
from workers.pruners.layout import Layout


def static_sensitivity(cost_RG: Tensor, layout: Layout, notes: dict[str, float], predicts: bool) -> Sensitivity:
    """Each tile is worth its cost, whatever else goes. ``cost_RG`` (columns as arranged, float32) is +inf where nothing can be removed.

    Under N:M the blocks are the buckets: the ``removable`` cheapest of each may go, less those that are gone. ``predicts``: costs are
    predicted losses.
    """
    bucket = layout.pattern.bucket or 1
    cost_nB = cost_RG.float().reshape(-1, bucket)
    score_nB, order_nB = cost_nB.sort(dim=1, stable=True)
    if layout.pattern.bucket:
        gone_n1 = torch.isinf(score_nB).sum(dim=1, keepdim=True)
        positions_B = torch.arange(bucket, device=cost_RG.device)
        score_nB = score_nB.masked_fill(positions_B >= layout.pattern.removable - gone_n1, torch.inf)
    return Sensitivity(order_nB.to(torch.int16), score_nB.clone() if predicts else torch.full_like(score_nB, torch.nan), score_nB, notes)


def quantiles(cost_GS: Tensor) -> Tensor:
    """Costs replaced by their rank in each row, as a fraction of the row's length: any threshold then takes the same share of all rows.

    Entries of +inf are gone already and take the first ranks; they stay +inf.
    """
    gone_GS = torch.isinf(cost_GS)
    rank_GS = torch.empty_like(cost_GS)
    steps_S = torch.arange(1, cost_GS.shape[1] + 1, device=cost_GS.device, dtype=cost_GS.dtype).expand(cost_GS.shape)
    rank_GS.scatter_(1, cost_GS.argsort(dim=1, stable=True), steps_S.contiguous())
    return torch.where(gone_GS, torch.inf, (rank_GS + gone_GS.sum(dim=1, keepdim=True)) / cost_GS.shape[1])
