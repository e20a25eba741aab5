"""The result of collecting a statistic, and the memory that collecting works with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kernels.second_moment import SecondMoment

GUIDED_CHUNK = 512  # weighted input vectors that are multiplied at once
PATCH_BYTES = 64 * 2**20  # of a convolution's inputs, unfolded for one product


def chunk_size(block_size: int) -> int:
    """Returns how many gradients are multiplied at once, so that a block is read and written once for all of them.

    The gradients take ``K / B`` of the statistic's memory.
    """
    return max(16 if block_size < 64 else 64, block_size // 2)


@dataclass(frozen=True)
class Collected:
    """Calibration sums by layer name, and how many batches were skipped for each layer because a number was not finite."""

    moments: dict[str, SecondMoment]
    skipped: dict[str, int]
