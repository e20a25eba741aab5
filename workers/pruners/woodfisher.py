"""WoodFisher: static OBS scores from the block Fisher (Singh & Alistarh 2020, arXiv 2004.14340; for language models: oBERT)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from workers.collect.statistic import FACTOR, REFIT, BlockFisher
from workers.models.base import Layer
from workers.pruners.base import Sensitivity, Solution, WeightPruner, check_dampening

if TYPE_CHECKING:
    from torch import Tensor

    from kernels.second_moment import Moments


@dataclass
class WoodFisher(WeightPruner):
    r"""Scores each weight (or tile) by the loss of removing it alone, with the others re-fitted. There is no elimination.

        F = lambda I + 1/N sum_n g_n g_n^T          score: w_q^2 / (2 [F^-1]_qq)          for tiles: 1/2 w_G^T ([F^-1]_GG)^-1 w_G

    Differs from the paper: the kept weights are re-fitted together for the final mask; the paper adds up the updates of single removals.
    """

    block_size: int
    dampening: float
    relative_dampening: bool

    def __post_init__(self) -> None:
        BlockFisher(self.block_size, self.pattern)  # checks the block size against the pattern
        check_dampening(self.dampening)

    @property
    def statistic(self) -> BlockFisher:
        return BlockFisher(self.block_size, self.pattern)

    def flops(self, layer: Layer) -> tuple[float, float]:
        blocks, block_size = self.statistic.shape(layer)
        return 2 * FACTOR * blocks * block_size**3, REFIT * blocks * block_size**3

    def score(self, weight_RC: Tensor, layer: Layer, moments: Moments | None) -> Sensitivity:
        from kernels.second_moment import join_blocks
        from workers.pruners import obs
        from workers.pruners.static import static_sensitivity

        layout = self.layout(layer)
        loss_nG, notes = obs.static_layer(weight_RC, obs.fisher(layout, moments, self.dampening, self.relative_dampening))
        loss_RG = join_blocks(loss_nG, layer.rows, layer.columns // self.pattern.tile)
        return static_sensitivity(loss_RG, layout, notes, predicts=True)

    def solve(self, weight_RC: Tensor, layer: Layer, moments: Moments | None, keep_RC: Tensor) -> Solution:
        from workers.pruners import obs

        curvature = obs.fisher(self.layout(layer), moments, self.dampening, self.relative_dampening)
        return Solution(obs.solve_layer(weight_RC, curvature, keep_RC), keep_RC)
