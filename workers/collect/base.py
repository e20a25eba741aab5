"""The result of collecting a statistic, and the memory that collecting works with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from workers.errors import SecateurError

if TYPE_CHECKING:
    from kernels.second_moment import SecondMoment

SHARED_CHUNK = 512  # vectors that are multiplied at once where many of them belong to few matrices
PATCH_BYTES = 64 * 2**20  # of a convolution's inputs, unfolded for one product


def chunk_size(block_size: int) -> int:
    """Returns how many vectors are multiplied at once, so that a block is read and written once for all of them.

    The vectors take ``K / B`` of the statistic's memory.
    """
    return max(16 if block_size < 64 else 64, block_size // 2)


def chunk_bytes(blocks: int, block_size: int, shared: bool = False) -> int:
    """Returns the memory of the vectors that wait to be multiplied (see ``outer_sum``)."""
    return 4 * (SHARED_CHUNK if shared else chunk_size(block_size)) * blocks * block_size


def unreached(layer: str) -> SecateurError:
    """Returns the error for a layer that has no derivatives, because the calibration loss does not depend on it."""
    return SecateurError(f"{layer}: the calibration loss does not depend on this layer; name it in model.exclude, or choose another loss")


@dataclass(frozen=True)
class Collected:
    """Calibration sums by layer name, and how many batches were skipped for each layer because a number was not finite."""

    moments: dict[str, SecondMoment]
    skipped: dict[str, int]
