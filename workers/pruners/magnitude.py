"""Magnitude pruning: the baseline every other method has to beat."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workers.losses import Loss
from workers.pruners.base import Collected, Pruner, Sensitivity, Solution

if TYPE_CHECKING:
    from torch import Tensor, nn

    from kernels.statistics import SecondMoment
    from workers.data.base import Batch
    from workers.models.base import Layer


@dataclass
class Magnitude(Pruner):
    """Prune the smallest ``|w|``; the others keep their values. Reads no data and predicts no loss."""

    def statistic_shape(self, layer: Layer) -> tuple[int, int]:
        return 0, 0

    def collect(self, model: nn.Module, layers: list[Layer], batches: Iterator[Batch], loss: Loss, seed: int) -> Collected:
        return Collected({}, {})

    def score(self, weight_RC: Tensor, layer: Layer, statistic: SecondMoment | None) -> Sensitivity:
        import torch

        magnitude_n1 = weight_RC.abs().float().reshape(-1, 1)
        score_n1 = magnitude_n1.masked_fill(magnitude_n1 == 0, torch.inf)
        return Sensitivity(torch.zeros_like(score_n1, dtype=torch.int16), torch.full_like(score_n1, torch.nan), score_n1)

    def solve(self, weight_RC: Tensor, layer: Layer, statistic: SecondMoment | None, keep_RC: Tensor) -> Solution:
        return Solution(weight_RC * keep_RC, keep_RC)
