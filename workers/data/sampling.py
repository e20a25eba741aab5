"""The assignment of samples to batches, as pure functions of a seed that give the same result on every worker."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

DRAWS = 4  # random numbers for the augmentation of one sample


class Stream(IntEnum):
    """Independent uses of one seed."""

    SUBSET = 1
    CALIBRATION = 2
    ORDER = 3
    AUGMENTATION = 4


class Pick(NamedTuple):
    """One batch to read: ``indices_N`` into a split, and random numbers ``draws_ND`` in [0, 1) for the augmentation (None: none)."""

    indices_N: NDArray[np.int64]
    draws_ND: NDArray[np.float64] | None


def part(count: int, index: int, parts: int) -> range:
    """Returns the ``index``-th of ``parts`` contiguous parts of ``range(count)``, whose sizes differ by at most one."""
    return range(index * count // parts, (index + 1) * count // parts)


def subset(seed: int, samples: int, size: int) -> NDArray[np.int64]:
    """Returns ``size`` of ``samples`` in ascending order (0: all). Smaller subsets are contained in larger ones of the same seed."""
    if size == 0:
        return np.arange(samples)
    return np.sort(np.random.default_rng([Stream.SUBSET, seed]).permutation(samples)[:size])


def calibration_order(seed: int, samples: int, size: int) -> NDArray[np.int64]:
    """Returns ``size`` samples drawn without replacement. After every ``samples`` draws, all are drawn again in a new order."""
    passes = -(-size // samples)
    orders = [np.random.default_rng([Stream.CALIBRATION, seed, number]).permutation(samples) for number in range(passes)]
    return np.concatenate(orders)[:size]


def in_batches(indices: NDArray[np.int64], batch_size: int) -> list[Pick]:
    """Returns consecutive batches without augmentation; the last one may be smaller."""
    return [Pick(indices[start : start + batch_size], None) for start in range(0, len(indices), batch_size)]


def training_batches(seed: int, epoch: int, members: NDArray[np.int64], batch_size: int, rank: int, world: int) -> list[Pick]:
    """Returns this rank's contiguous part of every global batch of an epoch. Samples that do not fill a batch are dropped.

    Order and draws are those of the global batch and depend on (seed, epoch) alone; they are cut into parts for the ranks afterwards.
    """
    order = np.random.default_rng([Stream.ORDER, seed, epoch]).permutation(members)
    mine = part(batch_size, rank, world)
    picks = []
    for step in range(len(members) // batch_size):
        draws_ND = np.random.default_rng([Stream.AUGMENTATION, seed, epoch, step]).random((batch_size, DRAWS))
        indices_N = order[step * batch_size : (step + 1) * batch_size]
        picks.append(Pick(indices_N[mine.start : mine.stop], draws_ND[mine.start : mine.stop]))
    return picks
