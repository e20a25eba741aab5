"""CAP: correlation-aware pruning with the block Fisher (Kuznedelev et al., NeurIPS 2023, arXiv 2210.09223)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from workers.collect.statistic import ELIMINATE, INVERT, REFIT, BlockFisher
from workers.models.base import Layer
from workers.pruners.base import Sensitivity, Solution, WeightPruner, check_dampening

if TYPE_CHECKING:
    from torch import Tensor

    from kernels.second_moment import Moments


class Score(Enum):
    """How the losses along a block's elimination are turned into scores that are compared across blocks."""

    ACCUMULATED = "accumulated"  # l_1 + .. + l_k (the paper)
    MARGINAL = "marginal"  # l_k (OBC)
    HULL = "hull"  # slopes of the lower convex hull of the cumulative loss: optimal up to one partial segment for each block


@dataclass
class CAP(WeightPruner):
    r"""Greedy OBS elimination in blocks of the Fisher, one ranking over all layers, and one re-fit for the final mask.

        F = lambda I + 1/N sum_n g_n g_n^T            loss of removing q: w_q^2 / (2 [F^-1]_qq)

    Differs from the paper: scores are convex-hull slopes by default, and the weights are solved once for the final mask instead of updated
    at every elimination.
    """

    block_size: int
    dampening: float
    relative_dampening: bool
    score_rule: Score

    def __post_init__(self) -> None:
        BlockFisher(self.block_size, self.pattern)  # checks the block size against the pattern
        check_dampening(self.dampening)

    @property
    def statistic(self) -> BlockFisher:
        return BlockFisher(self.block_size, self.pattern)

    def flops(self, layer: Layer) -> tuple[float, float]:
        blocks, block_size = self.statistic.shape(layer)
        return (INVERT + ELIMINATE) * blocks * block_size**3, REFIT * blocks * block_size**3

    def score(self, weight_RC: Tensor, layer: Layer, moments: Moments | None) -> Sensitivity:
        from workers.pruners import obs

        curvature = obs.fisher(self.layout(layer), moments, self.dampening, self.relative_dampening)
        elimination, notes = obs.eliminate_layer(weight_RC, curvature)
        return Sensitivity(elimination.order_nB, elimination.loss_nB, obs.scores_by(self.score_rule.value, elimination.loss_nB), notes)

    def solve(self, weight_RC: Tensor, layer: Layer, moments: Moments | None, keep_RC: Tensor) -> Solution:
        from workers.pruners import obs

        curvature = obs.fisher(self.layout(layer), moments, self.dampening, self.relative_dampening)
        return Solution(obs.solve_layer(weight_RC, curvature, keep_RC), keep_RC)
