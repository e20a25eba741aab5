"""Wanda: magnitude times the norm of the input (Sun et al., ICLR 2024, arXiv 2306.11695)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from workers.checks import require
from workers.collect.statistic import LayerHessian
from workers.models.base import Layer
from workers.pruners.base import Sensitivity, Solution, WeightPruner

if TYPE_CHECKING:
    from torch import Tensor

    from kernels.second_moment import Moments


@dataclass
class Wanda(WeightPruner):
    """Prunes the smallest ``|w_ij| * ||x_j||`` of each output row. The other weights keep their values.

    Scores are ranks within rows, so every row loses the same share whatever the scope of the target. Predicts no loss.
    """

    def __post_init__(self) -> None:
        require(self.pattern.tile == 1, "pruner.target.pattern", "unstructured or N:M with pruner=wanda", self.target.pattern)

    @property
    def statistic(self) -> LayerHessian:
        return LayerHessian(self.pattern)

    def score(self, weight_RC: Tensor, layer: Layer, moments: Moments | None) -> Sensitivity:
        from workers.pruners.obs import require_samples
        from workers.pruners.static import quantiles, static_sensitivity

        layout = self.layout(layer)
        norm_GC = require_samples(layout, moments).diagonal_nB().double().sqrt()
        norm_RC = norm_GC.repeat_interleave(layer.rows // len(norm_GC), dim=0)
        cost_RC = (weight_RC.double().abs() * norm_RC).masked_fill(weight_RC == 0, float("inf"))
        return static_sensitivity(quantiles(layout.arrange(cost_RC)), layout, {}, predicts=False)

    def solve(self, weight_RC: Tensor, layer: Layer, moments: Moments | None, keep_RC: Tensor) -> Solution:
        return Solution(weight_RC * keep_RC, keep_RC)
