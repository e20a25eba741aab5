"""Magnitude pruning, the baseline for all other methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from workers.models.base import Layer
from workers.pruners.base import Sensitivity, Solution, WeightPruner

if TYPE_CHECKING:
    from torch import Tensor

    from kernels.second_moment import Moments


@dataclass
class Magnitude(WeightPruner):
    """Prunes the smallest ``|w|`` (for tiles: the smallest norms). The other weights keep their values. Reads no data, predicts no loss."""

    @property
    def statistic(self) -> None:
        return None

    def score(self, weight_RC: Tensor, layer: Layer, moments: Moments | None) -> Sensitivity:
        from workers.pruners.static import static_sensitivity

        layout = self.layout(layer)
        size_RG = layout.arrange(weight_RC.float()).reshape(layer.rows, -1, self.pattern.tile).norm(dim=2)
        return static_sensitivity(size_RG.masked_fill(size_RG == 0, float("inf")), layout, {}, predicts=False)

    def solve(self, weight_RC: Tensor, layer: Layer, moments: Moments | None, keep_RC: Tensor) -> Solution:
        return Solution(weight_RC * keep_RC, keep_RC)
