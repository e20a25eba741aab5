"""Which samples make up which batch: pure functions of a seed, the same on every worker."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

DRAWS = 4  # random numbers that decide the augmentation of one sample


class Stream(IntEnum):
    """Independent uses of one seed."""

    SUBSET = 1
    CALIBRATION = 2
    ORDER = 3
    AUGMENTATION = 4


class Pick(NamedTuple):
    """One batch to read: ``indices_N`` into a split, and ``draws_ND`` in [0, 1) that decide the augmentation (None: no augmentation)."""

    indices_N: NDArray[np.int64]
    draws_ND: NDArray[np.float64] | None


def part(count: int, index: int, of: int) -> range:
    """The ``index``-th of ``of`` contiguous parts of ``range(count)``, whose sizes differ by one at most."""
    return range(index * count // of, (index + 1) * count // of)


def subset(seed: int, samples: int, wanted: int) -> NDArray[np.int64]:
    """``wanted`` of ``samples`` in ascending order (0: all). Smaller subsets are contained in larger ones of the same seed."""
    if wanted == 0:
        return np.arange(samples)
    return np.sort(np.random.default_rng([Stream.SUBSET, seed]).permutation(samples)[:wanted])


def calibration_order(seed: int, samples: int, wanted: int) -> NDArray[np.int64]:
    """``wanted`` samples drawn without replacement; every ``samples`` of them a new pass over all begins in a new order."""
    passes = -(-wanted // samples)
    orders = [np.random.default_rng([Stream.CALIBRATION, seed, number]).permutation(samples) for number in range(passes)]
    return np.concatenate(orders)[:wanted]


def in_batches(indices: NDArray[np.int64], batch_size: int) -> list[Pick]:
    """Consecutive batches without augmentation; the last one may be smaller."""
    return [Pick(indices[start : start + batch_size], None) for start in range(0, len(indices), batch_size)]


def training_batches(seed: int, epoch: int, members: NDArray[np.int64], batch_size: int, rank: int, world: int) -> list[Pick]:
    """This rank's contiguous part of every global batch of an epoch; samples that do not fill a batch are dropped.

    Order and draws belong to the global batch and depend on (seed, epoch) alone: they are cut for the ranks afterwards.
    """
    order = np.random.default_rng([Stream.ORDER, seed, epoch]).permutation(members)
    mine = part(batch_size, rank, world)
    picks = []
    for step in range(len(members) // batch_size):
        draws_ND = np.random.default_rng([Stream.AUGMENTATION, seed, epoch, step]).random((batch_size, DRAWS))
        indices_N = order[step * batch_size : (step + 1) * batch_size]
        picks.append(Pick(indices_N[mine.start : mine.stop], draws_ND[mine.start : mine.stop]))
    return picks
