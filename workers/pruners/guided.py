"""Guided pruning: exact greedy elimination in whole rows under a layer Hessian that is weighted by the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from workers.collect.statistic import ELIMINATE, INVERT, GuidedHessian, check_block_size, refit_flops
from workers.models.base import Layer
from workers.pruners.base import Sensitivity, Solution, WeightPruner, check_dampening
from workers.pruners.cap import Score
from workers.pruners.layout import Layout

if TYPE_CHECKING:
    from torch import Tensor

    from kernels.second_moment import Moments


LARGEST_BLOCK = 32_768  # positions in a block are stored in 16 bits


@dataclass
class Guided(WeightPruner):
    r"""Greedy OBS elimination in each row by an approximation of the row's Fisher, and one ranking over all layers.

        F_r ~ (g_r / gbar_k) (lambda I + H_k)       loss of removing q from row r: (g_r / gbar_k) w_q^2 / (2 [(lambda I + H_k)^-1]_qq)

    ``H_k`` weights each input vector by the squared derivatives of the loss by the outputs of the rows in set k, and ``g_r / gbar_k`` is
    what row r has of them beside the mean of its set (see ``workers.collect.guided_hessian``). The order and the re-fit within a row are
    those of OBC under ``H_k``; rows and layers compare in units of the loss. Rows of more than ``block_size`` weights are eliminated in
    equal parts, each with the submatrix of ``H_k`` for its columns, and re-fitted as a whole.

    Sources: Kim et al. 2025 (GuidedQuant, arXiv 2505.07004) for the Hessian, Frantar & Alistarh 2022 (OBC, arXiv 2208.11580) for the
    elimination. Differs: rows are weighted within their set, the losses rank weights over all layers, and wide rows are cut.
    """

    row_sets: int
    dampening: float
    relative_dampening: bool
    score_rule: Score
    block_size: int

    def __post_init__(self) -> None:
        GuidedHessian(self.row_sets, self.pattern)  # checks the number of sets
        check_dampening(self.dampening)
        check_block_size(self.block_size, self.pattern, most=LARGEST_BLOCK, advice="common values are 512 to 4096")

    @property
    def statistic(self) -> GuidedHessian:
        return GuidedHessian(self.row_sets, self.pattern)

    def layout(self, layer: Layer) -> Layout:
        """Returns whole rows, or the parts of wider ones."""
        parts = -(-layer.columns // self.block_size)
        length = self.pattern.length
        return Layout(layer, -(-layer.columns // (parts * length)) * length, self.pattern)

    def flops(self, layer: Layer) -> tuple[float, float]:
        layout, sets = self.layout(layer), layer.groups * self.statistic.sets(layer)
        parts = layout.blocks // layer.rows
        eliminating = (INVERT * sets + ELIMINATE * layer.rows) * parts * layout.block_size**3
        return eliminating, refit_flops(layer.rows, layer.columns, self.target.sparsity)

    def score(self, weight_RC: Tensor, layer: Layer, moments: Moments | None) -> Sensitivity:
        import torch

        from workers.pruners import obs

        curvature = obs.layer_hessian(self.layout(layer), moments, self.dampening, self.relative_dampening)
        elimination, notes = obs.eliminate_layer(weight_RC, curvature)
        weights_R = curvature.moments.row_weights_R()
        assert weights_R is not None
        weights_n = weights_R.repeat_interleave(len(elimination.loss_nB) // layer.rows)
        weighted_nG = elimination.loss_nB * weights_n.to(elimination.loss_nB)[:, None]
        loss_nG = torch.where(elimination.loss_nB == torch.inf, torch.inf, weighted_nG)  # also for rows of weight zero
        return Sensitivity(elimination.order_nB, loss_nG, obs.scores_by(self.score_rule.value, loss_nG), notes)

    def solve(self, weight_RC: Tensor, layer: Layer, moments: Moments | None, keep_RC: Tensor) -> Solution:
        from workers.pruners import obs

        curvature = obs.layer_hessian(self.statistic.layout(layer), moments, self.dampening, self.relative_dampening)
        return Solution(obs.solve_layer(weight_RC, curvature, keep_RC), keep_RC)
