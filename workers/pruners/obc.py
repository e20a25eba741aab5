"""OBC / ExactOBS: exact greedy elimination in whole rows under the layer Hessian (Frantar & Alistarh, NeurIPS 2022, arXiv 2208.11580)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from workers.collect.statistic import ELIMINATE, INVERT, LayerHessian, refit_flops
from workers.models.base import Layer
from workers.pruners.base import Sensitivity, Solution, WeightPruner, check_dampening
from workers.pruners.cap import Score

if TYPE_CHECKING:
    from torch import Tensor

    from kernels.second_moment import Moments


@dataclass
class OBC(WeightPruner):
    r"""Greedy OBS elimination in each row for the squared error of the layer's outputs.

        H = lambda I + 2/N sum_n x_n x_n^T          loss of removing q from a row: w_q^2 / (2 [H^-1]_qq)

    The losses are output errors of one layer, which cannot be compared across layers: use ``target.scope: uniform``. They are not in units
    of the calibration loss, so the method predicts no loss.
    """

    dampening: float
    relative_dampening: bool
    score_rule: Score

    def __post_init__(self) -> None:
        check_dampening(self.dampening)

    @property
    def statistic(self) -> LayerHessian:
        return LayerHessian(self.pattern)

    def flops(self, layer: Layer) -> tuple[float, float]:
        eliminating = (INVERT * layer.groups + ELIMINATE * layer.rows) * layer.columns**3
        return eliminating, refit_flops(layer.rows, layer.columns, self.target.sparsity)

    def score(self, weight_RC: Tensor, layer: Layer, moments: Moments | None) -> Sensitivity:
        import torch

        from workers.pruners import obs

        curvature = obs.layer_hessian(self.layout(layer), moments, self.dampening, self.relative_dampening)
        elimination, notes = obs.eliminate_layer(weight_RC, curvature)
        score_nG = obs.scores_by(self.score_rule.value, elimination.loss_nB)
        return Sensitivity(elimination.order_nB, torch.full_like(score_nG, torch.nan), score_nG, notes)

    def solve(self, weight_RC: Tensor, layer: Layer, moments: Moments | None, keep_RC: Tensor) -> Solution:
        from workers.pruners import obs

        curvature = obs.layer_hessian(self.layout(layer), moments, self.dampening, self.relative_dampening)
        return Solution(obs.solve_layer(weight_RC, curvature, keep_RC), keep_RC)
