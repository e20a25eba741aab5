"""What the k-th removal from a block is worth against removals from other blocks. Losses come in the order of removal, (n, B).

``accumulated`` and ``hull`` never decrease along the order, so that any threshold cuts off a prefix of it; ``marginal`` may.
A loss of +inf (an entry that cannot be removed; these come last) keeps the score +inf.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.isotonic import isotonic_means


def marginal(loss_nB: Tensor) -> Tensor:
    """``l_k``: the loss of this removal alone. Source: Frantar & Alistarh 2022 (OBC)."""
    return loss_nB.clone()


def accumulated(loss_nB: Tensor) -> Tensor:
    """``l_1 + .. + l_k``: the loss of the block up to this removal. Source: Kuznedelev et al. 2023 (CAP)."""
    return loss_nB.double().cumsum(dim=1).cummax(dim=1).values.float()


def hull(loss_nB: Tensor) -> Tensor:
    """Slopes of the lower convex hull of the cumulative loss: the isotonic regression of ``l_1 .. l_B``.

    The cheapest way to remove a given number from many blocks by one threshold: optimal up to one partial segment per block.
    Computed in float64 on the CPU; float32 out, on the losses' device, non-decreasing also after rounding.
    """
    return torch.from_numpy(isotonic_means(loss_nB.float().cpu().contiguous().numpy())).to(loss_nB.device)
