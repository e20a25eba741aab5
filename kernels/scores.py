"""Scores that make removals from different blocks comparable. Losses are given in the order of removal, (n, B).

``accumulated`` and ``hull`` never decrease along the order, so a threshold always selects a prefix of it; ``marginal`` may decrease. A loss
of +inf (an entry that cannot be removed; these come last) has the score +inf.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.isotonic import isotonic_means

CURVE_POINTS = 21


def marginal(loss_nB: Tensor) -> Tensor:
    """Returns ``l_k``, the loss of this removal alone. Source: Frantar & Alistarh 2022 (OBC)."""
    return loss_nB.clone()


def accumulated(loss_nB: Tensor) -> Tensor:
    """Returns ``l_1 + .. + l_k``, the loss of the block up to this removal. Source: Kuznedelev et al. 2023 (CAP)."""
    return loss_nB.double().cumsum(dim=1).cummax(dim=1).values.float()


def hull(loss_nB: Tensor) -> Tensor:
    """Returns the slopes of the lower convex hull of the cumulative loss: the isotonic regression of ``l_1 .. l_B``.

    Removing a given number of entries from many blocks by one threshold on these scores costs least, up to one partial segment for each
    block. Computed in float64 on the CPU; returned in float32 on the device of the losses, non-decreasing also after rounding.
    """
    return torch.from_numpy(isotonic_means(loss_nB.float().cpu().contiguous().numpy())).to(loss_nB.device)


def loss_curve(loss_nG: Tensor, units: int, points: int = CURVE_POINTS) -> list[tuple[float, float]]:
    """Returns (sparsity, smallest predicted loss) of a layer at evenly spaced sparsities, its steps taken cheapest first."""
    ordered = loss_nG[torch.isfinite(loss_nG)].double().sort().values.cumsum(0)
    if not len(ordered):
        return []
    counts = torch.linspace(0, len(ordered), points).long()
    return [(int(k) / units, float(ordered[k - 1]) if k else 0.0) for k in counts]
