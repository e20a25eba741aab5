"""Selection of the k smallest of many scores, exact and without gathering them.

Non-negative float32 numbers sort like their bit patterns. So the scores are counted by their high 16 bits, and those in the bin with the
k-th score again by their low 16 bits. Two rounds of 65536 counters, which add up over tensors and workers, give the k-th score exactly.
Scores that are not finite are neither selected nor counted.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

BINS = 1 << 16
CHUNK = 1 << 22  # scores that are converted to int64 at a time


def high_histogram(score: Tensor) -> Tensor:
    """Returns how many finite scores have each value of the high 16 bits, int64 (65536). Raises ValueError if a score is negative."""
    histogram = _histogram(score, None)
    if histogram[BINS // 2 :].any():
        raise ValueError("scores must not be negative")
    return histogram


def low_histogram(score: Tensor, high_bin: int) -> Tensor:
    """Returns how many scores of one high bin have each value of the low 16 bits, int64 (65536)."""
    return _histogram(score, high_bin)


def _histogram(score: Tensor, high_bin: int | None) -> Tensor:
    histogram = torch.zeros(BINS, dtype=torch.int64, device=score.device)
    for part in score.reshape(-1).split(CHUNK):
        finite = part[part.isfinite()].float() + 0.0  # -0.0 + 0.0 is 0.0
        bits = finite.view(torch.int32)
        high = (bits >> 16) & (BINS - 1)
        keys = high if high_bin is None else bits[high == high_bin] & (BINS - 1)
        histogram += torch.bincount(keys, minlength=BINS)
    return histogram


def find_bin(histogram: Tensor, k: int) -> tuple[int, int]:
    """Returns the bin of the k-th smallest score (from 1; bin 0 for ``k = 0``), and how many scores are in the bins before it.

    Raises ValueError if the histogram counts fewer than k.
    """
    up_to = histogram.cumsum(0)
    if not 0 <= k <= int(up_to[-1]):
        raise ValueError(f"cannot select {k} of {int(up_to[-1])} finite scores")
    bin_ = int(torch.searchsorted(up_to, k))
    return bin_, int(up_to[bin_] - histogram[bin_])


def threshold_value(high_bin: int, low_bin: int) -> float:
    """Returns the float32 with these high and low 16 bits."""
    return float(torch.tensor(high_bin << 16 | low_bin, dtype=torch.int32).view(torch.float32))


def count_below(score: Tensor, threshold: float) -> tuple[int, int]:
    """Returns how many scores are below the threshold, and how many equal it."""
    return int((score < threshold).sum()), int((score == threshold).sum())


def threshold_over(scores: Sequence[Tensor], k: int) -> float:
    """Returns the k-th smallest score of all tensors together (0.0 for ``k = 0``). Raises ValueError if fewer than k are finite."""
    high_bin, before = find_bin(torch.stack([high_histogram(score) for score in scores]).sum(0), k)
    low_bin, _ = find_bin(torch.stack([low_histogram(score, high_bin) for score in scores]).sum(0), k - before)
    return threshold_value(high_bin, low_bin)


def select_smallest(score_nB: Tensor, k: int) -> Tensor:
    """Returns True for exactly the k smallest scores; among equal ones, for those that come first row by row.

    Raises ValueError if fewer than k scores are finite.
    """
    threshold = threshold_over([score_nB], k)
    below_nB = score_nB < threshold
    ties = (score_nB == threshold).reshape(-1)
    first = ties & (ties.cumsum(0) <= k - int(below_nB.sum()))
    return below_nB | first.reshape(score_nB.shape)
