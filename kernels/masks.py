"""Masks: packed as bits, made from prefixes of an elimination order, and counted."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def pack_bits(mask: Tensor) -> Tensor:
    """Returns one bit for each entry: entry ``e`` of the flattened mask is bit ``e % 8`` of byte ``e // 8``; bits past the end are 0."""
    flat = mask.reshape(-1)
    padded = torch.nn.functional.pad(flat.to(torch.uint8), (0, -len(flat) % 8)).reshape(-1, 8)
    shifts = torch.arange(8, dtype=torch.uint8, device=mask.device)
    return (padded << shifts).sum(dim=1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, shape: tuple[int, ...] | torch.Size) -> Tensor:
    """Returns the mask of this shape: the inverse of ``pack_bits``. Raises ValueError if the number of bytes does not fit the shape."""
    entries = math.prod(shape)
    if packed.numel() != -(-entries // 8):
        raise ValueError(f"expected {-(-entries // 8)} bytes for a mask of shape {tuple(shape)}, got {packed.numel()}")
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    bits = (packed[:, None] >> shifts) & 1
    return bits.reshape(-1)[:entries].reshape(shape).bool()


def prefix_mask(order_nB: Tensor, counts_n: Tensor) -> Tensor:
    """Returns which entries are removed, (n, B): the first ``counts_n[i]`` entries of block ``i`` in its order of removal."""
    positions_B = torch.arange(order_nB.shape[1], device=order_nB.device)
    removed_nB = torch.zeros(order_nB.shape, dtype=torch.bool, device=order_nB.device)
    return removed_nB.scatter_(1, order_nB.long(), positions_B < counts_n[:, None])


def zeros(tensor: Tensor) -> int:
    """Returns how many entries are exactly zero, including ``-0.0``."""
    return tensor.numel() - int(torch.count_nonzero(tensor))
