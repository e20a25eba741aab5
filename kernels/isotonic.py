"""Isotonic regression by pooling adjacent violators, compiled for CPUs."""

from __future__ import annotations

import numba
import numpy as np


@numba.njit(cache=True, nogil=True, error_model="numpy")
def isotonic_means(values_nB: np.ndarray) -> np.ndarray:
    """Returns, for each row, the non-decreasing sequence nearest in least squares, up to the row's first +inf; the rest is +inf.

    Takes and returns float32. Means are computed and compared in float64; rounding to float32 preserves their order. The time is linear in
    the number of values. Source: Barlow et al. 1972, pool adjacent violators.
    """
    rows, columns = values_nB.shape
    out_nB = np.empty((rows, columns), dtype=np.float32)
    sums = np.empty(columns, dtype=np.float64)
    counts = np.empty(columns, dtype=np.int64)
    for row in range(rows):
        pools = 0
        finite = 0
        while finite < columns and values_nB[row, finite] != np.inf:
            sums[pools] = values_nB[row, finite]
            counts[pools] = 1
            while pools > 0 and sums[pools - 1] / counts[pools - 1] > sums[pools] / counts[pools]:
                sums[pools - 1] += sums[pools]
                counts[pools - 1] += counts[pools]
                pools -= 1
            pools += 1
            finite += 1
        start = 0
        for pool in range(pools):
            out_nB[row, start : start + counts[pool]] = sums[pool] / counts[pool]
            start += counts[pool]
        out_nB[row, finite:] = np.inf
    return out_nB
