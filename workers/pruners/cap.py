"""CAP: correlation-aware pruning with the block Fisher (Kuznedelev et al., NeurIPS 2023, arXiv 2210.09223)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, ClassVar

from workers.checks import require
from workers.losses import Loss
from workers.pruners.base import Collected, Pruner, Sensitivity, Solution

if TYPE_CHECKING:
    from torch import Tensor, nn

    from kernels.statistics import SecondMoment
    from workers.data.base import Batch
    from workers.models.base import Layer


class Score(Enum):
    """How the losses of a block's eliminations become scores that are compared across blocks."""

    ACCUMULATED = "accumulated"  # l_1 + .. + l_k (the paper)
    MARGINAL = "marginal"  # l_k (OBC)
    HULL = "hull"  # slopes of the lower convex hull of the cumulative loss: optimal up to one partial segment per block


@dataclass
class CAP(Pruner):
    r"""Greedy OBS elimination in blocks of the Fisher, one ranking over all layers, group re-fit on the final mask.

        F = lambda I + 1/N sum_n g_n g_n^T            loss of removing q: w_q^2 / (2 [F^-1]_qq)

    Differs from the paper: scores are convex-hull slopes by default, and weights are solved once for the final mask instead of traced.
    """

    block_size: int
    dampening: float
    relative_dampening: bool
    score_rule: Score

    collects: ClassVar[bool] = True
    collect_reads: ClassVar[tuple[str, ...]] = ("block_size",)

    def __post_init__(self) -> None:
        require(1 <= self.block_size <= 1024, "pruner.block_size", "1 to 1024", self.block_size, "16 to 256 are useful")
        require(self.dampening > 0, "pruner.dampening", "a positive number", self.dampening, "the paper uses 1e-8 to 1e-7")

    def block_size_of(self, layer: Layer) -> int:
        """Rows shorter than a block are blocks of their own."""
        return min(self.block_size, layer.columns)

    def statistic_shape(self, layer: Layer) -> tuple[int, int]:
        block_size = self.block_size_of(layer)
        return layer.rows * -(-layer.columns // block_size), block_size

    def collect(self, model: nn.Module, layers: list[Layer], batches: Iterator[Batch], loss: Loss, seed: int) -> Collected:
        from workers.calibrate import block_fisher

        moments, seen = block_fisher(model, layers, batches, {layer.name: self.block_size_of(layer) for layer in layers}, loss, seed)
        return Collected(moments, {name: seen - moment.count for name, moment in moments.items()})

    def score(self, weight_RC: Tensor, layer: Layer, statistic: SecondMoment | None) -> Sensitivity:
        from kernels import scores
        from workers.pruners import obs

        elimination, notes = obs.eliminate_layer(
            weight_RC, layer, statistic, self.block_size_of(layer), self.dampening, self.relative_dampening
        )
        rule = {Score.ACCUMULATED: scores.accumulated, Score.MARGINAL: scores.marginal, Score.HULL: scores.hull}[self.score_rule]
        return Sensitivity(elimination.order_nB, elimination.loss_nB, rule(elimination.loss_nB), notes)

    def solve(self, weight_RC: Tensor, layer: Layer, statistic: SecondMoment | None, keep_RC: Tensor) -> Solution:
        from workers.pruners import obs

        weight = obs.solve_layer(weight_RC, layer, statistic, keep_RC, self.block_size_of(layer), self.dampening, self.relative_dampening)
        return Solution(weight, keep_RC)
