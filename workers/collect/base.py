"""What collecting a statistic leaves, and how much memory it works with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kernels.second_moment import SecondMoment

PATCH_BYTES = 64 * 2**20  # of a convolution's inputs, laid out for the product at a time


def chunk_size(block_size: int) -> int:
    """Gradients kept before they are multiplied, so that a block is read and written once for many. Memory: ``K / B`` of the statistic."""
    return max(16 if block_size < 64 else 64, block_size // 2)


@dataclass(frozen=True)
class Collected:
    """Calibration sums by layer name, and by layer name the calibration batches that were left out because something was not finite."""

    moments: dict[str, SecondMoment]
    skipped: dict[str, int]
