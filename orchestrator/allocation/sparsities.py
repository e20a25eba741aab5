"""The sparsity of each layer for a budget of latency: a knapsack over measured times and predicted losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from kernels import knapsack

TIMED = (0.0, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98)  # sparsities at which layers are timed
OFFERED = (0.0, *np.linspace(0.5, 0.98, 49).round(2).tolist())  # sparsities that a layer can have
LARGEST_SHARE = 0.95  # of the model's time that its layers are taken to have


@dataclass(frozen=True)
class Options:
    """For each layer, its milliseconds and its predicted loss at the ``OFFERED`` sparsities, and the milliseconds of the dense model."""

    ms: Mapping[str, ndarray]
    losses: Mapping[str, ndarray]
    dense_ms: float

    @property
    def scale(self) -> float:
        """The time of the layers in the model, divided by their time alone."""
        alone_ms = sum(float(times_ms[0]) for times_ms in self.ms.values())
        return min(1.0, LARGEST_SHARE * self.dense_ms / alone_ms) if alone_ms else 1.0

    def share(self, choice: Mapping[str, int]) -> float:
        """Returns the predicted time with the chosen options, as a fraction of the dense model's."""
        saved = sum(times_ms[0] - times_ms[choice[name]] for name, times_ms in self.ms.items())
        return 1 - self.scale * float(saved) / self.dense_ms

    def choose(self, share: float) -> dict[str, int] | None:
        """Returns the options with the least loss that take at most a share of the dense time; None if there are none."""
        budget = sum(times_ms[0] for times_ms in self.ms.values()) - (1 - share) * self.dense_ms / self.scale
        (chosen,) = knapsack.exact([-loss for loss in self.losses.values()], list(self.ms.values()), [float(budget)])
        return None if chosen is None else dict(zip(self.ms, chosen.tolist(), strict=True))

    @property
    def least_share(self) -> float:
        """The smallest predicted time, as a fraction of the dense model's."""
        return self.share({name: int(times_ms.argmin()) for name, times_ms in self.ms.items()})


def offered_ms(timed_ms: Mapping[str, Sequence[float]]) -> dict[str, ndarray]:
    """Returns the milliseconds of each layer at the ``OFFERED`` sparsities, between two timed ones by the line through them.

    A layer is never slower than dense, since the sparse runtime keeps the dense product where that is faster.
    """
    offered = np.array(OFFERED)
    sparse = {name: np.interp(offered, TIMED[1:], times_ms[1:]) for name, times_ms in timed_ms.items()}
    return {name: np.where(offered > 0, np.minimum(times_ms, timed_ms[name][0]), timed_ms[name][0]) for name, times_ms in sparse.items()}
