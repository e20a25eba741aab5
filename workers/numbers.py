"""Seeds and checks of numbers that several parts of the workers share."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def derived_seed(*parts: int | str) -> int:
    """Returns a 63-bit seed that depends on all ``parts`` and on nothing else."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def finite(tensor: Tensor) -> bool:
    """Returns whether no number is NaN or infinite. The extremes of a tensor tell, so no mask is allocated."""
    import torch

    low, high = torch.aminmax(tensor.detach())
    return bool(torch.isfinite(low) & torch.isfinite(high))
