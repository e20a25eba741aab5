"""SparseGPT: one sweep over the columns with one factor of the layer Hessian (Frantar & Alistarh, ICML 2023, arXiv 2301.00774)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from workers.checks import require
from workers.collect.statistic import FACTOR, INVERT, LayerHessian
from workers.models.base import Layer
from workers.pruners.base import Sensitivity, Solution, WeightPruner, check_dampening

if TYPE_CHECKING:
    from torch import Tensor

    from kernels.second_moment import Moments


@dataclass
class SparseGPT(WeightPruner):
    r"""Prunes columns from left to right and corrects the columns to the right for the error, with the same factor for all rows.

        H = lambda I + 2/N sum_n x_n x_n^T = (U^-1 U^-T) with U upper triangular         cost of w_ij: w_ij^2 / U_jj^2

    The mask is chosen for ``mask_block`` columns at a time, from the weights at the time when the sweep arrives there. Scores before the
    sweep are ranks within these column blocks, so every column block loses the same share whatever the scope of the target. Predicts no
    loss.
    """

    dampening: float
    relative_dampening: bool
    mask_block: int

    def __post_init__(self) -> None:
        check_dampening(self.dampening)
        require(self.pattern.tile == 1, "pruner.target.pattern", "unstructured or N:M with pruner=sparsegpt", self.target.pattern)
        length = self.pattern.length
        multiple = f"a positive multiple of {length}" if length > 1 else "at least 1"
        require(self.mask_block >= 1 and self.mask_block % length == 0, "pruner.mask_block", multiple, self.mask_block)

    @property
    def statistic(self) -> LayerHessian:
        return LayerHessian(self.pattern)

    def flops(self, layer: Layer) -> tuple[float, float]:
        """Both factor the inverse. The sweep is a product with that factor."""
        factoring = (INVERT + FACTOR) * layer.groups * layer.columns**3
        return factoring, factoring + 2.0 * layer.rows * layer.columns**2

    def score(self, weight_RC: Tensor, layer: Layer, moments: Moments | None) -> Sensitivity:
        import torch

        from kernels.sweep import column_costs
        from workers.pruners import obs
        from workers.pruners.static import quantiles, static_sensitivity

        layout = self.layout(layer)
        curvature = obs.layer_hessian(layout, moments, self.dampening, self.relative_dampening)
        costs, dampenings = [], []
        for rows_SC, upper_CC, dampening in obs.sweeps(weight_RC, curvature):
            costs.append(column_costs(rows_SC, upper_CC))
            dampenings.append(dampening)
        cost_RC = torch.cat(costs)
        notes = obs.dampening_notes(torch.tensor(dampenings), curvature.absolute_dampening(layout.alive(weight_RC)))
        parts = [quantiles(part_RS.reshape(1, -1)).reshape(part_RS.shape) for part_RS in cost_RC.split(self.mask_block, dim=1)]
        return static_sensitivity(torch.cat(parts, dim=1), layout, notes, predicts=False)

    def solve(self, weight_RC: Tensor, layer: Layer, moments: Moments | None, keep_RC: Tensor) -> Solution:
        import torch

        from kernels.sweep import sweep
        from workers.pruners import obs

        layout = self.layout(layer)
        curvature = obs.layer_hessian(layout, moments, self.dampening, self.relative_dampening)
        groups = layout.arrange(keep_RC).chunk(curvature.moments.blocks)
        swept = [
            sweep(rows_SC, upper_CC, keep_SC, self.mask_block, self.pattern)
            for (rows_SC, upper_CC, _), keep_SC in zip(obs.sweeps(weight_RC, curvature), groups, strict=True)
        ]
        solved_RC = layout.restore(torch.cat([rows_SC for rows_SC, _ in swept])).to(weight_RC.dtype)
        return Solution(solved_RC, layout.restore(torch.cat([kept_SC for _, kept_SC in swept])))
