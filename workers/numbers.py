"""Seeds and checks of numbers that several parts of the workers share."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def derived_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part and on nothing else."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def finite(tensor: Tensor) -> bool:
    """Whether no number is NaN or infinite: extremes carry both, and need no mask."""
    import torch

    low, high = torch.aminmax(tensor.detach())
    return bool(torch.isfinite(low) & torch.isfinite(high))
